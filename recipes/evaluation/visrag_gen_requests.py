"""VisRAG-Gen's questions: found pages, shown in one of five ways, and the prompts.

| setting | what a question shows |
|---|---|
| ``multi_image`` | the ``eval.top_k`` best pages, then the text |
| ``page_concatenation`` | one image of these pages, then the text |
| ``weighted_selection`` | each of these pages alone, then the text; one of the answers is chosen |
| ``text`` | the texts of these pages in the prompt |
| ``oracle`` | the gold pages, then the text |
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from recipes.evaluation.answer_sets import AnswerSet, read_answer_set
from recipes.evaluation.found_pages import SetSearcher
from recipes.evaluation.page_texts import read_page_texts
from recipes.evaluation.task_records import BenchmarkRequest, TaskRequests, checked_task
from recipes.indexing.command_line import MakeEmbedder
from rsgrpo.config import Config
from rsgrpo.data.files import DataError
from rsgrpo.data.images.joined import join_pages
from rsgrpo.data.images.loading import read_image, reading_fingerprint
from rsgrpo.data.images.sources import ImageError
from rsgrpo.data.readers.findings import Tally
from rsgrpo.errors import shown
from rsgrpo.evaluation.benchmarks import find_benchmarks
from rsgrpo.evaluation.benchmarks.base import BenchmarkError
from rsgrpo.evaluation.benchmarks.visrag_gen import PAGES, PROMPT, RUN, TOP_K, VisRagGenBenchmark, gen_sample
from rsgrpo.evaluation.prompts.turns import user_prompt
from rsgrpo.evaluation.prompts.visrag_gen import DEFAULT_ANSWER_TOKENS, MAX_ANSWER_TOKENS, gen_prompt
from rsgrpo.io.atomic_files import replacing
from rsgrpo.io.timers import StageClock
from rsgrpo.prompts.template import PromptWriter
from rsgrpo.retrieval.measuring.relevance_files import RetrievalQuery, oracle_page_ids
from rsgrpo.retrieval.measuring.trec_runs import Ranking, Run, ScoredPage
from rsgrpo.run.folder import RunFolder
from rsgrpo.run.progress import Progress
from rsgrpo.types import ImageRef, Sample


@dataclass(frozen=True, kw_only=True, slots=True)
class GenSet:
    """A set of VisRAG-Gen, and what a search found in it.

    Attributes:
        source: the queries with their answers, and the pages.
        queries: the queries that are asked.
        run: the pages that were found, by query id; empty where only gold pages are shown.
        run_name: the name of the search.
        no_answer: the ids of queries without an answer, which cannot be asked.
    """

    source: AnswerSet
    queries: tuple[RetrievalQuery, ...]
    run: Run
    run_name: str
    no_answer: tuple[str, ...]


def gen_benchmarks(names: Sequence[str]) -> list[VisRagGenBenchmark]:
    """Find the tasks of VisRAG-Gen that names stand for, each once.

    Args:
        names: the names of tasks, sets or the family.

    Raises:
        BenchmarkError: there is no such task.
    """
    found = {benchmark.name: benchmark for name in names for benchmark in find_benchmarks(name)}
    return [benchmark for benchmark in found.values() if isinstance(benchmark, VisRagGenBenchmark)]


def find_gen_sets(
    config: Config,
    names: Sequence[str],
    folder: RunFolder,
    progress: Progress,
    clock: StageClock,
    make_embedder: MakeEmbedder | None = None,
) -> dict[str, GenSet]:
    """Read the sets of tasks, and find the pages of their questions.

    Args:
        config: the settings of the run.
        names: the names of tasks of VisRAG-Gen.
        folder: the folder of the run, in which vectors of pages are kept.
        progress: shows what is under way.
        clock: adds up the time of the search.
        make_embedder: the function that makes the embedder; None: an embedder of sentence-transformers is made.

    Returns:
        The sets by the name in the middle of the tasks' names.

    Raises:
        RsgrpoError: a set is missing or cannot be read, or the search does not fit it.
    """
    benchmarks = gen_benchmarks(names)
    sets: dict[str, GenSet] = {}
    searcher = SetSearcher(config, folder, progress, make_embedder)
    for benchmark in benchmarks:
        short = _short(benchmark)
        if short in sets:
            continue
        with progress.phase(f"Reading {short}"):
            source = read_answer_set(short, benchmark.set_name, config)
        asked = source.data.queries[: config.eval.max_samples or None]
        answered = tuple(query for query in asked if query.answer not in (None, ()))
        no_answer = tuple(query.query_id for query in asked if query.answer in (None, ()))
        if not answered:
            raise BenchmarkError(
                f"{benchmark.name}: none of {len(asked)} queries of {shown(source.folder)} has an answer; take "
                "VisRAG's own set, whose queries have a column answer"
            )
        run: Run = {}
        run_name = ""
        if any(_short(one) == short and one.setting != "oracle" for one in benchmarks):
            with clock.stage("retrieval"):
                query_ids = [query.query_id for query in answered]
                run, run_name = searcher.search(source, query_ids, config.eval.top_k)
        sets[short] = GenSet(source=source, queries=answered, run=run, run_name=run_name, no_answer=no_answer)
    searcher.close()
    return sets


def load_gen_tasks(config: Config, names: Sequence[str], sets: Mapping[str, GenSet], root: Path) -> list[TaskRequests]:
    """Word the questions of tasks.

    Args:
        config: the settings of the run.
        names: the names of tasks of VisRAG-Gen.
        sets: their sets, of :func:`find_gen_sets`.
        root: the folder of the run's benchmarks, in which joined pages and the texts of pages are kept.

    Returns:
        The requests of each task.

    Raises:
        RsgrpoError: a question cannot be asked (``data.on_bad_sample=reject``), or a page cannot be read.
    """
    return [_load(config, benchmark, sets[_short(benchmark)], root) for benchmark in gen_benchmarks(names)]


def _short(benchmark: VisRagGenBenchmark) -> str:
    return benchmark.name.split("/")[1]


def _load(config: Config, benchmark: VisRagGenBenchmark, gen_set: GenSet, root: Path) -> TaskRequests:
    is_official = config.eval.prompt_style == "official"
    if benchmark.setting == "text" and not is_official:
        raise BenchmarkError(
            f"{benchmark.name} shows no page that evidence could be given of; leave eval.prompt_style=evidence out"
        )
    unusable = Tally()
    for query_id in gen_set.no_answer:
        unusable.add("answer", f"query {shown(query_id, 80)!r} has no answer to compare with")
    pages = {query.query_id: _pages(benchmark, gen_set, query, config) for query in gen_set.queries}
    texts: Mapping[str, str] = {}
    if benchmark.setting == "text":
        shown_pages = [gen_set.source.pages[page.page_id] for found in pages.values() for page in found]
        texts = read_page_texts(benchmark.name, shown_pages, config, root / "page_texts")
    asking = _Asking(
        config=config,
        benchmark=benchmark,
        gen_set=gen_set,
        texts=texts,
        canvases=root / "canvases" / "visrag_gen",
        writer=None if is_official else PromptWriter(config.prompt),
    )
    requests: list[BenchmarkRequest] = []
    for query in gen_set.queries:
        try:
            requests += asking.requests(query, pages[query.query_id])
        except ImageError as error:
            unusable.add("image", f"{error}")
    sampling = config.eval.sampling
    if is_official:
        limit = MAX_ANSWER_TOKENS.get(benchmark.set_name, DEFAULT_ANSWER_TOKENS)
        sampling = dataclasses.replace(sampling, max_response_tokens=min(sampling.max_response_tokens, limit))
    num_samples = len(gen_set.queries) + len(gen_set.no_answer)
    return checked_task(benchmark.name, benchmark, requests, unusable, num_samples, sampling, {}, config)


def _pages(benchmark: VisRagGenBenchmark, gen_set: GenSet, query: RetrievalQuery, config: Config) -> Ranking:
    """The pages that a question is answered from, best first; gold ones all count the same."""
    if benchmark.setting != "oracle":
        return gen_set.run[query.query_id][: config.eval.top_k]
    known = gen_set.source.pages
    try:
        gold = oracle_page_ids(query.query_id, dataset=benchmark.set_name)
    except DataError:
        gold = ()
    if not gold or any(page_id not in known for page_id in gold):
        # The id of the question does not name them, as in a set of other origin.
        judged = gen_set.source.data.relevant.get(query.query_id, {})
        gold = tuple(page_id for page_id, score in judged.items() if score > 0)
    if not gold:
        raise BenchmarkError(
            f"{benchmark.name}: neither the id {shown(query.query_id, 80)!r} nor the qrels name a page that answers "
            "this question; add it to the qrels, or name another setting"
        )
    return [ScoredPage(page_id=page_id, score=1 / len(gold)) for page_id in gold]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Asking:
    """What is needed to word the questions of one task."""

    config: Config
    benchmark: VisRagGenBenchmark
    gen_set: GenSet
    texts: Mapping[str, str]
    canvases: Path
    writer: PromptWriter | None

    def requests(self, query: RetrievalQuery, pages: Ranking) -> Iterator[BenchmarkRequest]:
        """The requests of one question: one, or one for each page."""
        setting = self.benchmark.setting
        page_texts = [self.texts[page.page_id] for page in pages] if setting == "text" else None
        text = gen_prompt(self.benchmark.set_name, query.text, options=query.options, page_texts=page_texts)
        sample = gen_sample(query, self.benchmark.name)
        assert sample is not None  # those without an answer were left out
        images = () if setting == "text" else self._images(pages)
        is_chosen = setting == "weighted_selection"
        # In that setting each page stands alone in a prompt of its own.
        alternatives = [(image,) for image in images] if is_chosen else [images]
        for place, (page, shown_images) in enumerate(zip(pages, alternatives, strict=False)):
            parts = self._parts(query, text, dataclasses.replace(sample, images=shown_images))
            written = "".join(part for part in parts if isinstance(part, str))
            metadata = {
                PAGES: json.dumps([page.page_id for page in pages], ensure_ascii=False),
                PROMPT: written,
                RUN: self.gen_set.run_name,
                TOP_K: str(len(pages)),
            }
            prompt_id = f"{query.query_id}/{place}" if is_chosen else query.query_id
            yield BenchmarkRequest(
                prompt=user_prompt(prompt_id, parts, system=self.config.prompt.system),
                sample=dataclasses.replace(sample, images=shown_images, metadata={**sample.metadata, **metadata}),
                page_score=page.score if is_chosen else None,
            )

    def _parts(self, query: RetrievalQuery, text: str, sample: Sample) -> tuple[str | ImageRef, ...]:
        """Pages and text, in the order in which they are read: VisRAG's own, or ``prompt.path`` with the question."""
        if self.writer is None:
            return (*sample.images, text)
        images = iter(sample.images)
        asked = dataclasses.replace(sample, question=text if query.options else query.text, choices=())
        return tuple(next(images) if part is None else part for part in self.writer.parts(asked))

    def _images(self, pages: Ranking) -> tuple[ImageRef, ...]:
        images = []
        for page in pages:
            image = self.gen_set.source.pages[page.page_id].image
            if image is None:
                raise ImageError(
                    f"page {shown(page.page_id, 80)!r} of {self.gen_set.source.name} has text and no image; name the "
                    f"task visrag_gen/{self.gen_set.source.name}/text"
                )
            images.append(image)
        if self.benchmark.setting == "page_concatenation":
            return (self._joined([page.page_id for page in pages], images),)
        return tuple(images)

    def _joined(self, page_ids: Sequence[str], images: Sequence[ImageRef]) -> ImageRef:
        """The file of the joined pages, drawn unless it was before from the same pages by the same rules."""
        kind, rules = self.config.eval.concatenation, self.config.data.image_rules
        places = [(image.file, image.parquet_file, image.parquet_row) for image in images]
        key = json.dumps([kind, reading_fingerprint(rules.full_size), page_ids, places])
        name = f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.png"
        file = self.canvases / self.gen_set.source.name / name
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            try:
                joined = join_pages([read_image(image, rules) for image in images], is_vertical=kind == "vertical")
            except ValueError as error:
                raise ImageError(f"the pages {shown(', '.join(page_ids), 120)} cannot be joined: {error}") from error
            with replacing(file, is_cache=True) as opened:
                joined.save(opened, format="PNG")
        return ImageRef(path=f"{self.gen_set.source.name}/{name}", file=str(file))
