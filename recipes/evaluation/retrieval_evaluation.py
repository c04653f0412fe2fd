"""Evaluate an embedder on the data sets of ``eval.tasks``: how well it finds pages, and how fast.

run_dir/retrieval/<task>/index/         the pages' vectors; a rerun embeds only what is missing or has changed
run_dir/retrieval/<task>/run.trec       what was found, for measure-run and trec_eval; of a subset <task>@<subset>/…
run_dir/retrieval/<task>/qrels.jsonl    what is relevant to the queries that were searched
run_dir/retrieval/<task>/measures.json  both modes, mteb's scores, speed, and what was left out, by name
run_dir/retrieval/<task>/mteb.json      mteb's own record of the result
"""

from __future__ import annotations

import dataclasses
import gc
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from recipes.indexing.command_line import MakeEmbedder
from recipes.indexing.places import make_any_embedder
from recipes.setup.wanted_data import find_embedder
from rsgrpo.config import Config
from rsgrpo.data.file_bytes import naming
from rsgrpo.errors import shown
from rsgrpo.evaluation.retrieval_sets import RetrievalTask, find_retrieval_tasks
from rsgrpo.io.atomic_files import FileError, read_json_object, write_json
from rsgrpo.io.jsonl import write_rows
from rsgrpo.io.timers import StageClock
from rsgrpo.retrieval.measuring.relevance_files import read_retrieval_set
from rsgrpo.run.folder import RunFolder, begin_run
from rsgrpo.run.progress import Progress
from rsgrpo.run.summary import SearchSummary

if TYPE_CHECKING:  # they take seconds to import, which a slip in the settings need not wait for
    from rsgrpo.evaluation.mteb_tasks import LoadedTask, SubsetResult, TaskResult
    from rsgrpo.retrieval.embedders.embedder import AnyEmbedder
    from rsgrpo.retrieval.index.flat_index import FlatIndex

_K = 10
_DEPTH = 100  # pages of each query in run.trec; mteb's thousand would make files of many megabytes
_SHOWN_REFUSED = 3


def run_retrieval(
    config: Config,
    names: Sequence[str],
    folder: RunFolder,
    progress: Progress,
    clock: StageClock,
    make_embedder: MakeEmbedder | None = None,
) -> dict[str, SearchSummary]:
    """Evaluate the embedder on data sets, one after the other.

    Args:
        config: the settings of the run.
        names: the names in ``eval.tasks`` that are searched.
        folder: the folder of the run.
        progress: shows what is under way.
        clock: adds up the time of the stage.
        make_embedder: the function that makes the embedder; None: an embedder of sentence-transformers is made.

    Returns:
        What the embedder reached, by task, or ``task@subset`` where a task has several.

    Raises:
        RsgrpoError: an error that a user can act on; vectors of pages that were embedded are kept.
    """
    from rsgrpo.evaluation.mteb_tasks import run_task

    with progress.phase("Reading data sets"):
        tasks = {task.name: task for name in names for task in find_retrieval_tasks(name, config.eval.data_root)}
        loaded = [_loaded(task, config) for task in tasks.values()]
        for task in loaded:
            progress.line(f"{task.name}: {task.num_queries} queries, {task.num_pages} pages, revision {task.revision}")
    begin_run(folder, config)
    summaries: dict[str, SearchSummary] = {}
    with clock.stage("retrieval"):
        embedder = (make_embedder or make_any_embedder)(find_embedder(config))
        for task in loaded:
            root = folder.root / "retrieval" / task.name
            with (
                open_task_index(root / "index", embedder) as index,
                progress.phase(f"Searching {task.name}", total=task.num_pages) as phase,
            ):
                num_shown = 0

                def advance(num_done: int, num_pages: int) -> None:
                    nonlocal num_shown
                    phase.advance(count=num_done - num_shown)
                    num_shown = num_done if num_done < num_pages else 0

                result = run_task(
                    task,
                    embedder,
                    index,
                    scratch=root,
                    on_bad_item=config.data.on_bad_sample,
                    on_progress=advance,
                )
            write_json(root / "mteb.json", dict(result.document), indent=2)
            summaries |= _written(folder, task, result, embedder, progress)
    del embedder
    free_memory()
    return summaries


def table_lines(summaries: Mapping[str, SearchSummary]) -> list[str]:
    """Write what was reached as lines of at most 118 columns.

    Args:
        summaries: what the embedder reached, by task and subset.

    Returns:
        A heading, and one line for each task with the official measures in percent, MRR@10 of both modes, and speed.
    """
    heading = (
        f"{'task':<36}{'queries':>8}{'pages':>8}{'MRR@10':>8}{'strict':>8}{'Rec@10':>8}{'nDCG@10':>9}"
        f"{'ms/query':>10}{'ms/search':>11}{'pages/s':>9}"
    )
    lines = [heading]
    for name, summary in summaries.items():
        speed = "-" if summary.pages_per_second is None else f"{summary.pages_per_second:.1f}"
        lines.append(
            f"{name:<36}{summary.num_queries:>8}{summary.num_pages:>8}{100 * summary.official[f'mrr@{_K}']:>8.2f}"
            f"{100 * summary.strict[f'mrr@{_K}']:>8.2f}{100 * summary.official[f'recall@{_K}']:>8.2f}"
            f"{100 * summary.official[f'ndcg@{_K}']:>9.2f}{summary.query_embedding_milliseconds:>10.2f}"
            f"{summary.search_milliseconds:>11.2f}{speed:>9}"
        )
    return lines


def _loaded(task: RetrievalTask, config: Config) -> LoadedTask:
    from rsgrpo.evaluation.mteb_tasks import load_task

    data = None
    if task.folder is not None:
        with naming(task.name):
            data = read_retrieval_set(task.folder, media_folder=config.data.media_cache)
    return load_task(task, data, max_queries=config.eval.max_samples)


def open_task_index(folder: Path, embedder: AnyEmbedder) -> FlatIndex:
    """Open the index of a task, or make it.

    Raises:
        EmbedderMismatchError: another embedder made it.
    """
    from rsgrpo.retrieval.index.flat_index import create_index, open_index
    from rsgrpo.retrieval.index.index_header import HEADER_FILE

    if not (folder / HEADER_FILE).exists():
        return create_index(folder, embedder.identity, embedder=embedder.settings)
    index = open_index(folder, is_writable=True)
    try:
        index.identity.check(embedder.identity, index.name)
    except BaseException:
        index.close()
        raise
    return index


def _written(
    folder: RunFolder, task: LoadedTask, result: TaskResult, embedder: AnyEmbedder, progress: Progress
) -> dict[str, SearchSummary]:
    """Measure and write what was found in each subset of a task, and say what was left out."""
    summaries = {}
    for found in result.subsets:
        name = f"{task.name}@{found.subset}" if found.subset else task.name
        root = folder.root / "retrieval" / name
        summary = _measured(task, found, embedder, root, progress)
        refused = {"pages": dict(found.corpus.refused), "queries": dict(found.searched.refused)}
        for kind, reasons in refused.items():
            if reasons:
                some = ", ".join(f"{shown(key, 60)!r} ({shown(why, 120)})" for key, why in _first(reasons))
                progress.line(f"{name}: left out {len(reasons)} {kind} that cannot be embedded: {some}")
        write_json(
            root / "measures.json",
            {**dataclasses.asdict(summary), "refused": refused, "mteb_scores": dict(found.mteb_scores)},
            indent=2,
        )
        summaries[name] = summary
    if len(result.subsets) > 1:
        progress.line(f"{task.name}: {task.main_score} {100 * result.main_score:.2f}, the mean of its subsets")
    return summaries


def _measured(
    task: LoadedTask, found: SubsetResult, embedder: AnyEmbedder, root: Path, progress: Progress
) -> SearchSummary:
    from rsgrpo.retrieval.measuring.measured_search import measures_at
    from rsgrpo.retrieval.measuring.measures import measure_run
    from rsgrpo.retrieval.measuring.trec_runs import RunError, write_run

    searched = found.searched
    run = {query_id: pages[:_DEPTH] for query_id, pages in searched.run.items()}
    official, strict = (
        measure_run(run, found.relevant, mode=mode, measures=measures_at(_K)) for mode in ("official", "strict")
    )
    write_rows(
        root / "qrels.jsonl",
        (
            {"query-id": query_id, "corpus-id": page_id, "score": score}
            for query_id, pages in found.relevant.items()
            for page_id, score in pages.items()
        ),
    )
    try:
        write_run(root / "run.trec", run)
    except RunError as error:
        progress.line(f"{task.name}: no run.trec was written: {error}")
    return SearchSummary(
        embedder=embedder.identity.model,
        revision=task.revision,
        official=dict(official.values),
        strict=dict(strict.values),
        mteb={task.main_score: found.mteb_scores[task.main_score]},
        num_queries=len(found.relevant),
        num_pages=found.num_pages,
        missing_queries=len(official.missing_queries),
        refused_pages=len(found.corpus.refused),
        query_embedding_milliseconds=searched.query_embedding_milliseconds,
        search_milliseconds=searched.search_milliseconds,
        pages_per_second=found.corpus.pages_per_second or _earlier_speed(root / "measures.json"),
    )


def _earlier_speed(file: Path) -> float | None:
    """Read how many pages a second were embedded when they were; None: another task or subset embedded them."""
    try:
        speed = read_json_object(file).get("pages_per_second")
    except FileError:
        return None
    return speed if isinstance(speed, float) else None


def _first(reasons: Mapping[str, str]) -> list[tuple[str, str]]:
    return list(reasons.items())[:_SHOWN_REFUSED]


def free_memory() -> None:
    """Give the embedder's memory back, before engines take theirs on the same GPU."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
