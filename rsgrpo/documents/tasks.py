"""The messages between the process that adds documents and its workers; pixels are never sent."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rsgrpo.documents.records import TextOrigin
from rsgrpo.documents.sources import FileStamp, Kind


@dataclass(frozen=True, kw_only=True, slots=True)
class Survey:
    """The task to find out the hash, kind, number of pages and outline of a document.

    Attributes:
        key: the number of the document in this run, by which answers are assigned to it.
        path: the path of the document's file.
        office_folder: the folder in which the PDF is made if the document is an office file.
        seconds: the longest time that the task may take, in seconds.
        known_sha256: the SHA-256 that the stored document of this name had; if the file still has it, nothing else is
            looked at. Empty: the file is always looked at.
    """

    key: int
    path: Path
    office_folder: Path
    seconds: float
    known_sha256: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class RenderPages:
    """The task to render pages of a document and to store them.

    Attributes:
        key: the number of the document in this run.
        path: the path of the PDF or image file.
        kind: the kind of the file, which says how it is read.
        first: the number of the first page to render, from 1 on.
        last: the number of the last page to render.
    """

    key: int
    path: Path
    kind: Kind
    first: int
    last: int


Task = Survey | RenderPages


@dataclass(frozen=True, kw_only=True, slots=True)
class Ready:
    """The message that a worker has started and takes tasks."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Surveyed:
    """The answer to a :class:`Survey`.

    Attributes:
        sha256: the SHA-256 of the document's file, 64 hexadecimal digits.
        stamp: the size, times and number of the document's file before it was read.
        kind: the kind of the file at ``path``, which says how its pages are read.
        path: the path of the file to read: that of the document, or of the PDF that an office file was converted to.
        num_pages: the number of pages, at least 1; 0: the file has the known SHA-256, and nothing else was looked at.
        outline: the page number, from 1 on, and the title of every outline entry, in the order of pages; entries of the
            same page are in the order of the outline.
    """

    sha256: str
    stamp: FileStamp
    kind: Kind
    path: Path
    num_pages: int
    outline: tuple[tuple[int, str], ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredPage:
    """The answer that a page was rendered and stored.

    Attributes:
        number: the number of the page, from 1 on.
        image: the path of the image file, relative to the store's folder.
        sha256: the SHA-256 of the image file, 64 hexadecimal digits.
        num_bytes: the size of the image file in bytes.
        is_new: whether the store did not have the image file before.
        width: the width of the image in pixels.
        height: the height of the image in pixels.
        text: the text of the page's text layer, or what OCR read; empty: there is none.
        blank: whether all pixels of the page have the same colour.
        text_origin: where the text is from.
        problem: why OCR could not read the page; empty: it did, or was not asked.
    """

    number: int
    image: str
    sha256: str
    num_bytes: int
    is_new: bool
    width: int
    height: int
    text: str
    blank: bool
    text_origin: TextOrigin = "none"
    problem: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class BadPage:
    """The answer that a page cannot be rendered.

    Attributes:
        number: the number of the page, from 1 on.
        reason: why the page cannot be rendered.
    """

    number: int
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class BadDocument:
    """The answer that a document cannot be read.

    Attributes:
        reason: why the document cannot be read.
    """

    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class NoRoom:
    """The answer that the store cannot be written.

    Attributes:
        reason: the operating system's message.
    """

    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Done:
    """The answer that all pages of a :class:`RenderPages` have been reported."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Died:
    """The answer, given by the pool, that the worker died before it finished the task.

    Attributes:
        reason: how the worker ended.
    """

    reason: str


Answer = Surveyed | StoredPage | BadPage | BadDocument | NoRoom | Done | Died
LAST_ANSWERS = (Surveyed, BadDocument, NoRoom, Done, Died)
"""The answers that end a task, after which the worker is free for the next one."""
