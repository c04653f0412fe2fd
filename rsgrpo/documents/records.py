"""What goes from documents to whoever searches or reads their pages."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rsgrpo.errors import RsgrpoError


class StoreError(RsgrpoError):
    """A page store cannot be opened, read or written; the message names the file and the way out."""


class DocumentError(RsgrpoError):
    """A document or page cannot be read; the message says why, and what to do about it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Page:
    """One page of a document, rendered.

    Attributes:
        page_id: ``<document>#<page_number>``; the same as long as the document keeps its name.
        document: under which the user finds it: its path from the given folder, with ``/``; of a single file its name.
        page_number: from 1 on.
        sha256: of the stored image file, 64 hexadecimal digits; equal for pages that look the same.
        image_path: of the stored image file.
        width: of the stored image, in pixels.
        height: likewise.
        title: the nearest outline entry that starts on this page or before it; None: there is none.
        text: of the PDF's text layer; empty: it has none.
        blank: whether all its pixels have one colour.

    Example:
        Page 3 of ``manuals/plot.pdf`` has the ``page_id`` ``manuals/plot.pdf#3``.
    """

    page_id: str
    document: str
    page_number: int
    sha256: str
    image_path: Path
    width: int
    height: int
    title: str | None
    text: str
    blank: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Remark:
    """Something about one document or page that a user should know.

    Attributes:
        name: of the document, or the id of the page.
        reason: what about it.
    """

    name: str
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class IngestReport:
    """What adding or removing documents did.

    Attributes:
        added: documents that are new.
        unchanged: documents that were there already, as they are now.
        replaced: documents that were there with other content.
        removed: documents that are gone.
        refused: documents that cannot be read, and why; what the store had of them stays.
        left_out_pages: pages that could not be rendered, and why.
        duplicate_documents: documents with the same bytes as another one, and which.
        pages: of the documents that were added or replaced.
        duplicate_pages: of these, pages whose image the store had already.
        blank_pages: of these, the ids of those that have one colour only.
        damaged: documents of the store whose pages cannot be read any more, and were not added again.
        seconds: that it took.
    """

    added: int = 0
    unchanged: int = 0
    replaced: int = 0
    removed: int = 0
    refused: tuple[Remark, ...] = ()
    left_out_pages: tuple[Remark, ...] = ()
    duplicate_documents: tuple[Remark, ...] = ()
    pages: int = 0
    duplicate_pages: int = 0
    blank_pages: tuple[str, ...] = ()
    damaged: tuple[Remark, ...] = ()
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class IngestProgress:
    """How far adding documents has come.

    Attributes:
        documents: that are done, refused ones included.
        documents_total: that have to be read; unchanged ones do not count.
        pages: that were rendered.
        share: of the work that is done, by the size of files, from 0 to 1.
        seconds: since it began.
    """

    documents: int
    documents_total: int
    pages: int
    share: float
    seconds: float

    @property
    def pages_per_second(self) -> float:
        """Of all workers together."""
        return self.pages / self.seconds if self.seconds else 0.0

    @property
    def seconds_left(self) -> float | None:
        """That the rest takes if it goes on like this; None: nothing is done yet."""
        return self.seconds * (1.0 - self.share) / self.share if self.share else None


def page_id(document: str, page_number: int) -> str:
    """The id of a page.

    Args:
        document: its name.
        page_number: from 1 on.
    """
    return f"{document}#{page_number}"


def split_page_id(page_id: str) -> tuple[str, int]:
    """Document and page number that an id names.

    Args:
        page_id: a document's name may hold ``#`` itself.

    Raises:
        StoreError: it is no such id.

    Example:
        ``split_page_id("C#/notes.pdf#12") == ("C#/notes.pdf", 12)``
    """
    document, mark, number = page_id.rpartition("#")
    if not mark or not document or not (number.isascii() and number.isdigit()):
        raise StoreError(f"{page_id!r} is no page id; one looks like manuals/plot.pdf#3")
    return document, int(number)
