"""Which pages of a corpus were found for each question.

    eval.search_run     ─► a TREC run of anybody's search ─┐
    eval.search_index   ─► an index of the pages ──────────┼─► the best pages of each question
    embedder.model      ─► an index in the run folder ─────┘

run_dir/retrieval/visrag_ret/<set>/index/     the pages' vectors, each page embedded once, whatever the tasks
run_dir/retrieval/visrag_ret/<set>/run.trec   what was found
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from recipes.evaluation.answer_sets import AnswerSet
from recipes.evaluation.retrieval_evaluation import free_memory, open_task_index
from recipes.indexing.command_line import MakeEmbedder
from recipes.indexing.places import make_any_embedder, open_any_index, saved_embedder
from recipes.setup.wanted_data import find_embedder
from rsgrpo.config import Config
from rsgrpo.config.index import IndexConfig
from rsgrpo.errors import shown
from rsgrpo.evaluation.benchmarks.base import BenchmarkError
from rsgrpo.io.ids import near_misses
from rsgrpo.retrieval.measuring.trec_runs import Ranking, Run, RunError, read_run, write_run
from rsgrpo.run.folder import RunFolder
from rsgrpo.run.progress import Progress

if TYPE_CHECKING:  # they take seconds to import
    from rsgrpo.retrieval.embedders.embedder import AnyEmbedder

_DEPTH = 100  # pages of each query in run.trec
_EXAMPLES = 3


class SetSearcher:
    """Finds the pages of questions, with one embedder for all sets.

    Args:
        config: the settings of the run.
        folder: the folder of the run, in which vectors are kept.
        progress: shows what is under way.
        make_embedder: the function that makes the embedder; None: an embedder of sentence-transformers is made.
    """

    def __init__(
        self, config: Config, folder: RunFolder, progress: Progress, make_embedder: MakeEmbedder | None
    ) -> None:
        self._config = config
        self._folder = folder
        self._progress = progress
        self._make_embedder = make_embedder or make_any_embedder
        self._embedder: AnyEmbedder | None = None

    def search(self, found_in: AnswerSet, query_ids: Sequence[str], k: int) -> tuple[Run, str]:
        """Find the best pages of each question.

        Args:
            found_in: the set.
            query_ids: the ids of the questions that will be asked.
            k: how many pages of each will be needed.

        Returns:
            The rankings by query id, each with at least ``k`` pages, best first; and the name of the search.

        Raises:
            RsgrpoError: a question has fewer pages, a page is not in the corpus, or the search cannot work.
        """
        if k > len(found_in.pages):
            raise BenchmarkError(
                f"{found_in.name}: {k} pages of each question are wanted, and the set has {len(found_in.pages)}; lower "
                "eval.top_k or eval.pipeline_depths"
            )
        settings = self._config.eval
        if settings.search_run:
            run, name = self._read(found_in)
        else:
            run, name = self._search(found_in, query_ids, max(k, _DEPTH))
        checked = _checked(run, found_in, query_ids, k, name)
        unused = len(run.keys() - checked.keys())
        if unused:
            self._progress.line(f"{found_in.name}: {unused} queries of {shown(name, 60)} are not asked")
        return checked, Path(name).stem

    def close(self) -> None:
        """Give the embedder's memory back, before engines take theirs."""
        if self._embedder is not None:
            self._embedder = None
            free_memory()

    def _read(self, found_in: AnswerSet) -> tuple[Run, str]:
        """Read a run as VisRAG and we write it: a file, a folder of parts, or a folder of sets."""
        place = Path(self._config.eval.search_run)
        if not place.is_dir():
            return read_run(place), place.name
        folders = (place / found_in.official_name, place / found_in.name, place)
        files = next((files for folder in folders if (files := sorted(folder.glob("*.trec")))), [])
        if not files:
            raise BenchmarkError(
                f"eval.search_run={shown(place)} holds neither *.trec nor {found_in.official_name}/*.trec; name the "
                "file, or the folder that the search wrote"
            )
        return read_run(*files), place.name

    def _search(self, found_in: AnswerSet, query_ids: Sequence[str], depth: int) -> tuple[Run, str]:
        from rsgrpo.retrieval.measuring.measured_search import corpus_page, embed_corpus, search_queries

        wanted = set(query_ids)
        queries = [query for query in found_in.data.queries if query.query_id in wanted]
        root = self._folder.root / "retrieval" / "visrag_ret" / found_in.name
        config = self._config
        if config.eval.search_index:
            place = Path(config.eval.search_index)
            embedder = self._opened()
            with closing(open_any_index(place, IndexConfig())) as index:
                searched = search_queries(index, embedder, queries, depth=depth, on_bad_item=config.data.on_bad_sample)
            return self._kept(root, searched.run), str(place)
        embedder = self._opened()
        with (
            open_task_index(root / "index", embedder) as own,
            self._progress.phase(f"Embedding the pages of {found_in.name}", total=len(found_in.pages)) as phase,
        ):
            num_shown = 0

            def advance(num_done: int, num_pages: int) -> None:
                nonlocal num_shown
                phase.advance(count=num_done - num_shown)
                num_shown = num_done

            embed_corpus(
                own,
                embedder,
                [corpus_page(page) for page in found_in.data.pages],
                on_bad_item=config.data.on_bad_sample,
                on_progress=advance,
            )
            searched = search_queries(own, embedder, queries, depth=depth, on_bad_item=config.data.on_bad_sample)
        return self._kept(root, searched.run), Path(embedder.identity.model).name

    def _kept(self, root: Path, run: Run) -> Run:
        try:
            write_run(root / "run.trec", run)
        except RunError as error:
            self._progress.line(f"no run.trec was written: {error}")
        return run

    def _opened(self) -> AnyEmbedder:
        if self._embedder is None:
            config = self._config
            settings = config.embedder
            if config.eval.search_index:
                saved = saved_embedder(Path(config.eval.search_index), IndexConfig())
                if saved is not None:
                    settings = dataclasses.replace(saved, model=config.embedder.model or saved.model)
            if not settings.model:
                settings = find_embedder(config)
            self._embedder = self._make_embedder(settings)
        return self._embedder


def _checked(run: Run, found_in: AnswerSet, query_ids: Sequence[str], k: int, name: str) -> dict[str, Ranking]:
    """The rankings of the questions that are asked; refused where one is short or names a page that is not there."""
    asked = {query_id: run[query_id] for query_id in query_ids if query_id in run}
    where = f"{found_in.name}: the search {shown(name, 80)}"
    if not asked:
        raise BenchmarkError(
            f"{where} has none of the {len(query_ids)} questions: it has {_some(list(run))}, wanted are "
            f"{_some(query_ids)}; name the run of this set"
        )
    short = [query_id for query_id in query_ids if len(asked.get(query_id, ())) < k]
    if short:
        raise BenchmarkError(
            f"{where} has fewer than {k} pages for {len(short)} of {len(query_ids)} questions, such as {_some(short)}; "
            "search deeper, or lower eval.top_k or eval.pipeline_depths"
        )
    unknown = list(
        dict.fromkeys(
            page.page_id for ranking in asked.values() for page in ranking if page.page_id not in found_in.pages
        )
    )
    if unknown:
        alike = near_misses(unknown, found_in.pages)
        hint = f" ({shown(alike[0][0], 40)!r} looks like {shown(alike[0][1], 40)!r})" if alike else ""
        raise BenchmarkError(
            f"{where} names {len(unknown)} pages that are not in the corpus: {_some(unknown)}{hint}; name a search of "
            "this corpus"
        )
    return asked


def _some(ids: Sequence[str]) -> str:
    return ", ".join(repr(shown(one, 40)) for one in ids[:_EXAMPLES]) + (" …" if len(ids) > _EXAMPLES else "")
