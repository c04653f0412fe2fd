"""The interface of an index of pages, wherever it lies: add, remove, search with a filter, save.

    pages + their vectors -> add        question -> embedder -> vector -> search -> pages, best first

Pages of equal score come in page order: by document, then page number, then id, whatever the order was in which they
were added.
"""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from rsgrpo.config.embedder import EmbedderConfig
from rsgrpo.errors import RsgrpoError, shown
from rsgrpo.io.ids import well_formed
from rsgrpo.io.natural_order import natural_key
from rsgrpo.retrieval.embedders.embedder import AnyEmbedder, EmbedderIdentity, ItemVectors, PageImage
from rsgrpo.types import ImageRef

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
    """All that an index knows of a page beside its vector.

    Attributes:
        page_id: the id of the page, unique in the index; a page that is added under an id that is there replaces the
            page of that id.
        document: the file that it is a page of, as its folder holds it, such as ``manual.pdf``.
        page_number: the number of the page in the document, from 1.
        folder: the folder that the document lies in, with ``/``; empty where there is none.
        date: the date of the document, as ``YYYY-MM-DD``; empty where it is not known.
        title: the title of the page or its document, for people; empty where there is none.
        image_path: the path of the page's image file; empty where none is kept.
        sha256: the SHA-256 of the image file, in hexadecimal digits; empty where it is not known.
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
        """The key by which pages are sorted into page order."""
        return natural_key(self.document), self.page_number, self.page_id


@dataclass(frozen=True, kw_only=True, slots=True)
class PageFilter:
    """The conditions that a page must meet, all of them, to be found.

    Attributes:
        documents: the documents whose pages may be found, by name; empty: all documents.
        folders: the folders whose pages may be found, with all folders below them, such as ``reports/2026``; a slash
            at the end changes nothing; empty: all folders.
        first_date: the earliest date that a page may have, as ``YYYY-MM-DD``; empty: any. With a first or last date,
            pages without a date are not found.
        last_date: the latest date that a page may have, as ``YYYY-MM-DD``; empty: any.

    Example:
        ``PageFilter(folders=("reports",), first_date="2026-01-01")``
    """

    documents: tuple[str, ...] = ()
    folders: tuple[str, ...] = ()
    first_date: str = ""
    last_date: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "folders", tuple(folder.rstrip("/") for folder in self.folders))
        _check_date(self.first_date, "the filter's first date")
        _check_date(self.last_date, "the filter's last date")

    @property
    def is_empty(self) -> bool:
        """Whether there is no condition, so that every page may be found."""
        return not (self.documents or self.folders or self.first_date or self.last_date)


ALL_PAGES = PageFilter()


@dataclass(frozen=True, kw_only=True, slots=True)
class FoundPage:
    """A page that a search found.

    Attributes:
        page: the page, as the index knows it.
        score: the inner product of its vector and the question's, which is the cosine of their angle; of a
            multi-vector embedder the sum of each of the question's vectors' best inner product (MaxSim).
        rank: the place of the page among those that were found, from 1.
    """

    page: IndexedPage
    score: float
    rank: int


class PageIndex(Protocol):
    """Pages with their vectors, which are searched by the vectors of questions."""

    @property
    def identity(self) -> EmbedderIdentity:
        """The identity of the embedder whose vectors the index holds."""

    @property
    def embedder(self) -> EmbedderConfig | None:
        """The settings of that embedder; None: vectors were brought from elsewhere."""

    @property
    def name(self) -> str:
        """The name that messages call the index by, such as ``the index manuals.index``."""

    def __len__(self) -> int:
        """Count the pages."""

    def add(self, pages: Sequence[IndexedPage], vectors: ItemVectors) -> None:
        """Add pages; they replace pages of the same id that are there already.

        Args:
            pages: the pages to add.
            vectors: the vector of each page, [pages, dimension] of any float type, each of length 1; of a multi-vector
                embedder for each page [vectors, dimension].

        Raises:
            PageIndexError: two of the pages have the same id, or the index was opened for reading.
            EmbeddingError: a vector is not finite, not of length 1, or of another dimension, or a page has none.
        """

    def remove(self, page_ids: Iterable[str]) -> int:
        """Take pages out.

        Args:
            page_ids: the ids of the pages; ids that are not there are passed over.

        Returns:
            The number of pages that were there and were taken out.
        """

    def search(self, vectors: ItemVectors, k: int, allowed: PageFilter = ALL_PAGES) -> list[list[FoundPage]]:
        """Find the best pages for each question.

        Args:
            vectors: the vectors of the questions, [questions, dimension] of any float type, each of length 1; of a
                multi-vector embedder for each question [vectors, dimension].
            k: the largest number of pages for each question, at least 1.
            allowed: the conditions that a page must meet to be found.

        Returns:
            One list of pages for each question, best first; shorter than ``k`` where fewer pages are allowed.

        Raises:
            PageIndexError: ``k`` is below 1.
            EmbeddingError: a vector is not finite, not of length 1, or of another dimension.
        """

    def vectors(self, page_ids: Sequence[str]) -> ItemVectors:
        """Look up the vectors of pages, as they are kept.

        Args:
            page_ids: the ids of the pages, all of which must be in the index.

        Returns:
            The vectors, [pages, dimension] float32, in the order of the ids; of a multi-vector embedder for each page
            [vectors, dimension].

        Raises:
            PageIndexError: an id is not there.
        """

    def pages(self, allowed: PageFilter = ALL_PAGES) -> list[IndexedPage]:
        """List pages without their vectors, in page order.

        Args:
            allowed: the conditions that a page must meet to be listed.

        Returns:
            The pages that meet them.
        """

    def save(self) -> None:
        """Write what was added and removed, so that it is there when the index is opened again.

        Raises:
            PageIndexError: the disk is full, or there is no permission; what was saved before is still there.
        """

    def close(self) -> None:
        """Close the index, so that other processes may write; what was not saved is lost."""


def find_pages(
    index: PageIndex, embedder: AnyEmbedder, questions: Sequence[str], k: int, allowed: PageFilter = ALL_PAGES
) -> list[list[FoundPage]]:
    """Embed questions with the embedder that made the index, and find the best pages for each of them.

    Args:
        index: the index to search.
        embedder: the embedder that turns the questions into vectors; it must be the one that made the index.
        questions: the questions, without an instruction.
        k: the largest number of pages for each question, at least 1.
        allowed: the conditions that a page must meet to be found.

    Returns:
        One list of pages for each question, best first; shorter than ``k`` where fewer pages are allowed.

    Raises:
        EmbedderMismatchError: another embedder made the index.
        EmbeddingError: a question is empty, or none of its characters is known to the model.
    """
    index.identity.check(embedder.identity, index.name)
    return index.search(embedder.embed_queries(questions), k, allowed) if questions else []


def add_pages(
    index: PageIndex, embedder: AnyEmbedder, pages: Sequence[IndexedPage], images: Sequence[PageImage] = ()
) -> None:
    """Embed pages and add them.

    Args:
        index: the index to add the pages to.
        embedder: the embedder that turns the pages into vectors; it must be the one that made the index.
        pages: the pages to add.
        images: the images of the pages, in the same order; empty: each is read from the page's ``image_path``.

    Raises:
        EmbedderMismatchError: another embedder made the index.
        EmbeddingError: a page is too long for the model, or its vector is not finite.
        ImageError: a page's image cannot be read.
        PageIndexError: the numbers of images and pages differ, two of the pages have the same id, or the index was
            opened for reading.
    """
    index.identity.check(embedder.identity, index.name)
    found = images or [ImageRef(path=page.image_path, file=page.image_path) for page in pages]
    if len(found) != len(pages):
        raise PageIndexError(f"got {len(found)} images for {len(pages)} pages; every page needs one")
    if pages:
        index.add(pages, embedder.embed_pages(found))


def ranked(found: Iterable[tuple[IndexedPage, float]], k: int) -> list[FoundPage]:
    """Sort pages by falling score, equal ones in page order, and keep the best ``k``.

    Args:
        found: pairs of a page and its score, with all pages that tie with the last one.
        k: the largest number of pages to keep.

    Returns:
        At most ``k`` pages with their ranks, best first.
    """
    best = sorted(found, key=lambda scored: (-scored[1], scored[0].order))[:k]
    return [FoundPage(page=page, score=float(score), rank=rank) for rank, (page, score) in enumerate(best, start=1)]


def check_ids(pages: Sequence[IndexedPage]) -> None:
    """Refuse pages to add of which two have the same id.

    Raises:
        PageIndexError: two pages have the same id; the message names the first such id.
    """
    seen: set[str] = set()
    for page in pages:
        if page.page_id in seen:
            raise PageIndexError(
                f"two of the pages to add have the id {shown(page.page_id, _SHOWN_ID)!r}; give each its own"
            )
        seen.add(page.page_id)


def not_there(page_id: str, name: str) -> PageIndexError:
    """Make the error for an id that no page has.

    Args:
        page_id: the id that was asked for.
        name: the name that messages call the index by.

    Returns:
        The error, to be raised by the caller.
    """
    return PageIndexError(f"{name} has no page {shown(page_id, _SHOWN_ID)!r}; pages() lists those that it has")


def check_k(k: int) -> None:
    """Refuse a search for fewer than one page.

    Raises:
        PageIndexError: ``k`` is below 1.
    """
    if k < 1:
        raise PageIndexError(f"k={k} asks for no page; it must be at least 1")
