"""Measure an embedder on a data set: embed its pages and its questions, search, and judge what was found.

    pages -> vectors (in an index, which keeps them) ┐
                                                     ├-> search -> run -> MRR, recall, nDCG
    questions with a judgement -> vectors ───────────┘

Scores are exact, and the measures are those of :mod:`rsgrpo.retrieval.measuring.measures`; speed is measured beside
quality.
"""

from __future__ import annotations

import hashlib
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar, get_args

from rsgrpo.config.checks import one_of
from rsgrpo.data.file_bytes import DataError
from rsgrpo.data.images.sources import ImageError, image_bytes
from rsgrpo.errors import shown
from rsgrpo.retrieval.embedders.embedder import AnyEmbedder, EmbeddingError, PageImage
from rsgrpo.retrieval.index.flat_index import create_index
from rsgrpo.retrieval.index.page_index import IndexedPage, PageIndex
from rsgrpo.retrieval.measuring.measures import measure_run
from rsgrpo.retrieval.measuring.relevance_files import RetrievalPage, RetrievalQuery, RetrievalSet
from rsgrpo.retrieval.measuring.trec_runs import Mode, Run, ScoredPage

OnBadItem = Literal["reject", "skip"]
"""``reject``: a page or question that cannot be embedded stops the measurement. ``skip``: it is left out and named."""

_AT_ONCE = 256  # items embedded in one call: enough to sort them into batches of like sizes
_SAVE_SECONDS = 600.0  # between saves of the index: what a crash costs at most
_NO_IMAGE = "it has text and no image, and the embedder reads images"

_Item = TypeVar("_Item")


@dataclass(frozen=True, kw_only=True, slots=True)
class MeasuredSearch:
    """What an embedder finds in a data set, how good that is, and how long it took.

    Attributes:
        values: the mean of ``mrr@k``, ``recall@k`` and ``ndcg@k`` over the queries, each from 0 to 1.
        per_query: the values of each measure by query id.
        run: the pages that were found, by query id, best first.
        num_queries: how many queries the means are over.
        num_pages: how many pages were searched.
        num_embedded_pages: how many of them were embedded now; the others were in the index already.
        query_embedding_milliseconds: the time that turning one question into a vector took, on average over questions
            that were embedded together, in milliseconds.
        search_milliseconds: the time that one search among all pages took, on average, in milliseconds.
        pages_per_second: how many pages were embedded in a second, reading of the images included; None: none was.
        missing_queries: the ids of judged queries without a page; of these only refused ones are without.
        unjudged_queries: the ids of queries of the set that nothing is judged for; they are not searched.
        refused_queries: why a query was left out, by its id; empty unless ``skip`` was asked for.
        refused_pages: why a page was left out, by its id; no search finds it, and it counts as not found.
    """

    values: Mapping[str, float]
    per_query: Mapping[str, Mapping[str, float]]
    run: Run
    num_queries: int
    num_pages: int
    num_embedded_pages: int
    query_embedding_milliseconds: float
    search_milliseconds: float
    pages_per_second: float | None
    missing_queries: tuple[str, ...]
    unjudged_queries: tuple[str, ...]
    refused_queries: Mapping[str, str]
    refused_pages: Mapping[str, str]


@dataclass(frozen=True, kw_only=True, slots=True)
class CorpusPage:
    """A page to embed, wherever its image lies; nothing is read before it is needed.

    Attributes:
        page_id: the id of the page, unique in its corpus.
        read: gives the image for the embedder; None: the page has no image.
        digest: gives the SHA-256 of the image file in hexadecimal digits, by which a page that was embedded before is
            known again.
    """

    page_id: str
    read: Callable[[], PageImage] | None
    digest: Callable[[], str]


@dataclass(frozen=True, kw_only=True, slots=True)
class EmbeddedCorpus:
    """What came of bringing an index up to date with the pages of a data set.

    Attributes:
        num_embedded: how many pages were embedded now.
        seconds: the time that embedding them took, reading of the images included, in seconds.
        refused: why a page was left out, by its id.
    """

    num_embedded: int
    seconds: float
    refused: Mapping[str, str]

    @property
    def pages_per_second(self) -> float | None:
        """How many pages were embedded in a second; None: none was."""
        return self.num_embedded / self.seconds if self.num_embedded and self.seconds > 0 else None


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchedQueries:
    """What searching for a list of queries gave.

    Attributes:
        run: the pages that were found, by query id, best first.
        embedding_seconds: the time that turning the questions into vectors took, in seconds.
        search_seconds: the time that the searches took, in seconds.
        refused: why a query was left out, by its id.
    """

    run: Run
    embedding_seconds: float
    search_seconds: float
    refused: Mapping[str, str]

    @property
    def query_embedding_milliseconds(self) -> float:
        """The time that turning one question into a vector took, on average, in milliseconds."""
        return 1000 * self.embedding_seconds / max(1, len(self.run))

    @property
    def search_milliseconds(self) -> float:
        """The time that one search took, on average, in milliseconds."""
        return 1000 * self.search_seconds / max(1, len(self.run))


def measure_embedder(
    embedder: AnyEmbedder,
    data: RetrievalSet,
    *,
    k: int = 10,
    depth: int = 100,
    mode: Mode = "official",
    on_bad_item: OnBadItem = "reject",
    index: PageIndex | None = None,
    on_progress: Callable[[int, int], None] = lambda num_done, num_pages: None,
    clock: Callable[[], float] = time.perf_counter,
) -> MeasuredSearch:
    """Measure how well an embedder finds the relevant pages of a data set, and how fast.

    Args:
        embedder: the embedder to measure.
        data: the queries, the pages that are searched, and which of them are relevant.
        k: the number of first pages that the measures look at.
        depth: the number of pages that each query keeps in the run, at least ``k``.
        mode: the rule for judged queries without a page, as in
            :func:`~rsgrpo.retrieval.measuring.measures.measure_run`.
        on_bad_item: what happens to a page or a question that cannot be embedded.
        index: the index that keeps the pages' vectors, open for writing: pages that it has are not embedded again.
            None: an index that is thrown away.
        on_progress: the function that is called with the number of pages done and of all pages.
        clock: the function that gives the time in seconds.

    Returns:
        The measures, the run, and the speed.

    Raises:
        DataError: the set has no page, no query, or no judgement.
        EmbeddingError: with ``reject``, a page or question cannot be embedded; with ``skip``, none of them can.
        EmbedderMismatchError: another embedder made the index.
        ValueError: ``k`` or ``depth`` is out of range.

    Example:
        ``measure_embedder(embedder, read_retrieval_set(Path("tickets"))).values["mrr@10"]``
    """
    one_of("on_bad_item", on_bad_item, get_args(OnBadItem))
    if not 1 <= k <= depth:
        raise ValueError(f"k={k} and depth={depth}: expected 1 <= k <= depth")
    _check_set(data)
    with _thrown_away(embedder) if index is None else _kept(index) as pages:
        corpus = embed_corpus(
            pages,
            embedder,
            [corpus_page(page) for page in data.pages],
            on_bad_item=on_bad_item,
            on_progress=on_progress,
            clock=clock,
            is_kept=index is not None,
        )
        judged = [query for query in data.queries if query.query_id in data.relevant]
        searched = search_queries(pages, embedder, judged, depth=depth, on_bad_item=on_bad_item, clock=clock)
        num_pages = len(pages)
    measured = measure_run(searched.run, data.relevant, mode=mode, measures=measures_at(k))
    return MeasuredSearch(
        values=measured.values,
        per_query=measured.per_query,
        run=searched.run,
        num_queries=measured.num_queries,
        num_pages=num_pages,
        num_embedded_pages=corpus.num_embedded,
        query_embedding_milliseconds=searched.query_embedding_milliseconds,
        search_milliseconds=searched.search_milliseconds,
        pages_per_second=corpus.pages_per_second,
        missing_queries=measured.missing_queries,
        unjudged_queries=data.unjudged_query_ids,
        refused_queries=searched.refused,
        refused_pages=corpus.refused,
    )


def measures_at(k: int) -> tuple[str, str, str]:
    """Name the measures of a search by the number of first pages that they look at.

    Example:
        ``measures_at(10) == ("mrr@10", "recall@10", "ndcg@10")``
    """
    return f"mrr@{k}", f"recall@{k}", f"ndcg@{k}"


def corpus_page(page: RetrievalPage) -> CorpusPage:
    """Make a page of a data set one that can be embedded."""
    image = page.image
    if image is None:
        return CorpusPage(page_id=page.page_id, read=None, digest=lambda: "")
    return CorpusPage(
        page_id=page.page_id, read=lambda: image, digest=lambda: hashlib.sha256(image_bytes(image)).hexdigest()
    )


def embed_corpus(
    index: PageIndex,
    embedder: AnyEmbedder,
    pages: Sequence[CorpusPage],
    *,
    on_bad_item: OnBadItem = "reject",
    on_progress: Callable[[int, int], None] = lambda num_done, num_pages: None,
    clock: Callable[[], float] = time.perf_counter,
    is_kept: bool = True,
) -> EmbeddedCorpus:
    """Make an index hold the pages of a data set; those whose image it has are not embedded again.

    Args:
        index: the index, open for writing.
        embedder: the embedder that turns the pages into vectors; it must be the one that made the index.
        pages: the pages.
        on_bad_item: what happens to a page that cannot be embedded.
        on_progress: the function that is called with the number of pages done and of all pages.
        clock: the function that gives the time in seconds.
        is_kept: whether the index is saved (every ten minutes, and at the end, an error or Ctrl-C included), with the
            checksum of every image, so that a page whose image has changed is embedded again.

    Returns:
        The counts, the time, and the pages that were left out.

    Raises:
        EmbedderMismatchError: another embedder made the index; nothing was changed.
        EmbeddingError: with ``reject``, a page cannot be embedded, or has no image; with ``skip``, no page can.
    """
    index.identity.check(embedder.identity, index.name)
    known = {page.page_id: page.sha256 for page in index.pages()}
    num_removed = index.remove(known.keys() - {page.page_id for page in pages})
    refused = {page.page_id: _NO_IMAGE for page in pages if page.read is None}
    if refused and on_bad_item == "reject":
        raise EmbeddingError(
            f"{len(refused)} of {len(pages)} pages have text and no image, such as {shown(next(iter(refused)), 80)!r}, "
            "and the embedder reads images; give them images, or skip pages that cannot be embedded"
        )
    seconds = 0.0
    num_embedded = num_done = 0
    last_save = clock()

    def use(batch: Sequence[CorpusPage]) -> None:
        nonlocal seconds, num_embedded
        digests = [page.digest() if is_kept else "" for page in batch]
        new = [
            (page, sha256)
            for page, sha256 in zip(batch, digests, strict=True)
            if known.get(page.page_id) != sha256 or sha256 == ""
        ]
        if new:
            begin = clock()
            vectors = embedder.embed_pages([page.read() for page, _ in new if page.read is not None])
            seconds += clock() - begin
            index.add([_indexed(page, sha256) for page, sha256 in new], vectors)
            num_embedded += len(new)

    def done(num_pages: int) -> None:
        nonlocal num_done, last_save
        num_done += num_pages
        on_progress(num_done, len(pages))
        if is_kept and clock() - last_save > _SAVE_SECONDS:
            index.save()
            last_save = clock()

    with_image = [page for page in pages if page.read is not None]
    try:
        problems = _use_all(
            with_image, lambda page: f"page {shown(page.page_id, 80)!r}", use, on_bad_item=on_bad_item, done=done
        )
        refused |= {page.page_id: reason for page, reason in problems}
    finally:
        num_removed += index.remove(refused)
        if is_kept and (num_embedded or num_removed):
            index.save()
    return EmbeddedCorpus(num_embedded=num_embedded, seconds=seconds, refused=refused)


def search_queries(
    index: PageIndex,
    embedder: AnyEmbedder,
    queries: Sequence[RetrievalQuery],
    *,
    depth: int,
    on_bad_item: OnBadItem = "reject",
    clock: Callable[[], float] = time.perf_counter,
) -> SearchedQueries:
    """Find the best pages for each query, and add up the time.

    Args:
        index: the index to search.
        embedder: the embedder that made the index.
        queries: the queries.
        depth: the number of pages that each query keeps, at least 1.
        on_bad_item: what happens to a query that cannot be embedded.
        clock: the function that gives the time in seconds.

    Returns:
        The run, the time, and the queries that were left out.

    Raises:
        EmbedderMismatchError: another embedder made the index.
        EmbeddingError: with ``reject``, a query cannot be embedded; with ``skip``, none can.
    """
    index.identity.check(embedder.identity, index.name)
    run: dict[str, tuple[ScoredPage, ...]] = {}
    embedding_seconds = search_seconds = 0.0

    def answer(batch: Sequence[RetrievalQuery]) -> None:
        nonlocal embedding_seconds, search_seconds
        begin = clock()
        vectors = embedder.embed_queries([query.text for query in batch])
        embedded = clock()
        found = index.search(vectors, depth)
        search_seconds += clock() - embedded
        embedding_seconds += embedded - begin
        for query, pages in zip(batch, found, strict=True):
            run[query.query_id] = tuple(ScoredPage(page_id=hit.page.page_id, score=hit.score) for hit in pages)

    problems = _use_all(queries, lambda query: f"query {shown(query.query_id, 80)!r}", answer, on_bad_item=on_bad_item)
    return SearchedQueries(
        run=run,
        embedding_seconds=embedding_seconds,
        search_seconds=search_seconds,
        refused={query.query_id: reason for query, reason in problems},
    )


def _use_all(
    items: Sequence[_Item],
    name: Callable[[_Item], str],
    use: Callable[[Sequence[_Item]], None],
    *,
    on_bad_item: OnBadItem,
    done: Callable[[int], None] = lambda num_items: None,
) -> list[tuple[_Item, str]]:
    """Use items many at a time; where that fails, one by one, to learn which of them is to blame.

    Returns:
        The items that could not be used, each with the reason.

    Raises:
        EmbeddingError: with ``reject``, an item cannot be used; with ``skip``, none can. The message names the item.
    """
    refused: list[tuple[_Item, str]] = []
    for start in range(0, len(items), _AT_ONCE):
        batch = items[start : start + _AT_ONCE]
        try:
            use(batch)
        except (EmbeddingError, ImageError):
            for item in batch:
                try:
                    use([item])
                except (EmbeddingError, ImageError) as error:
                    if on_bad_item == "reject":
                        raise EmbeddingError(f"{name(item)} cannot be embedded: {error}") from error
                    refused.append((item, str(error)))
        done(len(batch))
    if len(refused) == len(items):
        first = f", such as {name(refused[0][0])}: {refused[0][1]}" if refused else ""
        raise EmbeddingError(f"none of {len(items)} pages or queries can be embedded{first}")
    return refused


def _check_set(data: RetrievalSet) -> None:
    for count, what in ((len(data.pages), "page"), (len(data.queries), "query"), (len(data.relevant), "judgement")):
        if not count:
            raise DataError(f"the data set has no {what}: there is nothing to measure; write or download it again")


@contextmanager
def _thrown_away(embedder: AnyEmbedder) -> Iterator[PageIndex]:
    with (
        tempfile.TemporaryDirectory(prefix="rsgrpo-pages-") as folder,
        create_index(Path(folder), embedder.identity) as index,
    ):
        yield index


@contextmanager
def _kept(index: PageIndex) -> Iterator[PageIndex]:
    yield index


def _indexed(page: CorpusPage, sha256: str) -> IndexedPage:
    return IndexedPage(page_id=page.page_id, document=page.page_id, page_number=1, sha256=sha256)
