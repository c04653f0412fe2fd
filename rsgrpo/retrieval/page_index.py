"""What an index of pages does, wherever it lies: add, remove, search with a filter, save.

    pages + their vectors -> add        question -> embedder -> vector -> search -> pages, best first

Equal scores are resolved in page order: by document, then page number, then id, whatever the order was in which pages
were added.
"""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from numpy.typing import NDArray

from rsgrpo.config.embedder import EmbedderConfig
from rsgrpo.errors import RsgrpoError, shown
from rsgrpo.io.ids import well_formed
from rsgrpo.io.natural_order import natural_key
from rsgrpo.retrieval.embedder import Embedder, EmbedderIdentity, PageImage
from rsgrpo.types import FloatArray, ImageRef

_SHOWN_ID = 80


class PageIndexError(RsgrpoError, ValueError):
    """An index cannot be opened, written or searched; the message names it and the way out."""


def _check_date(date: str, what: str) -> None:
    if not date:
        return
    try:
        is_date = datetime.date.fromisoformat(date).isoformat() == date
    except ValueError:
        is_date = False
    if not is_date:
        raise PageIndexError(f"{what} is {shown(date, _SHOWN_ID)!r}, which is no date; write YYYY-MM-DD")


@dataclass(frozen=True, kw_only=True, slots=True)
class IndexedPage:
    """What an index knows of a page beside its vector.

    Attributes:
        page_id: unique in the index; a page that is added under an id that is there replaces it.
        document: the file that it is a page of, as its folder holds it, such as ``manual.pdf``.
        page_number: in the document, from 1.
        folder: that the document lies in, with ``/``; empty where there is none.
        date: of the document, as ``YYYY-MM-DD``; empty where it is not known.
        title: of the page or its document, for people.
        image_path: where its image lies; empty where none is kept.
        sha256: of the image's file, in hexadecimal digits; empty where it is not known.
    """

    page_id: str
    document: str
    page_number: int
    folder: str = ""
    date: str = ""
    title: str = ""
    image_path: str = ""
    sha256: str = ""

    def __post_init__(self) -> None:
        if not self.page_id or not self.document:
            raise PageIndexError(
                f"a page needs an id and a document, got {shown(self.page_id, _SHOWN_ID)!r} and "
                f"{shown(self.document, _SHOWN_ID)!r}"
            )
        if self.page_number < 1:
            raise PageIndexError(
                f"page {shown(self.page_id, _SHOWN_ID)!r} has the number {self.page_number}; pages count from 1"
            )
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, str) and well_formed(value)[1]:
                raise PageIndexError(
                    f"page {shown(ascii(self.page_id), _SHOWN_ID)} has a {field.name} that is no UTF-8 text "
                    f"({shown(ascii(value), _SHOWN_ID)}); rename the file or folder"
                )
        _check_date(self.date, f"page {shown(self.page_id, _SHOWN_ID)!r}")

    @property
    def order(self) -> tuple[Any, ...]:
        """Sort key of page order."""
        return natural_key(self.document), self.page_number, self.page_id


@dataclass(frozen=True, kw_only=True, slots=True)
class PageFilter:
    """Which pages may be found; those that meet every condition.

    Attributes:
        documents: names of documents, any of which will do; empty: all.
        folders: folders, any of which will do, with all that lies below; empty: all.
        first_date: pages of this day, as ``YYYY-MM-DD``, or later; empty: any. Pages without a date meet no date.
        last_date: pages of this day or earlier; empty: any.

    Example:
        ``PageFilter(folders=("reports",), first_date="2026-01-01")``
    """

    documents: tuple[str, ...] = ()
    folders: tuple[str, ...] = ()
    first_date: str = ""
    last_date: str = ""

    def __post_init__(self) -> None:
        _check_date(self.first_date, "the filter's first date")
        _check_date(self.last_date, "the filter's last date")

    @property
    def is_empty(self) -> bool:
        """Whether every page meets it."""
        return not (self.documents or self.folders or self.first_date or self.last_date)


ALL_PAGES = PageFilter()


@dataclass(frozen=True, kw_only=True, slots=True)
class FoundPage:
    """A page that a search found.

    Attributes:
        page: what the index knows of it.
        score: inner product of its vector and the question's, the cosine of their angle.
        rank: from 1.
    """

    page: IndexedPage
    score: float
    rank: int


class PageIndex(Protocol):
    """Pages with their vectors, searched by vector."""

    @property
    def identity(self) -> EmbedderIdentity:
        """The embedder whose vectors it holds."""

    @property
    def embedder(self) -> EmbedderConfig | None:
        """Settings of that embedder; None: vectors were brought from elsewhere."""

    @property
    def name(self) -> str:
        """What messages call it, such as ``the index manuals.index``."""

    def __len__(self) -> int:
        """Number of pages."""

    def add(self, pages: Sequence[IndexedPage], vectors: NDArray[Any]) -> None:
        """Add pages; one whose id is there already is replaced.

        Args:
            pages: what to keep of them.
            vectors: [pages, dimension] of any float type, each of length 1.

        Raises:
            PageIndexError: two of the pages have one id, or the index was opened for reading.
            EmbeddingError: a vector is not finite, not of length 1, or of another dimension.
        """

    def remove(self, page_ids: Iterable[str]) -> int:
        """Take pages out.

        Args:
            page_ids: ids; those that are not there are passed over.

        Returns:
            How many were there.
        """

    def search(self, vectors: NDArray[Any], k: int, allowed: PageFilter = ALL_PAGES) -> list[list[FoundPage]]:
        """The best pages for each question.

        Args:
            vectors: [questions, dimension] of any float type, each of length 1.
            k: most pages a question, at least 1.
            allowed: which pages may be found.

        Returns:
            A list a question, best first; shorter than ``k`` where fewer pages are allowed.

        Raises:
            PageIndexError: ``k`` is below 1.
            EmbeddingError: a vector is not finite, not of length 1, or of another dimension.
        """

    def vectors(self, page_ids: Sequence[str]) -> FloatArray:
        """Vectors of pages, as they are kept.

        Args:
            page_ids: ids that are there.

        Returns:
            [pages, dimension] float32, in the order given.

        Raises:
            PageIndexError: an id is not there.
        """

    def pages(self, allowed: PageFilter = ALL_PAGES) -> list[IndexedPage]:
        """Pages without their vectors, in page order.

        Args:
            allowed: which.
        """

    def save(self) -> None:
        """Make what was added and removed last.

        Raises:
            PageIndexError: the disk is full, or there is no permission; what was saved before is still there.
        """

    def close(self) -> None:
        """Let others write; what was not saved is lost."""


def find_pages(
    index: PageIndex, embedder: Embedder, questions: Sequence[str], k: int, allowed: PageFilter = ALL_PAGES
) -> list[list[FoundPage]]:
    """The best pages for questions, embedded by the embedder that made the index.

    Args:
        index: to search.
        embedder: of the questions.
        questions: without an instruction.
        k: most pages a question.
        allowed: which pages may be found.

    Returns:
        As :meth:`PageIndex.search`.

    Raises:
        EmbedderMismatchError: another embedder made the index.
        EmbeddingError: a question is empty, or none of its characters is known to the model.
    """
    index.identity.check(embedder.identity, index.name)
    return index.search(embedder.embed_queries(questions), k, allowed) if questions else []


def add_pages(
    index: PageIndex, embedder: Embedder, pages: Sequence[IndexedPage], images: Sequence[PageImage] = ()
) -> None:
    """Embed pages and add them.

    Args:
        index: to add to.
        embedder: the one that made the index.
        pages: what to keep of them.
        images: of the pages, in the same order; empty: they lie at ``image_path``.

    Raises:
        EmbedderMismatchError: another embedder made the index.
        EmbeddingError: a page is too long for the model, or its vector is not finite.
        ImageError: a page's image cannot be read.
    """
    index.identity.check(embedder.identity, index.name)
    found = images or [ImageRef(path=page.image_path, file=page.image_path) for page in pages]
    if len(found) != len(pages):
        raise PageIndexError(f"got {len(found)} images for {len(pages)} pages; every page needs one")
    if pages:
        index.add(pages, embedder.embed_pages(found))


def ranked(found: Iterable[tuple[IndexedPage, float]], k: int) -> list[FoundPage]:
    """The best ``k`` pages in order: by score, equal ones in page order.

    Args:
        found: pages with their scores, with all that tie with the last.
        k: most pages.
    """
    best = sorted(found, key=lambda one: (-one[1], one[0].order))[:k]
    return [FoundPage(page=page, score=float(score), rank=rank) for rank, (page, score) in enumerate(best, start=1)]


def check_ids(pages: Sequence[IndexedPage]) -> None:
    """Refuse pages of one call that have one id: which of them was meant?

    Raises:
        PageIndexError: names the first such id.
    """
    seen: set[str] = set()
    for page in pages:
        if page.page_id in seen:
            raise PageIndexError(
                f"two of the pages to add have the id {shown(page.page_id, _SHOWN_ID)!r}; give each its own"
            )
        seen.add(page.page_id)


def not_there(page_id: str, name: str) -> PageIndexError:
    """The complaint about an id that no page has.

    Args:
        page_id: the id.
        name: of the index.
    """
    return PageIndexError(f"{name} has no page {shown(page_id, _SHOWN_ID)!r}; pages() lists those that it has")


def check_k(k: int) -> None:
    """Refuse a search for fewer than one page.

    Raises:
        PageIndexError: names ``k``.
    """
    if k < 1:
        raise PageIndexError(f"k={k} asks for no page; it must be at least 1")
