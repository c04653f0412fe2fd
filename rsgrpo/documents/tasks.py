"""What this process and its workers tell one another; pixels never pass between them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rsgrpo.documents.sources import FileStamp, Kind


@dataclass(frozen=True, kw_only=True, slots=True)
class Survey:
    """Find out what a document is.

    Attributes:
        key: of the document, by which answers are told apart.
        path: of its file.
        office_folder: where a PDF of an office file goes.
        seconds: that it may take.
        known_sha256: of the document that the store has under this name: with the same content nothing else is asked.
    """

    key: int
    path: Path
    office_folder: Path
    seconds: float
    known_sha256: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class RenderPages:
    """Render pages of a document, and store them.

    Attributes:
        key: of the document.
        path: of the PDF or image file.
        kind: how it is read.
        first: number of the first page, from 1 on.
        last: number of the last page.
    """

    key: int
    path: Path
    kind: Kind
    first: int
    last: int


Task = Survey | RenderPages


@dataclass(frozen=True, kw_only=True, slots=True)
class Ready:
    """A worker has started."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Surveyed:
    """What a document is.

    Attributes:
        sha256: of its file.
        stamp: of its file, before it was read.
        kind: how its pages are read.
        path: of the file to read: another one where an office file was converted.
        num_pages: at least 1; 0: its content is as before, and nothing else was looked at.
        outline: page number and title of every outline entry, in the order of pages; of a page's own in their order.
    """

    sha256: str
    stamp: FileStamp
    kind: Kind
    path: Path
    num_pages: int
    outline: tuple[tuple[int, str], ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredPage:
    """A page that was rendered and stored.

    Attributes:
        number: from 1 on.
        image: of its file, relative to the store's folder.
        sha256: of that file.
        num_bytes: of that file.
        is_new: whether the store did not have it yet.
        width: in pixels.
        height: likewise.
        text: of its text layer.
        blank: whether it has one colour only.
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


@dataclass(frozen=True, kw_only=True, slots=True)
class BadPage:
    """A page that cannot be rendered.

    Attributes:
        number: from 1 on.
        reason: why.
    """

    number: int
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class BadDocument:
    """A document that cannot be read.

    Attributes:
        reason: why.
    """

    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class NoRoom:
    """The store cannot be written.

    Attributes:
        reason: why.
    """

    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Done:
    """All pages of a :class:`RenderPages` have been reported."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Died:
    """The worker that had the task is gone; told by the pool.

    Attributes:
        reason: how it ended.
    """

    reason: str


Answer = Surveyed | StoredPage | BadPage | BadDocument | NoRoom | Done | Died
LAST_ANSWERS = (Surveyed, BadDocument, NoRoom, Done, Died)
"""After one of these a worker is free for the next task."""
