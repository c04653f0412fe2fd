"""Search by text and vectors together, with a weight that was tuned for one index on judged questions.

    questions ─► BM25, best 100 ────┐
              └► vectors, best 100 ─┴► fused by the weight ─► best k

The weight lies in ``search.json`` in the index's folder, with everything that it depends on: other pages, other texts
or another embedder would need another weight.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rsgrpo import __version__
from rsgrpo.errors import RsgrpoError, shown
from rsgrpo.io.atomic_files import FileError, read_json_object, shown_value, write_json
from rsgrpo.io.record_codec import RecordError, from_plain, to_plain
from rsgrpo.retrieval.embedders.embedder import EmbedderIdentity
from rsgrpo.retrieval.index.page_index import FoundPage, ranked
from rsgrpo.retrieval.measuring.measures import Judgements, measure_run
from rsgrpo.retrieval.measuring.trec_runs import ScoredPage
from rsgrpo.retrieval.text.fusion import FusionMethod, fuse, split_queries, tune_weight
from rsgrpo.retrieval.text.text_search import TextSearch

TUNED_FILE = "search.json"
"""Name of the file with the tuned weight, in the index's folder."""

DEPTH = 100
"""How many pages of each search are fused. Scores are brought to [0, 1] between the first and the last of them, so the
weight belongs to this number."""

SHOWN_MEASURES = ("mrr@10", "recall@10", "ndcg@10")

_KIND = "rsgrpo tuned search"
_VERSION = 1


class HybridError(RsgrpoError, ValueError):
    """A weight cannot be read or tuned; the message names the way out."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TunedSearch:
    """A weight of the text search against the vectors, and all that it was tuned on.

    Attributes:
        weight: how much the text counts, from 0 (vectors alone) to 1 (text alone).
        method: the rule by which the two rankings are fused.
        depth: how many pages of each search are fused.
        language: the language of the text search.
        queries: the folder of the judged questions, for people.
        num_dev_queries: how many questions the weight was tuned on.
        num_test_queries: how many other questions the measures are over.
        dev_frac: the share of the pages whose questions were for tuning.
        seed: the number that decided the split.
        measures: the measures of ``text``, ``vectors`` and ``hybrid`` over the test questions, each from 0 to 1.
        content: the digest of pages, texts and language (:class:`~rsgrpo.retrieval.text.text_search.TextSearch`).
        num_pages: how many pages the index held.
        embedder: the identity of the embedder whose vectors were searched.
        made_by: the version of rsgrpo that tuned it.
    """

    weight: float
    method: FusionMethod
    depth: int
    language: str
    queries: str
    num_dev_queries: int
    num_test_queries: int
    dev_frac: float
    seed: int
    measures: Mapping[str, Mapping[str, float]]
    content: str
    num_pages: int
    embedder: EmbedderIdentity
    made_by: str = __version__

    def changes(self, text: TextSearch, embedder: EmbedderIdentity) -> tuple[str, ...]:
        """Say what has changed since the weight was tuned.

        Args:
            text: the text search of the index as it is now.
            embedder: the identity of the embedder of the index as it is now.

        Returns:
            A text for each change; empty where there is none.
        """
        found = []
        if text.language != self.language:
            found.append(f"the language is {text.language}, it was {self.language}")
        elif text.content != self.content:
            found.append(f"pages or their texts have changed ({self.num_pages:,} pages then, {text.num_pages:,} now)")
        differences = self.embedder.differences(embedder)
        if differences:
            found.append(f"the embedder is another one ({shown('; '.join(differences), 200)})")
        return tuple(found)


def fuse_found(
    text: Sequence[FoundPage], vectors: Sequence[FoundPage], weight: float, k: int, *, method: FusionMethod
) -> list[FoundPage]:
    """Fuse what the two searches found for one question; see :func:`rsgrpo.retrieval.text.fusion.fuse`.

    Args:
        text: the pages that the text search found, best first.
        vectors: the pages that their vectors found, best first.
        weight: how much the text counts, from 0 to 1.
        k: the largest number of pages to keep.
        method: the rule by which the two rankings are fused.

    Returns:
        The best pages; equal ones in page order, as each of the searches has them.
    """
    pages = {found.page.page_id: found.page for found in (*text, *vectors)}
    fused = fuse(_scored(text), _scored(vectors), weight, method=method)
    return ranked(((pages[page.page_id], page.score) for page in fused), k)


@dataclass(frozen=True, kw_only=True, slots=True)
class FoundBoth:
    """What both searches found for several questions.

    Attributes:
        text: the pages that the text search found, by query id, best first.
        vectors: the pages that their vectors found, by query id, best first.
    """

    text: Mapping[str, Sequence[FoundPage]]
    vectors: Mapping[str, Sequence[FoundPage]]


def tune_search(
    found: FoundBoth,
    relevant: Judgements,
    text: TextSearch,
    embedder: EmbedderIdentity,
    *,
    queries: str,
    dev_frac: float,
    seed: int,
    method: FusionMethod = "weighted_sum",
) -> TunedSearch:
    """Tune the weight on one part of the judged questions, and measure all three searches on the other.

    Args:
        found: the best :data:`DEPTH` pages of both searches for every judged question.
        relevant: the relevance of each judged page, by query id and page id.
        text: the text search that was used.
        embedder: the identity of the embedder whose vectors were searched.
        queries: the folder of the judged questions, for people.
        dev_frac: the share of the pages whose questions are for tuning, above 0 and below 1.
        seed: the number that decides the split.
        method: the rule by which the two rankings are fused.

    Returns:
        The weight, and the measures over the questions that it was not tuned on; those that nothing was found for
        count as 0.

    Raises:
        RunError: a part has no question, or no weight finds a relevant page for any question of the dev part.
    """
    split = split_queries(relevant, dev_frac=dev_frac, seed=seed)
    runs = {
        name: {query_id: _scored(pages) for query_id, pages in of_search.items()}
        for name, of_search in (("text", found.text), ("vectors", found.vectors))
    }
    tuned = tune_weight(runs["text"], runs["vectors"], split, method=method)
    runs["hybrid"] = {
        query_id: _scored(
            fuse_found(
                found.text.get(query_id, ()), found.vectors.get(query_id, ()), tuned.weight, DEPTH, method=method
            )
        )
        for query_id in split.test
    }
    return TunedSearch(
        weight=tuned.weight,
        method=method,
        depth=DEPTH,
        language=text.language,
        queries=queries,
        num_dev_queries=len(split.dev),
        num_test_queries=len(split.test),
        dev_frac=dev_frac,
        seed=seed,
        measures={name: _measured(run, split.test) for name, run in runs.items()},
        content=text.content,
        num_pages=text.num_pages,
        embedder=embedder,
    )


def write_tuned(folder: Path, tuned: TunedSearch) -> None:
    """Write a weight into the folder of its index, in the place of one that is there.

    Raises:
        HybridError: the disk is full, or there is no permission.
    """
    document = {"kind": _KIND, "version": _VERSION, "content": to_plain(tuned)}
    try:
        write_json(folder / TUNED_FILE, document, indent=1)
    except OSError as error:
        raise HybridError(f"{shown(folder / TUNED_FILE)} cannot be written ({error.strerror}); make room") from error


def read_tuned(folder: Path) -> TunedSearch | None:
    """Read the weight that lies in the folder of an index.

    Returns:
        The weight; None: none was tuned.

    Raises:
        HybridError: the file is damaged, or of something else or another release.
    """
    file = folder / TUNED_FILE
    if not file.exists():
        return None
    way_out = "run rsgrpo tune-search again, or delete the file"
    try:
        document = read_json_object(file)
        for key, expected in (("kind", _KIND), ("version", _VERSION)):
            if document.get(key) != expected:
                raise HybridError(
                    f"{shown(file)}: {key} is {shown_value(document.get(key))}, expected {expected!r}; {way_out}"
                )
        tuned = from_plain(TunedSearch, document.get("content"))
    except (FileError, RecordError) as error:
        raise HybridError(f"{shown(file)} holds no tuned weight ({shown(error, 160)}); {way_out}") from error
    if not (0 <= tuned.weight <= 1 and tuned.depth >= 1):
        raise HybridError(f"{shown(file)}: weight {tuned.weight} at depth {tuned.depth} is no weight; {way_out}")
    return tuned


def _scored(found: Iterable[FoundPage]) -> tuple[ScoredPage, ...]:
    return tuple(ScoredPage(page_id=hit.page.page_id, score=hit.score) for hit in found)


def _measured(run: Mapping[str, Sequence[ScoredPage]], relevant: Judgements) -> dict[str, float]:
    if not any(run.get(query_id) for query_id in relevant):  # of a run without any page measure_run makes no number
        return dict.fromkeys(SHOWN_MEASURES, 0.0)
    kept = {query_id: run.get(query_id, ()) for query_id in relevant}
    return dict(measure_run(kept, relevant, mode="strict", measures=SHOWN_MEASURES).values)
