"""Finding documents: the files that the user names, and those in the folders that the user names."""

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
    """Numbers that differ after a file's content has changed, and that can be read without reading the file.

    Attributes:
        num_bytes: the size of the file in bytes.
        mtime_ns: the time of the last change of the content, in nanoseconds since 1970; programs can set it back.
        ctime_ns: the time of the last change of the file, in nanoseconds since 1970; programs cannot set it back.
        inode: the number of the file in its file system; a file that replaces it has another one.
    """

    num_bytes: int
    mtime_ns: int
    ctime_ns: int
    inode: int

    @classmethod
    def of(cls, path: Path) -> FileStamp:
        """Read the stamp of a file as it is now.

        Args:
            path: the path of the file.

        Raises:
            OSError: the file does not exist, or its folder may not be read.
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
        document: the name that the document gets in the store.
        path: the absolute path of the file.
    """

    document: str
    path: Path


def find_documents(paths: Iterable[Path]) -> tuple[list[SourceFile], list[Remark]]:
    """Find the documents among files and folders, in natural order for each given path.

    In a folder these are the PDF, image and office files, by their suffix, in it and in its subfolders; hidden files
    and page stores are passed over. A file that is given itself is a document whatever its suffix.

    Args:
        paths: the paths of the files and folders.

    Returns:
        The documents, each once, and a remark for everything that was given but cannot be a document: a pipe, a folder
        that may not be read, a second file of the same name.

    Raises:
        DocumentError: a path does not exist, or there is no document at all.
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
    """Explain that two files would get the same name in a store, and what to do about it.

    Args:
        path: the path of the file that cannot have the name.
        other: the path of the file that has the name already.
    """
    return (
        f"{shown(path, 120)} would get the same name as {shown(other, 120)}; give the folder that holds both, so that "
        "their names differ"
    )


def _files_below(root: Path, refused: list[Remark]) -> Iterator[SourceFile]:
    """Find the documents of a folder, its own files first; links to folders are followed, each folder only once."""
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
                (entry for entry in listing if not entry.name.startswith(".")),
                key=lambda entry: natural_key(entry.name),
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
    """Replace what UTF-8 cannot encode in the name of a file by escapes."""
    return name.encode("utf-8", "backslashreplace").decode()


def file_kind(path: Path) -> Kind:
    """Decide how a document is read: by the first bytes of its file, or if they are not those of a PDF, by its suffix.

    Args:
        path: the path of the file.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        head = file.read(_PDF_MARK_WITHIN + len(_PDF_MARK))
    if _PDF_MARK in head:
        return "pdf"
    suffix = path.suffix.lower()
    return "pdf" if suffix in PDF_SUFFIXES else "office" if suffix in OFFICE_SUFFIXES else "image"
