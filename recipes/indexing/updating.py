"""Bring an index up to date with a store of pages: embed what is new or has changed, take out what is gone."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from rsgrpo.retrieval.embedders.embedder import AnyEmbedder
from rsgrpo.retrieval.index.page_index import IndexedPage, PageIndex, add_pages

_PAGES_AT_ONCE = 256  # embedded in one call: enough to sort them into batches of like sizes
_FIRST_PAGES = 16  # of the first call; on a CPU 256 may take an hour, which Ctrl-C would lose
_CALL_SECONDS = 15.0  # a call that takes longer is followed by a smaller one
_SAVE_SECONDS = 30.0  # between saves at least, and so long that saving, which writes the whole index, …
_SAVE_SHARE = 0.02  # … takes at most this share of the time; a crash costs what was embedded since the last save


class StoredPage(Protocol):
    """A page of a store, as far as an index takes it over; ``rsgrpo.documents`` makes such pages."""

    @property
    def page_id(self) -> str:
        """The id of the page, unique in the store."""

    @property
    def document(self) -> str:
        """The path of the page's document from the folder that was given, with ``/``."""

    @property
    def page_number(self) -> int:
        """The number of the page in its document, from 1."""

    @property
    def sha256(self) -> str:
        """The SHA-256 of the image file, in hexadecimal digits."""

    @property
    def image_path(self) -> Path:
        """The path of the image file."""

    @property
    def title(self) -> str | None:
        """The title of the page, for people; None: there is none."""

    @property
    def blank(self) -> bool:
        """Whether all pixels have one colour."""


class PageSource(Protocol):
    """A store of pages."""

    def dates(self) -> Mapping[str, str]:
        """The day of each document's file by the document's name, as ``YYYY-MM-DD``."""

    def pages(self) -> Iterator[StoredPage]:
        """Give every page of the store once."""


@dataclass(frozen=True, kw_only=True, slots=True)
class IndexReport:
    """The counts and the time of an update.

    Attributes:
        num_embedded: how many pages were embedded, as they were new or had changed.
        num_unchanged: how many pages had their image in the index already, perhaps under another title, date or place.
        num_removed: how many pages were taken out, as the store has them no more.
        num_blank: how many pages of one colour were left out, as nothing stands on them.
        seconds: the time that the update took, in seconds.
    """

    num_embedded: int
    num_unchanged: int
    num_removed: int
    num_blank: int
    seconds: float


@dataclass(frozen=True, kw_only=True, slots=True)
class _Plan:
    """What an update has to do.

    Attributes:
        changed: the pages to embed.
        renamed: the pages whose image is in the index already, so that their vector is there too.
        gone: the ids of the pages that the store has no more.
        num_unchanged: how many pages have their image in the index already.
        num_blank: how many pages of one colour are left out.
    """

    changed: Sequence[IndexedPage]
    renamed: Sequence[IndexedPage]
    gone: Collection[str]
    num_unchanged: int
    num_blank: int


def update_index(
    index: PageIndex,
    embedder: AnyEmbedder,
    source: PageSource,
    *,
    dates: Mapping[str, str] | None = None,
    on_progress: Callable[[int, int], None] = lambda num_embedded, num_wanted: None,
) -> IndexReport:
    """Make an index hold the pages of a store, and save it.

    Args:
        index: the index to update, open for writing.
        embedder: the embedder that turns the pages into vectors; it must be the one that made the index.
        source: the store of pages.
        dates: the date of each document, as ``YYYY-MM-DD``; a document that is not named keeps the date that the index
            knows.
        on_progress: the function that is called with the number of pages embedded so far, and of those to embed in all.

    Returns:
        The counts of pages, and the time that it took.

    Raises:
        EmbedderMismatchError: another embedder made the index; nothing was changed.
        EmbeddingError: a page cannot be embedded. What was embedded before is saved.
        PageIndexError: the disk is full.
    """
    begin = time.monotonic()
    index.identity.check(embedder.identity, index.name)
    plan = _plan(index, source, dates or {})
    if plan.renamed:
        index.add(plan.renamed, index.vectors([page.page_id for page in plan.renamed]))
    try:
        _embed(index, embedder, plan.changed, on_progress)
    except BaseException:  # Ctrl-C as well
        index.save()
        raise
    num_removed = index.remove(plan.gone)
    index.save()
    return IndexReport(
        num_embedded=len(plan.changed),
        num_unchanged=plan.num_unchanged,
        num_removed=num_removed,
        num_blank=plan.num_blank,
        seconds=time.monotonic() - begin,
    )


def _plan(index: PageIndex, source: PageSource, dates: Mapping[str, str]) -> _Plan:
    known = {page.page_id: page for page in index.pages()}
    gone = dict.fromkeys(known)
    changed: list[IndexedPage] = []
    renamed: list[IndexedPage] = []
    num_unchanged = num_blank = 0
    for stored in source.pages():
        if stored.blank:
            num_blank += 1
            continue
        before = known.get(stored.page_id)
        gone.pop(stored.page_id, None)
        page = _indexed(stored, dates.get(stored.document, before.date if before else ""))
        is_same_image = before is not None and before.sha256 == page.sha256 != ""
        num_unchanged += is_same_image or page == before
        if page != before:
            (renamed if is_same_image else changed).append(page)
    return _Plan(changed=changed, renamed=renamed, gone=gone, num_unchanged=num_unchanged, num_blank=num_blank)


def _embed(
    index: PageIndex, embedder: AnyEmbedder, pages: Sequence[IndexedPage], on_progress: Callable[[int, int], None]
) -> None:
    """Embed pages and add them, in calls of a bearable length, and save now and then."""
    num_embedded = 0
    at_once = min(_FIRST_PAGES, _PAGES_AT_ONCE)
    last_save, until_save_seconds = time.monotonic(), _SAVE_SECONDS
    while num_embedded < len(pages):
        batch = pages[num_embedded : num_embedded + at_once]
        call_begin = time.monotonic()
        add_pages(index, embedder, batch)
        num_embedded += len(batch)
        call_end = time.monotonic()
        at_once = max(1, at_once // 2) if call_end - call_begin > _CALL_SECONDS else min(_PAGES_AT_ONCE, 2 * at_once)
        on_progress(num_embedded, len(pages))
        if call_end - last_save > until_save_seconds and num_embedded < len(pages):
            index.save()
            last_save = time.monotonic()
            until_save_seconds = max(_SAVE_SECONDS, (last_save - call_end) / _SAVE_SHARE)


def _indexed(stored: StoredPage, date: str) -> IndexedPage:
    return IndexedPage(
        page_id=stored.page_id,
        document=stored.document,
        page_number=stored.page_number,
        folder=stored.document.rpartition("/")[0],
        date=date,
        title=stored.title or "",
        image_path=str(stored.image_path),
        sha256=stored.sha256,
    )
