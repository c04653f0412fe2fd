"""Where a page's bytes come from: an image file, or a cell of a table. What they say is ``images``' affair."""

from __future__ import annotations

from pathlib import Path

from rsgrpo.errors import RsgrpoError, shown
from rsgrpo.media_paths import likely_cause
from rsgrpo.tables import TableError, media_bytes, open_table
from rsgrpo.types import ImageRef

_LFS_POINTER = b"version https://git-lfs"


class ImageError(RsgrpoError, ValueError):
    """A page cannot be read; the message names the image and the way out."""


def page_bytes(ref: ImageRef) -> bytes:
    """A page's image file, as it lies on the disk or in its table.

    Args:
        ref: where it lies.

    Raises:
        ImageError: it is missing or cannot be read.
    """
    if ref.parquet_file:
        try:
            return media_bytes(ref.parquet_file, ref.parquet_column, ref.parquet_row, ref.parquet_index)
        except TableError as error:
            raise ImageError(f"image {shown(ref.path, 80)!r}: {error}") from error
    name = shown(ref.path, 80)
    try:
        data = Path(ref.file).read_bytes()
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
        words = error.strerror if isinstance(error, OSError) else error
        raise ImageError(f"image {name!r} cannot be read from {shown(ref.file)}: {words}; make it readable") from error
    if data.startswith(_LFS_POINTER):
        raise ImageError(f"image {name!r} ({shown(ref.file)}) is a Git LFS pointer, not the image: run git lfs pull")
    return data


def table_rows(parquet_file: Path) -> dict[str, int]:
    """Row of every image of an ``images.parquet``, by the path that the data set uses.

    Args:
        parquet_file: table with the columns ``image`` (struct with ``bytes``) and ``path``.

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
    """Where a page lies, for people."""
    return f"row {ref.parquet_row} of {shown(ref.parquet_file)}" if ref.parquet_file else shown(ref.file)
