"""Images that lie in a cell of a parquet table, by their place: their bytes are read when they are shown."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class TableCell:
    """An image within a data set's own table, as it stands in a record in place of its bytes.

    Attributes:
        file: the parquet file.
        row: 0-based row of the file.
        column: name of the column.
        index: 0-based place in the cell's list; -1 where the cell is no list.
        path: what the table calls the image; may be empty.
    """

    file: str
    row: int
    column: str
    index: int = -1
    path: str = ""
