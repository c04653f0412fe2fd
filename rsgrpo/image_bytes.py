"""Where a page's bytes come from: an image file, or a cell of a parquet table. What they say is ``images``' affair."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from rsgrpo.errors import RsgrpoError
from rsgrpo.types import ImageRef

if TYPE_CHECKING:
    from datasets import Dataset

_OPEN_TABLES = 8  # memory-mapped: an open table costs address space, hardly any memory


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
        return _table_bytes(ref)
    try:
        return Path(ref.file).read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ImageError(
            f"image {ref.path!r} does not exist at {ref.file}; unpack images.parquet there or leave it beside the data "
            "file, or set data.image_root to the folder that image paths start from"
        ) from error
    except OSError as error:
        raise ImageError(f"image {ref.path!r} cannot be read from {ref.file}: {error}; make it readable") from error


def _table_bytes(ref: ImageRef) -> bytes:
    table = _open_table(ref.parquet_file)
    if not 0 <= ref.parquet_row < len(table):
        raise ImageError(
            f"image {ref.path!r} should be row {ref.parquet_row} of {ref.parquet_file}, which has {len(table)} rows; "
            "the table was changed after the data set was read: start again"
        )
    value = table[ref.parquet_row]["image"]
    data = value.get("bytes") if isinstance(value, dict) else value
    if not isinstance(data, bytes) or not data:
        raise ImageError(
            f"image {ref.path!r} (row {ref.parquet_row} of {ref.parquet_file}) holds no bytes; write the table with "
            "the image files' content in image.bytes"
        )
    return data


@lru_cache(maxsize=_OPEN_TABLES)
def _open_table(parquet_file: str) -> Dataset:
    """The table, memory-mapped by ``datasets`` (which keeps an Arrow copy in its cache): any row is cheap."""
    import datasets  # here, because it takes a second and data sets of files never need it

    progress_was_shown = datasets.are_progress_bars_disabled() is False
    datasets.disable_progress_bars()
    try:
        table = datasets.load_dataset("parquet", data_files=parquet_file, split="train")
    except FileNotFoundError as error:
        raise ImageError(f"{parquet_file} does not exist; put images.parquet back beside the data file") from error
    except (OSError, ValueError, datasets.exceptions.DatasetGenerationError) as error:
        raise ImageError(f"{parquet_file} cannot be read as a parquet table: {error}; download it again") from error
    finally:
        if progress_was_shown:
            datasets.enable_progress_bars()
    missing = [name for name in ("image", "path") if name not in table.column_names]
    if missing:
        raise ImageError(
            f"{parquet_file} has the columns {', '.join(table.column_names)}, but not {', '.join(missing)}; "
            "images.parquet needs image (struct with bytes) and path"
        )
    if isinstance(table.features["image"], datasets.Image):
        table = table.cast_column("image", datasets.Image(decode=False))
    return table


def table_rows(parquet_file: Path) -> dict[str, int]:
    """Row of every image of an ``images.parquet``, by the path that the data set uses.

    Args:
        parquet_file: table with the columns ``image`` (struct with ``bytes``) and ``path``.

    Raises:
        ImageError: the table cannot be read, lacks a column, or names one path twice.
    """
    paths = list(_open_table(str(parquet_file))["path"])
    rows = {path: row for row, path in enumerate(paths)}
    if len(rows) != len(paths):
        twice = next(path for row, path in enumerate(paths) if rows[path] != row)
        raise ImageError(f"{parquet_file} holds the image {twice!r} twice; every path must stand there once")
    return rows


def image_place(ref: ImageRef) -> str:
    """Where a page lies, for people."""
    return f"row {ref.parquet_row} of {ref.parquet_file}" if ref.parquet_file else ref.file
