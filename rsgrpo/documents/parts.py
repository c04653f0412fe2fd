"""``pages.parquet`` of a store: a folder with one parquet file a document, which appears whole or not at all.

pandas, pyarrow, polars and duckdb read such a folder as one table. The file's footer says what the document was when
it was read: that is all it takes to find out whether it has changed.
"""

from __future__ import annotations

import hashlib
import os
import urllib.parse
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rsgrpo.documents.records import Page, StoreError, page_id
from rsgrpo.documents.stored_images import IMAGES, PARTS, WRITING, has_size
from rsgrpo.documents.tasks import StoredPage
from rsgrpo.errors import shown
from rsgrpo.io.atomic_files import json_bytes, parse_json, shown_error
from rsgrpo.io.natural_order import natural_key
from rsgrpo.io.record_codec import RecordError, from_plain, to_plain

_SUFFIX = ".parquet"
_KEY = b"rsgrpo.document"
_GROUP_ROWS = 256  # are held in memory at a time
_MAX_NAME_CHARACTERS = 180  # file systems allow 255 bytes
_KEPT_CHARACTERS, _DIGEST_CHARACTERS = 100, 32
_CUT = "%%"  # quoting never gives two of these in a row
_SCHEMA = pa.schema(
    [
        pa.field("page_id", pa.string(), nullable=False),
        pa.field("document", pa.string(), nullable=False),
        pa.field("page_number", pa.int32(), nullable=False),
        pa.field("sha256", pa.string(), nullable=False),
        pa.field("image", pa.string(), nullable=False),
        pa.field("num_bytes", pa.int64(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("title", pa.string()),
        pa.field("text", pa.string(), nullable=False),
        pa.field("blank", pa.bool_(), nullable=False),
    ]
)


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredDocument:
    """What a document was when it was read; stands in its part's footer.

    Attributes:
        document: its name.
        path: of its file.
        num_bytes: of its file.
        mtime_ns: of its file.
        sha256: of its file.
        rendered_by: libraries, with versions.
    """

    document: str
    path: str
    num_bytes: int
    mtime_ns: int
    sha256: str
    rendered_by: str


def part_path(store: Path, document: str) -> Path:
    """Where a document's pages stand.

    Args:
        store: its folder.
        document: its name.

    Example:
        ``pages.parquet/manuals%2Fplot.pdf.parquet``
    """
    quoted = urllib.parse.quote(document, safe=" ").replace(".", "%2E", int(document.startswith(".")))
    if len(quoted) > _MAX_NAME_CHARACTERS:
        digest = hashlib.sha256(document.encode()).hexdigest()[:_DIGEST_CHARACTERS]
        quoted = f"{quoted[:_KEPT_CHARACTERS].rstrip('%')}{_CUT}{digest}"
    return store / PARTS / f"{quoted}{_SUFFIX}"


def document_names(store: Path) -> list[str]:
    """Names of all documents of a store, in natural order; a damaged part whose name was cut short has that one.

    Args:
        store: its folder.
    """
    return sorted(map(document_of, (store / PARTS).glob(f"*{_SUFFIX}")), key=natural_key)


def document_of(part: Path) -> str:
    """Name of the document that a part belongs to.

    Args:
        part: its path.
    """
    if _CUT in part.stem:
        with suppress(StoreError):
            return read_description(part).document
    return urllib.parse.unquote(part.stem)


class PartWriter:
    """A document's part while it is written, page after page.

    Args:
        store: its folder.
        description: of the document.
    """

    def __init__(self, store: Path, description: StoredDocument) -> None:
        self._final = part_path(store, description.document)
        self._partial = store / WRITING / f"{uuid.uuid4().hex}{_SUFFIX}"
        self._description = description
        self._rows: list[dict[str, object]] = []
        self._file: Any = None
        self._writer: Any = None
        self.num_pages = 0

    def append(self, page: StoredPage, title: str | None) -> None:
        """Add a page.

        Args:
            page: the next one in the order of the document.
            title: of the outline.

        Raises:
            OSError: the disk is full.
        """
        document = self._description.document
        self._rows.append(
            {
                "page_id": page_id(document, page.number),
                "document": document,
                "page_number": page.number,
                "sha256": page.sha256,
                "image": page.image,
                "num_bytes": page.num_bytes,
                "width": page.width,
                "height": page.height,
                "title": title,
                "text": page.text,
                "blank": page.blank,
            }
        )
        self.num_pages += 1
        if len(self._rows) == _GROUP_ROWS:
            self._write_rows()

    def _write_rows(self) -> None:
        schema = _SCHEMA.with_metadata({_KEY: json_bytes(to_plain(self._description))})
        if self._writer is None:
            self._file = self._partial.open("wb")
            self._writer = pq.ParquetWriter(self._file, schema, compression="zstd")
        self._writer.write_table(pa.Table.from_pylist(self._rows, schema=schema))
        self._rows = []

    def commit(self) -> None:
        """Let the part take its place; the document is in the store from here on.

        Raises:
            OSError: the disk is full.
        """
        if self._rows or self._writer is None:
            self._write_rows()
        self._writer.close()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._partial.replace(self._final)

    def discard(self) -> None:
        """Forget what was written."""
        # On a full disk closing tries to write once more.
        for one in (self._writer, self._file):
            with suppress(OSError, ValueError):
                if one is not None:
                    one.close()
        self._partial.unlink(missing_ok=True)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """A part to read; whatever is wrong with it in one sentence."""
    try:
        with pq.ParquetFile(path, memory_map=False, pre_buffer=False) as file:
            yield file
    except StoreError:
        raise
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError) as error:
        raise StoreError(
            f"{shown(path)} is damaged or gone ({shown(shown_error(error), 120)}); add its document again, or delete "
            "the file"
        ) from error


def read_description(path: Path) -> StoredDocument:
    """What a document was when it was read.

    Args:
        path: of its part.

    Raises:
        StoreError: the part is damaged or gone.
    """
    with _opened(path) as file:
        return _description(path, file.schema_arrow)


def _description(path: Path, schema: Any) -> StoredDocument:
    if schema.names != _SCHEMA.names:
        raise StoreError(f"{shown(path)} is no part of a page store; delete it")
    try:
        return from_plain(StoredDocument, parse_json((schema.metadata or {})[_KEY]))
    except RecordError as error:
        raise StoreError(f"{shown(path)} is no part of a page store ({error}); delete it") from error


def num_rows(path: Path) -> int:
    """How many pages a part has.

    Raises:
        StoreError: it is damaged or gone.
    """
    with _opened(path) as file:
        return int(file.metadata.num_rows)


def _rows(path: Path, columns: list[str] | None = None) -> Iterator[dict[str, Any]]:
    with _opened(path) as file:
        for batch in file.iter_batches(batch_size=_GROUP_ROWS, columns=columns, use_threads=False):
            yield from batch.to_pylist()


def read_pages(store: Path, document: str) -> Iterator[Page]:
    """Pages of a document, in their order.

    Args:
        store: its folder.
        document: its name.

    Raises:
        StoreError: its part is damaged or gone.
    """
    path = part_path(store, document)
    for row in _rows(path):
        sha256, image = row["sha256"], row["image"]
        if not image.startswith(f"{IMAGES}/{sha256[:2]}/{sha256}.") or image.count("/") != 2:
            raise StoreError(f"{shown(path)} names an image outside its store, {shown(image, 80)}; delete it")
        yield Page(
            page_id=row["page_id"],
            document=row["document"],
            page_number=row["page_number"],
            sha256=sha256,
            image_path=store / image,
            width=row["width"],
            height=row["height"],
            title=row["title"],
            text=row["text"],
            blank=row["blank"],
        )


def copy_part(store: Path, document: str, description: StoredDocument) -> Iterator[StoredPage]:
    """Give a document the pages of another one with the same content; it is in the store when all are passed over.

    Args:
        store: its folder.
        document: the other one.
        description: of the new one.

    Yields:
        Its pages.
    """
    writer = PartWriter(store, description)
    try:
        for row in _rows(part_path(store, document)):
            page = StoredPage(
                number=row["page_number"],
                is_new=False,
                **{name: row[name] for name in ("image", "sha256", "num_bytes", "width", "height", "text", "blank")},
            )
            writer.append(page, row["title"])
            yield page
        writer.commit()
    except BaseException:
        writer.discard()
        raise


def has_all_images(store: Path, document: str) -> bool:
    """Whether every image of a document is there, in its full size.

    Args:
        store: its folder.
        document: its name.

    Raises:
        StoreError: its part is damaged.
    """
    rows = _rows(part_path(store, document), ["image", "num_bytes"])
    return all(has_size(store / row["image"], row["num_bytes"]) for row in rows)


def used_images(store: Path, documents: Iterable[str]) -> set[str]:
    """File names of all images that documents have.

    Args:
        store: its folder.
        documents: their names.

    Raises:
        StoreError: a part is damaged.
    """
    return {Path(row["image"]).name for document in documents for row in _rows(part_path(store, document), ["image"])}
