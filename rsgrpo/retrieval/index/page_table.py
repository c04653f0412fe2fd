"""A table of pages without their vectors, one row for each page, which is kept as a parquet file."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rsgrpo.errors import shown
from rsgrpo.io.atomic_files import replacing
from rsgrpo.retrieval.index.page_index import IndexedPage, PageFilter
from rsgrpo.types import BoolArray

_FIELDS = tuple(field.name for field in dataclasses.fields(IndexedPage))
_SCHEMA = pa.schema([(name, pa.int64() if name == "page_number" else pa.string()) for name in _FIELDS])

IN_INDEX = "$INDEX"
"""What stands in the file for the folder that the file lies in, so that an index can be moved with its images."""


class PageTableError(ValueError):
    """A table of pages cannot be read; the message says what is wrong with it."""


class PageTable:
    """Pages by row; rows are only ever appended.

    Args:
        table: the Arrow table, with one column for each field of
            :class:`~rsgrpo.retrieval.index.page_index.IndexedPage`; None: an empty one.
    """

    def __init__(self, table: Any = None) -> None:
        self._table = _SCHEMA.empty_table() if table is None else table
        self._last: tuple[PageFilter, BoolArray] | None = None  # many questions come with one filter

    @classmethod
    def read(cls, file: Path) -> PageTable:
        """Read the table in a file.

        Args:
            file: the file that :meth:`write` wrote.

        Returns:
            The table, whole in memory.

        Raises:
            PageTableError: the file cannot be read, or holds something else.
        """
        try:
            table = pq.read_table(file)
        except (OSError, pa.ArrowException) as error:
            raise PageTableError(shown(error, 200)) from error
        if table.schema.remove_metadata() != _SCHEMA:
            raise PageTableError(f"its columns are {', '.join(table.column_names)}, expected {', '.join(_FIELDS)}")
        return cls(_moved(table, f"{IN_INDEX}/", f"{file.parent.absolute()}/"))

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def add(self, pages: Sequence[IndexedPage]) -> None:
        """Append pages."""
        columns = {name: [getattr(page, name) for page in pages] for name in _FIELDS}
        self._table = pa.concat_tables([self._table, pa.table(columns, schema=_SCHEMA)])
        self._last = None

    def ids(self) -> list[str]:
        """List the page id of every row, in row order."""
        found: list[str] = self._table.column("page_id").to_pylist()
        return found

    def pages(self, rows: Iterable[int]) -> list[IndexedPage]:
        """Take the pages of some rows.

        Args:
            rows: the numbers of the rows, from 0.

        Returns:
            The pages in the order of ``rows``.
        """
        taken = self._table.take(pa.array(list(rows), pa.int64()))
        return [IndexedPage(**row) for row in taken.to_pylist()]

    def meets(self, wanted: PageFilter) -> BoolArray:
        """Mark the rows whose pages meet a filter.

        Returns:
            Whether each row meets it, [rows] bool.
        """
        if self._last is None or self._last[0] != wanted:
            self._last = (wanted, self._computed(wanted))
        return self._last[1]

    def _computed(self, wanted: PageFilter) -> BoolArray:
        parts = []
        if wanted.documents:
            parts.append(pc.is_in(self._table.column("document"), pa.array(wanted.documents, pa.string())))
        if wanted.folders:
            folders = self._table.column("folder")
            within = [pc.is_in(folders, pa.array(wanted.folders, pa.string()))]
            within += [pc.starts_with(folders, f"{folder}/") for folder in wanted.folders]
            parts.append(_all(within, pc.or_))
        dates = self._table.column("date")  # as YYYY-MM-DD they are ordered as texts
        if wanted.first_date or wanted.last_date:
            parts.append(pc.not_equal(dates, ""))
        if wanted.first_date:
            parts.append(pc.greater_equal(dates, wanted.first_date))
        if wanted.last_date:
            parts.append(pc.less_equal(dates, wanted.last_date))
        if not parts:
            return np.ones(len(self), dtype=np.bool_)
        found: BoolArray = np.asarray(_all(parts, pc.and_).to_numpy(), dtype=np.bool_)
        return found

    def write(self, file: Path, rows: Iterable[int]) -> None:
        """Write some of the rows, whole or not at all.

        Args:
            file: the file to write, which is replaced.
            rows: the numbers of the rows, in the order in which the file shall hold them.

        Raises:
            OSError: the disk is full, or there is no permission.
        """
        with replacing(file) as output:
            table = self._table.take(pa.array(list(rows), pa.int64())).combine_chunks()
            pq.write_table(_moved(table, f"{file.parent.absolute()}/", f"{IN_INDEX}/"), output)


def _moved(table: Any, before: str, after: str) -> Any:
    """Put another beginning in front of the paths of images that begin with a certain one."""
    paths = table.column("image_path")
    rest = pc.utf8_slice_codeunits(paths, len(before))
    moved = pc.if_else(pc.starts_with(paths, before), pc.binary_join_element_wise(after, rest, ""), paths)
    return table.set_column(table.schema.get_field_index("image_path"), _SCHEMA.field("image_path"), moved)


def _all(parts: Sequence[Any], join: Any) -> Any:
    whole = parts[0]
    for part in parts[1:]:
        whole = join(whole, part)
    return whole
