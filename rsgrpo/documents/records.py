"""The records and errors of page stores that other packages use: pages, reports, progress."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rsgrpo.errors import RsgrpoError
from rsgrpo.types import Box

TextOrigin = Literal["text_layer", "ocr", "none"]
"""Where the text of a page is from: the PDF's text layer, OCR (which may have read nothing), or nowhere, as the page
has no text layer and OCR was not asked."""


class StoreError(RsgrpoError):
    """A page store cannot be opened, read or written; the message names the file and the way out."""


class DocumentError(RsgrpoError):
    """A document or page cannot be read; the message says why, and what to do about it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Page:
    """One page of a document, rendered.

    Attributes:
        page_id: the id ``<document>#<page_number>``; it stays the same as long as the document keeps its name.
        document: the name of the document: its path relative to the folder that was added, with ``/`` between folders;
            for a file that was added itself, the file's name.
        page_number: the number of the page in the document, from 1 on.
        sha256: the SHA-256 of the stored image file, 64 hexadecimal digits; equal for pages that look the same.
        image_path: the path of the stored image file.
        width: the width of the stored image, in pixels.
        height: the height of the stored image, in pixels.
        title: the title of the nearest outline entry that starts on this page or before it; None: there is none.
        text: the text of the PDF's text layer, or what OCR read; empty: there is none.
        blank: whether all pixels of the page have the same colour.
        text_origin: where the text is from.

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
    text_origin: TextOrigin


@dataclass(frozen=True, kw_only=True, slots=True)
class PlacedWord:
    """A word of a page's text layer, and where it stands.

    Attributes:
        text: the word, with the signs that touch it.
        box: its place on the page as it is rendered.
    """

    text: str
    box: Box


@dataclass(frozen=True, kw_only=True, slots=True)
class Remark:
    """Something about one document or page that a user should know.

    Attributes:
        name: the name of the document, or the id of the page.
        reason: what the user should know about it, without its name.
    """

    name: str
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class IngestReport:
    """What adding or removing documents changed in a store.

    Attributes:
        added: the number of documents that are new in the store.
        unchanged: the number of documents that the store had already with the same content.
        replaced: the number of documents that the store had with other content, with damaged or missing images, or
            with pages that OCR had not read and was to read now.
        removed: the number of documents that were removed.
        refused: the documents that cannot be read, and why; their former pages stay in the store.
        left_out_pages: the pages that could not be rendered, and why.
        duplicate_documents: the documents that have the same bytes as another document, and which one.
        pages: the number of pages of the documents that were added or replaced.
        duplicate_pages: how many of these pages have an image that the store had already.
        blank_pages: the ids of those of these pages that have a single colour.
        ocr_pages: how many of these pages have a text that OCR read, now or before.
        unread_pages: the pages that OCR could not read, and why; they are in the store without a text.
        damaged: the documents whose part in the store is damaged and which were not added again.
        seconds: the time that the call took, in seconds.
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
    ocr_pages: int = 0
    unread_pages: tuple[Remark, ...] = ()
    damaged: tuple[Remark, ...] = ()
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class IngestProgress:
    """How far adding documents has come.

    Attributes:
        documents: the number of documents that are done, including those that cannot be read.
        documents_total: the number of documents that have to be read; files with unchanged size and time do not count.
        pages: the number of pages that were rendered so far.
        share: the share of the work that is done, measured by the sizes of the files, from 0 to 1.
        seconds: the time since the beginning, in seconds.
    """

    documents: int
    documents_total: int
    pages: int
    share: float
    seconds: float

    @property
    def pages_per_second(self) -> float:
        """Pages that all workers together have rendered per second; 0 at the beginning."""
        return self.pages / self.seconds if self.seconds else 0.0

    @property
    def seconds_left(self) -> float | None:
        """Seconds that the rest takes at the speed so far; None: nothing is done yet."""
        return self.seconds * (1.0 - self.share) / self.share if self.share else None


def page_id(document: str, page_number: int) -> str:
    """Make the id of a page.

    Args:
        document: the name of the document.
        page_number: the number of the page, from 1 on.

    Example:
        ``page_id("manuals/plot.pdf", 3) == "manuals/plot.pdf#3"``
    """
    return f"{document}#{page_number}"


def split_page_id(page_id: str) -> tuple[str, int]:
    """Split the id of a page into the document's name and the page number.

    Args:
        page_id: the id of a page; the document's name in it may contain ``#`` itself.

    Raises:
        StoreError: the text is not the id of a page.

    Example:
        ``split_page_id("C#/notes.pdf#12") == ("C#/notes.pdf", 12)``
    """
    document, mark, number = page_id.rpartition("#")
    if not mark or not document or not (number.isascii() and number.isdigit()):
        raise StoreError(f"{page_id!r} is no page id; one looks like manuals/plot.pdf#3")
    return document, int(number)
