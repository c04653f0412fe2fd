"""Rows of parquet and Arrow tables; cells that hold a media file's bytes come as references, not as bytes.

Cells with media are ``binary`` columns whose values begin as an image or video does, ``struct<bytes, path>`` (the
``Image`` and ``Video`` columns of ``datasets``), and lists of either.
"""

from __future__ import annotations

import glob
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from rsgrpo.data.inline_media import media_suffix
from rsgrpo.errors import RsgrpoError, shown
from rsgrpo.types import ImageRef

TABLE_SUFFIXES = (".parquet", ".arrow")

_OPEN_TABLES = 8  # memory-mapped: an open table costs address space, hardly any memory
_BATCH_ROWS = 256
_HEAD_BYTES = 64
_NAME_CHARACTERS = 120  # of a path within a table, as messages show it
_OPENING = threading.Lock()  # pages are read by several threads, but `datasets` and its progress bars are made for one


class TableError(RsgrpoError, ValueError):
    """A table cannot be read; the message names it and the way out."""


def table_rows(file: Path, start: int = 0) -> Iterator[dict[str, Any]]:
    """The rows of a table, one after the other, in constant memory.

    Args:
        file: the table: parquet, or Arrow as ``datasets`` saves it.
        start: row to start with.

    Yields:
        The columns of each row by name. A cell with a media file's bytes is an :class:`ImageRef` (or a list of them);
        one whose bytes are null is the path beside them, or None.

    Raises:
        TableError: the file is no such table.
    """
    if file.suffix.lower() == ".parquet":
        schema, num_rows = _parquet_head(file)
        if not num_rows:
            return  # which `datasets` takes for a broken file
        if not media_columns(schema):
            yield from _plain_rows(file, start)
            return
    table = open_table(str(file))
    columns = media_columns(table.schema)
    for first in range(start, table.num_rows, _BATCH_ROWS):
        yield from _batch(str(file), table, columns, first, _BATCH_ROWS)


def table_row(file: Path, row: int) -> dict[str, Any]:
    """One row, as :func:`table_rows` gives it.

    Args:
        file: the file of the table.
        row: the number of the row, from 0.

    Raises:
        TableError: the file is no such table, or has no such row.
    """
    table = open_table(str(file))
    if not 0 <= row < table.num_rows:
        raise TableError(
            f"{shown(file)} has {table.num_rows} rows, there is no row {row}; the table was changed after the data set "
            "was read: start again"
        )
    return _batch(str(file), table, media_columns(table.schema), row, 1)[0]


def media_columns(schema: Any) -> tuple[str, ...]:
    """Columns of an Arrow schema whose cells may hold the bytes of media files, or lists of them."""
    return tuple(field.name for field in schema if _holds_bytes(field.type))


def media_view(file: str, column: str, row: int, index: int) -> memoryview:
    """The bytes of a media file in a table, without a copy: what is not looked at is not read either.

    Args:
        file: the file of the table.
        column: the name of the column.
        row: the number of the row, from 0.
        index: the place in the cell's list; -1: the cell is no list.

    Raises:
        TableError: the table cannot be read, or has no such cell with bytes.
    """
    table = open_table(file)
    if column not in table.column_names:
        raise TableError(f"{shown(file)} has no column {shown(column, 60)!r}; it has {_names(table)}")
    if not 0 <= row < table.num_rows:
        raise TableError(
            f"row {row} of {shown(file)} is gone: it has {table.num_rows} rows; the table was changed after the data "
            "set was read: start again"
        )
    cell = table.column(column)[row]
    if index >= 0:
        items = cell.values if cell.is_valid else ()
        if index >= len(items):
            raise TableError(f"row {row} of {shown(file)} has no item {index} in {shown(column, 60)!r}: start again")
        cell = items[index]
    content = _content(cell)
    if content is None or not len(content):
        raise TableError(
            f"row {row} of {shown(file)} holds no bytes in {shown(column, 60)!r}; write the table with the files' "
            "content (struct with bytes and path, or binary)"
        )
    return content


def open_table(file: str) -> Any:
    """A ``pyarrow.Table`` of the file, memory-mapped (``datasets`` keeps an Arrow copy of parquet in its cache).

    Args:
        file: the absolute path of the table.

    Raises:
        TableError: the table cannot be read.
    """
    try:
        state = Path(file).stat()
    except OSError as error:
        raise TableError(f"{shown(file)} does not exist; put it back beside the data file") from error
    with _OPENING:
        return _mapped(file, state.st_size, state.st_mtime_ns)


@lru_cache(maxsize=_OPEN_TABLES)
def _mapped(file: str, num_bytes: int, changed_ns: int) -> Any:
    import pyarrow

    try:
        return _arrow_table(file) if file.lower().endswith(".arrow") else _parquet_copy(file)
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise TableError(f"{shown(file)} cannot be read as a table: {shown(error)}; download it again") from error


def _arrow_table(file: str) -> Any:
    import pyarrow

    mapped = pyarrow.memory_map(file)
    try:
        return pyarrow.ipc.open_stream(mapped).read_all()
    except pyarrow.ArrowInvalid:  # Feather's form, with the index at the end
        return pyarrow.ipc.open_file(mapped).read_all()


def _parquet_copy(file: str) -> Any:
    import datasets  # here, because it takes a second and data sets of files never need it

    progress_was_shown = datasets.are_progress_bars_disabled() is False
    datasets.disable_progress_bars()
    try:
        return datasets.load_dataset("parquet", data_files=glob.escape(file), split="train").data.table
    except datasets.exceptions.DatasetGenerationError as error:
        raise ValueError(str(error.__cause__ or error)) from error
    finally:
        if progress_was_shown:
            datasets.enable_progress_bars()


def _parquet_head(file: Path) -> tuple[Any, int]:
    """The schema of a parquet file, and how many rows it has."""
    import pyarrow
    import pyarrow.parquet

    try:
        metadata = pyarrow.parquet.read_metadata(file)
        return metadata.schema.to_arrow_schema(), metadata.num_rows
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise TableError(f"{shown(file)} cannot be read as a table: {shown(error)}; download it again") from error


def _plain_rows(file: Path, start: int) -> Iterator[dict[str, Any]]:
    import pyarrow
    import pyarrow.parquet

    row = 0
    try:
        with pyarrow.parquet.ParquetFile(file) as table:
            for batch in table.iter_batches(batch_size=_BATCH_ROWS):
                if row + batch.num_rows > start:
                    part = batch.slice(max(0, start - row))
                    yield from _values_of(file, row, part.column_names, part.to_pylist)
                row += batch.num_rows
    except (OSError, pyarrow.ArrowException) as error:
        raise TableError(f"{shown(file)} cannot be read behind row {row}: {shown(error)}; download it again") from error


def _batch(file: str, table: Any, columns: tuple[str, ...], first: int, count: int) -> list[dict[str, Any]]:
    part = table.slice(first, count)

    def rows() -> list[dict[str, Any]]:
        values = {
            name: (
                [_reference(file, name, first + row, cell) for row, cell in enumerate(part.column(name))]
                if name in columns
                else part.column(name).to_pylist()
            )
            for name in part.column_names
        }
        return [dict(zip(values, row, strict=True)) for row in zip(*values.values(), strict=True)]

    return _values_of(file, first, part.column_names, rows)


def _values_of(
    file: str | Path, first: int, names: list[str], rows: Callable[[], list[dict[str, Any]]]
) -> list[dict[str, Any]]:
    """Rows as Python has them, where it can: it knows no dates behind the year 9999, and not every time zone."""
    twice = next((name for name, count in Counter(names).items() if count > 1), None)
    if twice is not None:
        raise TableError(f"{shown(file)} has two columns {shown(twice, 60)!r}; rename or leave out one of them")
    try:
        return rows()
    except UnicodeDecodeError:
        raise
    except (ValueError, LookupError, ArithmeticError) as error:
        raise TableError(
            f"{shown(file)} holds behind row {first} what Python has no value for: {shown(error, 120)} "
            f"({type(error).__name__}); leave that column out, or write it as text"
        ) from error


def _holds_bytes(kind: Any) -> bool:
    import pyarrow

    types = pyarrow.types
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        kind = kind.value_type
    if types.is_struct(kind):
        position = kind.get_field_index("bytes")
        return position >= 0 and _is_binary(kind.field(position).type)
    return _is_binary(kind)


def _is_binary(kind: Any) -> bool:
    import pyarrow

    return bool(
        pyarrow.types.is_binary(kind) or pyarrow.types.is_large_binary(kind) or pyarrow.types.is_binary_view(kind)
    )


def _reference(file: str, column: str, row: int, cell: Any) -> Any:
    """A cell as a reference, a path or None, or a list of these; bytes that do not begin as media stay bytes."""
    if not cell.is_valid:
        return None
    import pyarrow

    if isinstance(cell, pyarrow.ListScalar | pyarrow.LargeListScalar | pyarrow.FixedSizeListScalar):
        return [_item(file, column, row, index, element) for index, element in enumerate(cell.values)]
    return _item(file, column, row, -1, cell)


def _item(file: str, column: str, row: int, index: int, cell: Any) -> Any:
    content = _content(cell)
    path = _path(cell)
    if content is None or not len(content):
        return path
    if path is None and not hasattr(cell, "keys") and not media_suffix(bytes(content[:_HEAD_BYTES])):
        return bytes(content)
    place = f"row {row} {shown(column, 40)}" + (f"[{index}]" if index >= 0 else "")
    return ImageRef(
        path=shown(path, _NAME_CHARACTERS) if path else place,
        parquet_file=file,
        parquet_row=row,
        parquet_column=column,
        parquet_index=index,
    )


def _content(cell: Any) -> memoryview | None:
    """The bytes of a cell, without a copy; None where there are none."""
    if cell.is_valid and hasattr(cell, "keys"):
        cell = cell["bytes"]
    return memoryview(cell.as_buffer()) if cell.is_valid else None


def _path(cell: Any) -> str | None:
    """The path that stands beside the bytes; None where there is none."""
    if not cell.is_valid or not hasattr(cell, "keys") or "path" not in cell:
        return None
    path = cell["path"].as_py()
    return path if isinstance(path, str) and path else None


def _names(table: Any) -> str:
    return shown(", ".join(table.column_names))
