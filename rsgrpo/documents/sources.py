"""Which files are documents: named by the user, or found in folders."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rsgrpo.documents.records import DocumentError, Remark
from rsgrpo.documents.stored_images import PARTS, STORE_FILE
from rsgrpo.errors import shown
from rsgrpo.io.natural_order import natural_key
from rsgrpo.io.special_files import special_kind

Kind = Literal["pdf", "image", "office"]

PDF_SUFFIXES = frozenset({".pdf"})
IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp", ".bmp", ".gif", ".jp2"})
OFFICE_SUFFIXES = frozenset(
    {".doc", ".docx", ".odt", ".rtf", ".ppt", ".pptx", ".odp", ".xls", ".xlsx", ".ods", ".pps", ".ppsx"}
)
_PDF_MARK, _PDF_MARK_WITHIN = b"%PDF-", 1024  # other programs put something before it, and readers allow that


@dataclass(frozen=True, kw_only=True, slots=True)
class FileStamp:
    """What changes with a file's content, cheaply read.

    Attributes:
        num_bytes: its size.
        mtime_ns: time of its last change.
        ctime_ns: the same, which no program can set back.
        inode: another one where the file was replaced.
    """

    num_bytes: int
    mtime_ns: int
    ctime_ns: int
    inode: int

    @classmethod
    def of(cls, path: Path) -> FileStamp:
        """As the file is now.

        Raises:
            OSError: it is not there.
        """
        status = path.stat()
        return cls(
            num_bytes=status.st_size,
            mtime_ns=status.st_mtime_ns,
            ctime_ns=status.st_ctime_ns,
            inode=status.st_ino,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceFile:
    """A file that is a document.

    Attributes:
        document: its name in the store.
        path: absolute.
    """

    document: str
    path: Path


def find_documents(paths: Iterable[Path]) -> tuple[list[SourceFile], list[Remark]]:
    """The documents that a user means, in natural order for each path given.

    Of a folder these are the PDF, image and office files in it and below, by their suffix; not hidden ones, nor those
    of page stores. A file that is named itself is one whatever its suffix.

    Args:
        paths: files and folders.

    Returns:
        The documents, each once, and what cannot be one although it was meant: a pipe, a folder that may not be read,
        a second file of the same name.

    Raises:
        DocumentError: a path is not there, or there is no document at all.
    """
    given = [Path(path).expanduser() for path in paths]
    found: dict[str, SourceFile] = {}
    refused: list[Remark] = []
    for path in given:
        place = Path(os.path.abspath(path))  # noqa: PTH100  # links stay as they are: the name is the user's
        if place.is_dir():
            files = _files_below(place, refused)
        elif place.exists() or special_kind(place):
            files = iter([SourceFile(document=_name(place.name), path=place)])
        else:
            raise DocumentError(f"there is no file or folder {shown(path)}; check the path")
        for file in files:
            if kind := special_kind(file.path):
                refused.append(Remark(name=file.document, reason=f"it is {kind}, not a file"))
                continue
            former = found.setdefault(file.document, file)
            if former.path != file.path:
                refused.append(Remark(name=file.document, reason=same_name(file.path, former.path)))
    if not found and not refused:
        raise DocumentError(
            f"no PDF, image or office file in {', '.join(shown(path, 80) for path in given[:5]) or 'no paths at all'}"
        )
    return list(found.values()), refused


def same_name(path: Path, other: Path) -> str:
    """What to say of two files that would get one name.

    Args:
        path: of the one that cannot have it.
        other: of the one that has it.
    """
    return (
        f"{shown(path, 120)} would get the same name as {shown(other, 120)}; give the folder that holds both, so that "
        "their names differ"
    )


def _files_below(root: Path, refused: list[Remark]) -> Iterator[SourceFile]:
    """Documents of a folder, its own files first; links to folders are followed, but none twice."""
    seen: set[tuple[int, int]] = set()
    known = PDF_SUFFIXES | IMAGE_SUFFIXES | OFFICE_SUFFIXES

    def walk(folder: Path) -> Iterator[Path]:
        status = folder.stat()
        if (status.st_dev, status.st_ino) in seen:
            return
        seen.add((status.st_dev, status.st_ino))
        if (folder / STORE_FILE).is_file() and (folder / PARTS).is_dir():
            return  # whoever keeps the store beside the documents does not mean its images
        with os.scandir(folder) as listing:
            entries = sorted(
                (one for one in listing if not one.name.startswith(".")), key=lambda e: natural_key(e.name)
            )
        folders = []
        for entry in entries:
            if entry.is_dir():
                folders.append(folder / entry.name)
            elif Path(entry.name).suffix.lower() in known:
                yield folder / entry.name
        for inner in folders:
            try:
                yield from walk(inner)
            except OSError as error:
                words = f"the folder cannot be read ({error.strerror})"
                refused.append(Remark(name=_name(inner.relative_to(root).as_posix()), reason=words))

    try:
        for path in walk(root):
            yield SourceFile(document=_name(path.relative_to(root).as_posix()), path=path)
    except OSError as error:
        raise DocumentError(f"the folder {shown(root)} cannot be read ({error.strerror})") from error


def _name(name: str) -> str:
    """A name that UTF-8 can write, whatever bytes the file system has."""
    return name.encode("utf-8", "backslashreplace").decode()


def file_kind(path: Path) -> Kind:
    """How a document is read: by what its file begins with, office files by their suffix.

    Args:
        path: of the file.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        head = file.read(_PDF_MARK_WITHIN + len(_PDF_MARK))
    if _PDF_MARK in head:
        return "pdf"
    suffix = path.suffix.lower()
    return "pdf" if suffix in PDF_SUFFIXES else "office" if suffix in OFFICE_SUFFIXES else "image"
