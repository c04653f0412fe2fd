"""Where a page's bytes come from: an image file, or a cell of a table. What they say is ``images``' affair."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rsgrpo.data.media_paths import likely_cause
from rsgrpo.data.tables import TableError, media_view, open_table
from rsgrpo.errors import RsgrpoError, shown
from rsgrpo.io.special_files import open_regular, special_kind
from rsgrpo.types import ImageRef

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_LFS_POINTER = b"version https://git-lfs"


class ImageError(RsgrpoError, ValueError):
    """A page cannot be read; the message names the image and the way out."""


def image_bytes(ref: ImageRef) -> bytes:
    """A page's image file, as it lies on the disk or in its table.

    Args:
        ref: the image, which says where it lies.

    Raises:
        ImageError: the image is missing or cannot be read.
    """
    with _naming(ref), _open(ref) as file:
        data = file.readall()
    _refuse_pointer(ref, data)
    return data


@contextmanager
def image_file(ref: ImageRef) -> Iterator[io.RawIOBase]:
    """A page's image file, open and without a buffer, for those who need a part of it.

    Args:
        ref: the image, which says where it lies.

    Raises:
        ImageError: the image is missing or cannot be read.
    """
    with _naming(ref):
        file = _open(ref)
    with file:
        with _naming(ref):
            head = file.read(len(_LFS_POINTER)) or b""
            file.seek(0)
        _refuse_pointer(ref, head)
        yield file


@contextmanager
def _naming(ref: ImageRef) -> Iterator[None]:
    """Raise whatever goes wrong while a page's file is read as an ImageError with the page's name and the way out."""
    name = shown(ref.path, 80)
    try:
        yield
    except TableError as error:
        raise ImageError(f"image {name!r}: {error}") from error
    except (FileNotFoundError, NotADirectoryError) as error:
        cause = likely_cause(ref.file, ("",)) if ref.file else ""
        raise ImageError(
            f"image {name!r} does not exist at {shown(ref.file)}; "
            + (
                cause
                or "unpack images.parquet there or leave it beside the data file, or set data.image_root to the folder "
                "that image paths start from"
            )
        ) from error
    except IsADirectoryError as error:
        raise ImageError(f"image {name!r} is a folder, {shown(ref.file)}; name the image file in it") from error
    except (OSError, ValueError) as error:
        kind = special_kind(ref.file) if ref.file else ""
        if kind:
            raise ImageError(f"image {name!r} is no file: {shown(ref.file)} is {kind}; name the image file") from error
        words = error.strerror if isinstance(error, OSError) else error
        raise ImageError(f"image {name!r} cannot be read from {shown(ref.file)}: {words}; make it readable") from error


def _refuse_pointer(ref: ImageRef, head: bytes) -> None:
    if head.startswith(_LFS_POINTER):
        raise ImageError(
            f"image {shown(ref.path, 80)!r} ({image_place(ref)}) is a Git LFS pointer, not the image: run git lfs pull"
        )


def image_stamp(ref: ImageRef) -> tuple[int, int] | None:
    """Size in bytes, and time of the last change in ns, of the file that a page lies in; None: it cannot be told."""
    try:
        status = Path(ref.parquet_file or ref.file).stat()
    except (OSError, ValueError):
        return None
    return status.st_size, status.st_mtime_ns


def _open(ref: ImageRef) -> io.RawIOBase:
    """Open an image's bytes; everything that reads an image goes through here."""
    if ref.parquet_file:
        return _ViewFile(media_view(ref.parquet_file, ref.parquet_column, ref.parquet_row, ref.parquet_index))
    return open_regular(ref.file)


class _ViewFile(io.RawIOBase):
    """Bytes in memory as a file, without a copy."""

    def __init__(self, view: memoryview) -> None:
        self._view = view.cast("B")
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: len(self._view)}[whence]
        self._position = max(0, start + offset)
        return self._position

    def readinto(self, buffer: WriteableBuffer) -> int:
        target = memoryview(buffer).cast("B")
        found = self._view[self._position : self._position + len(target)]
        target[: len(found)] = found
        self._position += len(found)
        return len(found)

    def readall(self) -> bytes:
        rest = bytes(self._view[self._position :])
        self._position += len(rest)
        return rest


def table_rows(parquet_file: Path) -> dict[str, int]:
    """Row of every image of an ``images.parquet``, by the path that the data set uses.

    Args:
        parquet_file: a table with the columns ``image`` (struct with ``bytes``) and ``path``.

    Raises:
        ImageError: the table cannot be read, lacks a column, or names one path twice.
    """
    try:
        table = open_table(str(parquet_file))
    except TableError as error:
        raise ImageError(str(error)) from error
    missing = [name for name in ("image", "path") if name not in table.column_names]
    if missing:
        raise ImageError(
            f"{shown(parquet_file)} has the columns {shown(', '.join(table.column_names), 120)}, but not "
            f"{', '.join(missing)}; images.parquet needs image (struct with bytes) and path"
        )
    paths = table.column("path").to_pylist()
    rows = {path: row for row, path in enumerate(paths)}
    if len(rows) != len(paths):
        twice = next(path for row, path in enumerate(paths) if rows[path] != row)
        raise ImageError(
            f"{shown(parquet_file)} holds the image {shown(twice, 120)!r} twice; every path must stand there once"
        )
    return rows


def image_place(ref: ImageRef) -> str:
    """Where a page lies, in words for people."""
    return f"row {ref.parquet_row} of {shown(ref.parquet_file)}" if ref.parquet_file else shown(ref.file)
