"""Search, filter and answer in one run, and say where questions were lost on the way.

    questions ─► search ─► the k best pages ─► filter ─► answer ─► outcome      for k in eval.pipeline_depths
    questions ─► the gold pages ─────────────────────► answer ─► outcome      (oracle)

run_dir/retrieval/visrag_ret/<set>/         vectors of the pages and run.trec
run_dir/pipeline/answered_by.json           who answers, and how
run_dir/pipeline/<set>/page_scores.jsonl    what the filter said of each page
run_dir/pipeline/<set>/answers.jsonl        every response as it came; a rerun asks only what is missing
run_dir/pipeline/<set>/cases.jsonl          what became of each question at each depth
run_dir/pipeline/<set>/outcomes.json        how many questions had which outcome, by depth

Pages that are the same at two depths, under the same numbers, are one prompt, which is answered once.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, replace

from recipes.evaluation.answer_journal import AnswerJournal
from recipes.evaluation.answer_sets import AnswerSet, read_answer_set
from recipes.evaluation.answerers import (
    AnsweringModel,
    OpenedAnswerer,
    ask_missing,
    check_same_answerer,
    find_answering_model,
    open_answerer,
    too_long_prompts,
)
from recipes.evaluation.found_pages import SetSearcher
from recipes.evaluation.pipeline_filter import LazyJudge, pipeline_stages
from recipes.evaluation.pipeline_results import ORACLE, JudgedQuestion, write_results
from recipes.evaluation.task_records import BenchmarkRequest, checked_requests
from recipes.filtering.stages import AskedModel
from recipes.indexing.command_line import MakeEmbedder
from recipes.indexing.places import make_single_embedder
from rollout.engine import TokenJudge
from rsgrpo.config import Config
from rsgrpo.data.readers.findings import Tally, short_report
from rsgrpo.errors import shown
from rsgrpo.evaluation.benchmarks.base import BenchmarkError
from rsgrpo.evaluation.benchmarks.visrag_gen import GEN_SETS
from rsgrpo.evaluation.pipeline_outcomes import PipelineQuestion, ShownPages, judge_case
from rsgrpo.evaluation.prompts.turns import user_prompt
from rsgrpo.io.timers import StageClock
from rsgrpo.prompts.template import PromptWriter
from rsgrpo.retrieval.filtering.page_filter import FilterStage, PagesOfQuestion, filter_pages
from rsgrpo.retrieval.measuring.gold_evidence import read_gold_evidence
from rsgrpo.retrieval.measuring.relevance_files import RetrievalQuery
from rsgrpo.retrieval.measuring.trec_runs import Run
from rsgrpo.run.folder import RunFolder, begin_run
from rsgrpo.run.progress import Progress
from rsgrpo.run.summary import PipelineSummary
from rsgrpo.text.normalise import is_refusal
from rsgrpo.types import ImageRef, Sample

_DIGEST_CHARACTERS = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class _Pipeline:
    """One task: its set, its questions, and what was found for them."""

    task: str
    source: AnswerSet
    queries: tuple[RetrievalQuery, ...]
    questions: Mapping[str, PipelineQuestion]
    run: Run
    unusable: Tally


def run_pipelines(
    config: Config,
    names: Sequence[str],
    folder: RunFolder,
    progress: Progress,
    clock: StageClock,
    make_embedder: MakeEmbedder | None = None,
) -> dict[str, PipelineSummary]:
    """Evaluate whole pipelines.

    Args:
        config: the settings of the run.
        names: the names of tasks, such as ``pipeline/manuals``.
        folder: the folder of the run.
        progress: shows what is under way.
        clock: adds up the time of search, filter and answers.
        make_embedder: the function that makes the embedder of the search; None: one of sentence-transformers.

    Returns:
        What became of the questions, by task and depth, such as ``pipeline/manuals@top3``.

    Raises:
        RsgrpoError: an error that a user can act on; vectors, scores and answers so far are kept.
    """
    root = folder.root / "pipeline"
    model = find_answering_model(config, folder)
    searcher = SetSearcher(config, folder, progress, make_embedder)
    pipelines = [_found(name, config, searcher, progress, clock) for name in names]
    searcher.close()
    begin_run(folder, config)
    check_same_answerer(root, config, model)
    summaries: dict[str, PipelineSummary] = {}
    with ExitStack() as stack:
        opened: list[OpenedAnswerer] = []

        def start() -> OpenedAnswerer:
            if not opened:
                opened.append(stack.enter_context(open_answerer(config, model, folder, progress)))
            return opened[0]

        for pipeline in pipelines:
            judged = _judged(pipeline, config, model, start, folder, progress, clock)
            summaries |= write_results(folder, config, pipeline.task, judged)
    return summaries


def _found(name: str, config: Config, searcher: SetSearcher, progress: Progress, clock: StageClock) -> _Pipeline:
    """Read a set, and find the pages of its questions."""
    short = name.partition("/")[2]
    with progress.phase(f"Reading {short}"):
        source = read_answer_set(short, GEN_SETS.get(short, ""), config)
        evidence = read_gold_evidence(source.folder)
    unusable = Tally()
    questions: dict[str, PipelineQuestion] = {}
    for query in source.data.queries[: config.eval.max_samples or None]:
        question = _question(query, source, evidence.get(query.query_id, {}), unusable)
        if question is not None:
            questions[query.query_id] = question
    findings = unusable.findings()
    if not questions or (findings and config.data.on_bad_sample == "reject"):
        advice = "repair them, or set data.on_bad_sample=skip to go on without them" if questions else "repair them"
        raise BenchmarkError(short_report(f"{name}: questions that cannot be asked", findings, advice))
    with clock.stage("retrieval"):
        run, _ = searcher.search(source, list(questions), max(config.eval.pipeline_depths))
    queries = tuple(query for query in source.data.queries if query.query_id in questions)
    progress.line(f"{name}: {len(queries)} questions, {len(source.pages)} pages")
    return _Pipeline(task=name, source=source, queries=queries, questions=questions, run=run, unusable=unusable)


def _question(
    query: RetrievalQuery, source: AnswerSet, evidence: Mapping[str, str], unusable: Tally
) -> PipelineQuestion | None:
    """A question with its gold; None where it cannot be judged."""
    name = shown(query.query_id, 80)
    if query.answer in (None, ()):
        unusable.add("answer", f"query {name!r} has no answer to compare with")
        return None
    judged = source.data.relevant.get(query.query_id, {})
    gold = tuple(page_id for page_id, score in judged.items() if score > 0)
    refuses = isinstance(query.answer, str) and is_refusal(query.answer)
    if not gold and not refuses:
        unusable.add(
            "gold pages",
            f"query {name!r} has an answer and no relevant page in the qrels; add the page, or write the answer "
            "'insufficient to answer'",
        )
        return None
    if gold and refuses:
        unusable.add("gold pages", f"query {name!r} has a relevant page, and its answer refuses; correct one of them")
        return None
    answer = query.answer
    assert answer is not None
    return PipelineQuestion(
        query_id=query.query_id,
        answer=[str(one) for one in answer] if isinstance(answer, tuple) else answer,
        gold_pages=gold,
        gold_evidence={page_id: text for page_id, text in evidence.items() if page_id in gold},
        rule=GEN_SETS.get(source.name),
    )


def _judged(
    pipeline: _Pipeline,
    config: Config,
    model: AnsweringModel,
    start: Callable[[], OpenedAnswerer],
    folder: RunFolder,
    progress: Progress,
    clock: StageClock,
) -> dict[str, list[JudgedQuestion]]:
    """Filter, ask and judge the questions of one set at every depth."""
    root = folder.root / pipeline.task
    stages = _stages(pipeline, config, model, start, folder) if config.filter.enabled else []
    pages: dict[str, dict[str, ShownPages]] = {}
    told = progress.phase(f"Filtering the pages of {pipeline.source.name}") if stages else nullcontext()
    with clock.stage("filter"), told:
        # The deepest first: its pages are judged together, and those of the others are then known.
        for num_pages in sorted(config.eval.pipeline_depths, reverse=True):
            pages[f"top{num_pages}"] = _filtered(pipeline, num_pages, stages, config)
    ordered = dict(reversed(pages.items()))
    ordered[ORACLE] = {
        query_id: ShownPages(
            found=question.gold_pages,
            kept=tuple(range(len(question.gold_pages))),
            numbers=tuple(range(1, len(question.gold_pages) + 1)),
        )
        for query_id, question in pipeline.questions.items()
        if question.is_answerable
    }
    requests = _requests(pipeline, ordered, config)
    asked, left_out, _ = checked_requests(
        pipeline.task, list(requests.values()), pipeline.unusable, len(pipeline.queries), config
    )
    if left_out:
        reasons = ", ".join(f"{count} × {reason}" for reason, count in left_out.items())
        progress.line(f"left out {sum(left_out.values())} questions that cannot be used: {reasons}", indent=2)
    prompts = [request.prompt for request in asked]
    sampling = config.eval.sampling
    too_long = too_long_prompts(pipeline.task, prompts, sampling, config, model.processor)
    journal = AnswerJournal(pipeline.task, root, prompts)
    missing = journal.missing(too_long)
    if missing:
        answerer = start().answerer
        with clock.stage("benchmarks"):
            ask_missing(answerer, pipeline.task, len(prompts), missing, sampling, journal, progress)
    usable = {request.sample.sample_id for request in asked}
    judged: dict[str, list[JudgedQuestion]] = {}
    for depth, by_query in ordered.items():
        judged[depth] = []
        for query_id, shown_pages in by_query.items():
            if query_id not in usable:
                continue
            request = requests[_prompt_id(query_id, shown_pages)]
            answer = journal.answers.get(request.prompt.prompt_id)
            response = None if answer is None or answer.failure else answer.text
            question = pipeline.questions[query_id]
            judged[depth].append(
                JudgedQuestion(
                    question=question,
                    pages=shown_pages,
                    sample=request.sample,
                    response=response,
                    case=judge_case(question, shown_pages, response, config.response.format),
                )
            )
    return judged


def _stages(
    pipeline: _Pipeline,
    config: Config,
    model: AnsweringModel,
    start: Callable[[], OpenedAnswerer],
    folder: RunFolder,
) -> list[FilterStage]:
    def engine() -> TokenJudge:
        found = start().engine
        assert found is not None  # a server is asked by its own scorer
        return found

    asked = None
    if model.processor is not None:
        asked = AskedModel(judge=LazyJudge(engine), processor=model.processor, rules=config.data.image_rules)
    page_ids = {page.image: page.page_id for page in pipeline.source.data.pages if page.image is not None}
    return pipeline_stages(
        config,
        asked,
        config.eval.endpoint.model if model.folder is None else str(model.folder),
        folder.root / "retrieval" / "visrag_ret" / pipeline.source.name / "index",
        make_single_embedder,
        page_ids,
        folder.root / pipeline.task / "page_scores.jsonl",
    )


def _filtered(pipeline: _Pipeline, depth: int, stages: Sequence[FilterStage], config: Config) -> dict[str, ShownPages]:
    """The pages of each question at one depth, and which of them the filter keeps."""
    found = {
        query.query_id: tuple(page.page_id for page in pipeline.run[query.query_id][:depth])
        for query in pipeline.queries
    }
    everything = tuple(range(depth))
    kept: list[tuple[int, ...]] = [everything for _ in found]
    if stages:
        asked = [
            PagesOfQuestion(question=query.text, pages=_images(pipeline.source, found[query.query_id]))
            for query in pipeline.queries
        ]
        most = config.data.max_images
        kept = [pages.kept[:most] for pages in filter_pages(asked, stages)]
    return {
        query_id: ShownPages(found=page_ids, kept=places, numbers=tuple(place + 1 for place in places))
        for (query_id, page_ids), places in zip(found.items(), kept, strict=True)
    }


def _images(source: AnswerSet, page_ids: Sequence[str]) -> tuple[ImageRef, ...]:
    images = []
    for page_id in page_ids:
        image = source.pages[page_id].image
        if image is None:
            raise BenchmarkError(
                f"page {shown(page_id, 80)!r} of {source.name} has text and no image, and pipelines show images; leave "
                "the page out, or give it one"
            )
        images.append(image)
    return tuple(images)


def _requests(
    pipeline: _Pipeline, pages: Mapping[str, Mapping[str, ShownPages]], config: Config
) -> dict[str, BenchmarkRequest]:
    """Every prompt once, by its id."""
    writer = PromptWriter(config.prompt)
    texts = {query.query_id: query for query in pipeline.queries}
    requests: dict[str, BenchmarkRequest] = {}
    for by_query in pages.values():
        for query_id, shown_pages in by_query.items():
            prompt_id = _prompt_id(query_id, shown_pages)
            if prompt_id in requests:
                continue
            sample = _sample(texts[query_id], pipeline, shown_pages)
            images = iter(sample.images)
            parts = tuple(next(images) if part is None else part for part in writer.parts(sample))
            prompt = user_prompt(prompt_id, parts, system=config.prompt.system)
            requests[prompt_id] = BenchmarkRequest(prompt=prompt, sample=sample)
    return requests


def _sample(query: RetrievalQuery, pipeline: _Pipeline, pages: ShownPages) -> Sample:
    question = pipeline.questions[query.query_id]
    sample = Sample(
        sample_id=query.query_id,
        question=query.text,
        images=_images(pipeline.source, pages.shown),
        answers=question.accepted,
        is_sufficient=question.is_answerable and set(question.gold_pages) <= set(pages.shown),
        positive_images=tuple(place for place, page_id in enumerate(pages.shown) if page_id in question.gold_pages),
        choices=query.options,
        task=pipeline.task,
    )
    # Pages that are numbered from 1 without a gap need no numbers of their own in the prompt.
    is_plain = pages.numbers == tuple(range(1, len(pages.numbers) + 1))
    return sample if is_plain else replace(sample, page_numbers=pages.numbers)


def _prompt_id(query_id: str, pages: ShownPages) -> str:
    """One id for each question with the same pages under the same numbers."""
    told = json.dumps([list(pages.shown), list(pages.numbers)])
    return f"{query_id}#{hashlib.sha256(told.encode()).hexdigest()[:_DIGEST_CHARACTERS]}"
