"""Search the test set with an embedder, and keep what was found in the run folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from rsgrpo.io.atomic_files import FileError, read_json_object, write_json
from rsgrpo.io.record_codec import RecordError, from_plain, to_plain
from rsgrpo.retrieval.embedders.embedder import Embedder
from rsgrpo.retrieval.measuring.measured_search import measure_embedder
from rsgrpo.retrieval.measuring.relevance_files import RetrievalSet
from rsgrpo.retrieval.measuring.trec_runs import write_run
from rsgrpo.run.folder import RunFolder
from rsgrpo.run.progress import Progress
from rsgrpo.run.summary import RetrievalSummary

MEASURES_FILE = "retrieval.json"
RUN_FILE = "run.trec"


def measure_point(
    point: str, embedder: Embedder, test: RetrievalSet, folder: RunFolder, progress: Progress
) -> RetrievalSummary:
    """Measure an embedder on the test set; the measures and the run are written into ``evaluations/POINT``.

    Args:
        point: the point of the run, such as ``before_retriever``.
        embedder: the embedder to measure.
        test: the test set.
        folder: the run folder.
        progress: shows what is being done.

    Returns:
        The measures.
    """
    done = 0
    with progress.phase(f"Measuring {point}", total=len(test.pages)) as phase:

        def on_progress(num_done: int, num_pages: int) -> None:
            nonlocal done
            phase.advance(count=num_done - done)
            done = num_done

        found = measure_embedder(embedder, test, on_progress=on_progress)
        measures = RetrievalSummary(
            mrr_at_10=found.values["mrr@10"],
            recall_at_10=found.values["recall@10"],
            ndcg_at_10=found.values["ndcg@10"],
            num_queries=found.num_queries,
            num_pages=found.num_pages,
            query_milliseconds=found.query_embedding_milliseconds + found.search_milliseconds,
            pages_per_second=found.pages_per_second,
        )
        progress.line(
            f"{point}: MRR@10 {measures.mrr_at_10:.3f}  recall@10 {measures.recall_at_10:.3f}  nDCG@10 "
            f"{measures.ndcg_at_10:.3f}  ({measures.num_queries} questions, {measures.num_pages} pages)"
        )
    place = folder.evaluation(point)
    place.mkdir(parents=True, exist_ok=True)
    write_run(place / RUN_FILE, found.run)
    write_json(place / MEASURES_FILE, to_plain(measures), indent=2)
    return measures


def read_measures(place: Path, say: Callable[[str], None]) -> RetrievalSummary | None:
    """Read what :func:`measure_point` wrote.

    Args:
        place: the folder of the point.
        say: told what is wrong with a file that cannot be read.

    Returns:
        The measures; None where there are none, or they cannot be read: then they are made again.
    """
    file = place / MEASURES_FILE
    if not file.exists():
        return None
    try:
        return from_plain(RetrievalSummary, read_json_object(file))
    except (FileError, RecordError) as error:
        say(f"{place.name}: {error}; measured again")
        return None
