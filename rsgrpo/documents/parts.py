"""The folder ``pages.parquet`` of a store: one parquet file for each document, which appears whole or not at all.

pandas, pyarrow, polars and duckdb read such a folder as one table. The file's footer says what the document was when
it was read: that is all it takes to find out whether it has changed.
"""

from __future__ import annotations

import dataclasses
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
_COPIED = ("image", "sha256", "num_bytes", "width", "height", "text", "blank", "text_origin")
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
        pa.field("text_origin", pa.string()),
    ]
)
_BEFORE_OCR = _SCHEMA.names[:-1]  # of parts that were written before there was OCR


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredDocument:
    """The description of a document's file as it was read; it stands in the footer of the document's part.

    Attributes:
        document: the name of the document in the store.
        path: the absolute path of the file.
        num_bytes: the size of the file in bytes.
        mtime_ns: the time of the file's last change, in nanoseconds since 1970.
        sha256: the SHA-256 of the file, 64 hexadecimal digits.
        rendered_by: the libraries that rendered the pages, with their versions.
        ocr: the library that read pages without a text layer, with its version; empty: they were not read.
    """

    document: str
    path: str
    num_bytes: int
    mtime_ns: int
    sha256: str
    rendered_by: str
    ocr: str = ""


def part_path(store: Path, document: str) -> Path:
    """Return the path of the part that holds a document's pages, whether it exists or not.

    Args:
        store: the folder that the store lies in.
        document: the name of the document.

    Example:
        ``pages.parquet/manuals%2Fplot.pdf.parquet``
    """
    quoted = urllib.parse.quote(document, safe=" ").replace(".", "%2E", int(document.startswith(".")))
    if len(quoted) > _MAX_NAME_CHARACTERS:
        digest = hashlib.sha256(document.encode()).hexdigest()[:_DIGEST_CHARACTERS]
        quoted = f"{quoted[:_KEPT_CHARACTERS].rstrip('%')}{_CUT}{digest}"
    return store / PARTS / f"{quoted}{_SUFFIX}"


def document_names(store: Path) -> list[str]:
    """Return the names of all documents in a store, in natural order.

    A long name is cut short in the file name of its part; if such a part is damaged, the shortened name is returned.

    Args:
        store: the folder that the store lies in.
    """
    return sorted(map(document_of, (store / PARTS).glob(f"*{_SUFFIX}")), key=natural_key)


def document_of(part: Path) -> str:
    """Return the name of the document that a part belongs to.

    Args:
        part: the path of the part.
    """
    if _CUT in part.stem:
        with suppress(StoreError):
            return read_description(part).document
    return urllib.parse.unquote(part.stem)


class PartWriter:
    """The part of a document while it is written, page after page.

    Args:
        store: the folder that the store lies in; its folder for incomplete files must exist.
        description: the description of the document, which goes into the footer.
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
            page: the next page in the order of the document.
            title: the outline entry that the page belongs to; None: there is none.

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
                "text_origin": page.text_origin,
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
        """Move the finished part to its place; the document is in the store from here on.

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
        """Delete what was written."""
        # On a full disk closing tries to write once more.
        for output in (self._writer, self._file):
            with suppress(OSError, ValueError):
                if output is not None:
                    output.close()
        self._partial.unlink(missing_ok=True)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Open a part for reading, and report whatever is wrong with it as a StoreError."""
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
    """Read the description of a document from the footer of its part.

    Args:
        path: the path of the part.

    Raises:
        StoreError: the part is damaged or gone.
    """
    with _opened(path) as file:
        return _description(path, file.schema_arrow)


def _description(path: Path, schema: Any) -> StoredDocument:
    if schema.names not in (_SCHEMA.names, _BEFORE_OCR):
        raise StoreError(f"{shown(path)} is no part of a page store; delete it")
    try:
        return from_plain(StoredDocument, parse_json((schema.metadata or {})[_KEY]))
    except RecordError as error:
        raise StoreError(f"{shown(path)} is no part of a page store ({error}); delete it") from error


def num_rows(path: Path) -> int:
    """Count the pages of a part.

    Args:
        path: the path of the part.

    Raises:
        StoreError: the part is damaged or gone.
    """
    with _opened(path) as file:
        return int(file.metadata.num_rows)


def _rows(path: Path, columns: list[str] | None = None) -> Iterator[dict[str, Any]]:
    with _opened(path) as file:
        for batch in file.iter_batches(batch_size=_GROUP_ROWS, columns=columns, use_threads=False):
            for row in batch.to_pylist():
                if "text" in row and row.get("text_origin") is None:
                    row["text_origin"] = "text_layer" if row["text"].strip() else "none"
                yield row


def read_pages(store: Path, document: str) -> Iterator[Page]:
    """Iterate over the pages of a document, in their order.

    Args:
        store: the folder that the store lies in.
        document: the name of the document.

    Yields:
        The pages, without their pixels.

    Raises:
        StoreError: the part of the document is damaged or gone.
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
            text_origin=row["text_origin"],
        )


def read_texts(store: Path, document: str) -> Iterator[tuple[str, str]]:
    """Iterate over the ids and texts of a document's pages, in their order; nothing else of the pages is read.

    Args:
        store: the folder that the store lies in.
        document: the name of the document.

    Yields:
        The id and the text of each page; the text is empty where the page has none.

    Raises:
        StoreError: the part of the document is damaged or gone.
    """
    for row in _rows(part_path(store, document), ["page_id", "text"]):
        yield row["page_id"], row["text"]


def copy_part(store: Path, document: str, description: StoredDocument) -> Iterator[StoredPage]:
    """Copy the pages of a stored document into the part of another document with the same content.

    The new part is in the store once the iteration has reached its end; if it is broken off, nothing is written.

    Args:
        store: the folder that the store lies in.
        document: the name of the stored document, whose pages are copied.
        description: the description of the document that gets the pages; it may have the same name. What read their
            text is taken over with the pages.

    Yields:
        The copied pages, in their order.

    Raises:
        StoreError: the part of the stored document is damaged or gone.
        OSError: the disk is full.
    """
    part = part_path(store, document)
    writer = PartWriter(store, dataclasses.replace(description, ocr=read_description(part).ocr))
    try:
        for row in _rows(part):
            page = StoredPage(number=row["page_number"], is_new=False, **{name: row[name] for name in _COPIED})
            writer.append(page, row["title"])
            yield page
        writer.commit()
    except BaseException:
        writer.discard()
        raise


def is_complete(store: Path, document: str, *, with_ocr: bool) -> bool:
    """Tell whether nothing of a document has to be made again.

    Args:
        store: the folder that the store lies in.
        document: the name of the document.
        with_ocr: whether pages without a text layer must have been read by OCR.

    Returns:
        Whether the part can be read, every image file has its full size in bytes, and pages were read as asked.
    """
    of_text = ["text", "text_origin", "blank"] if with_ocr else []
    try:
        return all(
            has_size(store / row["image"], row["num_bytes"])
            and not (with_ocr and row["text_origin"] == "none" and not row["blank"])
            for row in _rows(part_path(store, document), ["image", "num_bytes", *of_text])
        )
    except StoreError:
        return False


def used_images(store: Path, documents: Iterable[str]) -> set[str]:
    """Collect the file names of all images that documents use.

    Args:
        store: the folder that the store lies in.
        documents: the names of the documents.

    Returns:
        The file names without their folders, such as ``abcdef….png``.

    Raises:
        StoreError: the part of a document is damaged or gone.
    """
    return {Path(row["image"]).name for document in documents for row in _rows(part_path(store, document), ["image"])}
