"""Where the images of a data set lie: files below a folder, or rows of ``images.parquet``."""

from __future__ import annotations

import os
from pathlib import Path

from rsgrpo.data_files import IMAGE_TABLE
from rsgrpo.image_bytes import table_rows
from rsgrpo.readers.findings import BadRecordError
from rsgrpo.types import ImageRef


class MediaFinder:
    """Finds images by the paths that a data set writes: files first, then ``images.parquet``.

    Args:
        roots: folders that paths may be relative to; the first that holds the image counts, and the first of
            all where none does.
        must_exist: refuse an image that lies nowhere; else its reference is made all the same.
    """

    def __init__(self, roots: tuple[Path, ...], *, must_exist: bool) -> None:
        self._prefixes = tuple(f"{Path(os.path.normpath(root.absolute()))}/" for root in dict.fromkeys(roots))
        tables = (root.absolute() / IMAGE_TABLE for root in roots)
        self._table = next((table for table in tables if table.is_file()), None)
        self._rows: dict[str, int] | None = None
        self._must_exist = must_exist

    def place(self, path: str) -> str:
        """Where a path would lie below the first folder."""
        plain = path[2:] if path.startswith("./") else path
        return plain if plain.startswith("/") else self._prefixes[0] + plain

    def find(self, path: str) -> ImageRef:
        """Reference to an image.

        Args:
            path: as the data set writes it.

        Raises:
            BadRecordError: there is no such image, and it must exist.
        """
        first = self.place(path)
        if not self._must_exist and self._table is None and len(self._prefixes) == 1:
            return ImageRef(path=path, file=first)
        if os.path.exists(first):  # noqa: PTH110 - a Path object for each of ten million images costs more than the look
            return ImageRef(path=path, file=first)
        for prefix in self._prefixes[1:]:
            if Path(prefix + path).exists():
                return ImageRef(path=path, file=os.path.normpath(prefix + path))
        if self._table is not None:
            if self._rows is None:
                self._rows = table_rows(self._table)
            if path in self._rows:
                return ImageRef(path=path, parquet_file=str(self._table), parquet_row=self._rows[path])
        if self._must_exist:
            raise BadRecordError(
                "missing media",
                f"image {path!r} does not exist at {first}; put it there, or set the folder of the images",
            )
        return ImageRef(path=path, file=first)
