"""A folder that holds the rendered pages of documents; they can be added and removed while other processes read.

store.json              what pages look like: dpi, max_pixels, image format
pages.parquet/          one parquet file a document: its pages with title, text layer and image
images/ab/abcd….png     the images, by the SHA-256 of the file
ocr/ab/abcd….txt        what OCR read in an image; there only where it was asked
writing/                what is not complete; there only while somebody writes, or died writing
writer.lock             locked by the one who writes
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args

from PIL import Image

from rsgrpo.config.checks import ConfigError
from rsgrpo.config.documents import ImageFormat, RenderSettings
from rsgrpo.data.images.loading import read_image
from rsgrpo.data.images.sources import ImageError
from rsgrpo.documents.counts import Counts
from rsgrpo.documents.ingest import Ingest, MakePool, OnProgress, Work
from rsgrpo.documents.known_documents import KNOWN_FILE, known_documents, note_documents
from rsgrpo.documents.ocr import OCR_TEXTS, check_ocr
from rsgrpo.documents.parts import (
    StoredDocument,
    document_names,
    is_complete,
    num_rows,
    part_path,
    read_pages,
    read_texts,
    used_images,
)
from rsgrpo.documents.records import IngestReport, Page, Remark, StoreError, split_page_id
from rsgrpo.documents.rendering import RenderPool
from rsgrpo.documents.sources import SourceFile, find_documents, same_name
from rsgrpo.documents.stored_images import IMAGES, PARTS, STORE_FILE, WRITING, image_problem, store_writes
from rsgrpo.errors import shown
from rsgrpo.io.atomic_files import FileError, json_bytes, read_json_object, write_json
from rsgrpo.io.ids import likely_names
from rsgrpo.io.writer_lock import LockHeldError, WriterLock
from rsgrpo.types import ImageRef

LOCK_FILE = "writer.lock"
STORE_VERSION = 1

_KEPT_SETTINGS = ("dpi", "max_pixels", "image_format")  # what all pages of a store have in common

_OWN = frozenset({PARTS, IMAGES, OCR_TEXTS, WRITING, LOCK_FILE, STORE_FILE, KNOWN_FILE})


class PageStore:
    """A folder with the rendered pages of documents; opened or made by :meth:`open`.

    Any number of processes may read while one writes. A reader sees each document either as it was before a change or
    as it is after it, never half of it.

    Example:
        >>> store = PageStore.open(Path("index/pages"), RenderSettings())  # doctest: +SKIP
        >>> store.add([Path("manuals")]).pages  # doctest: +SKIP
        311
        >>> next(store.pages()).page_id  # doctest: +SKIP
        'plot.pdf#1'
    """

    def __init__(self, folder: Path, rendering: RenderSettings, make_pool: MakePool = RenderPool) -> None:
        self.folder = folder
        self.rendering = rendering
        self._make_pool = make_pool

    @classmethod
    def open(cls, folder: Path, rendering: RenderSettings | None = None) -> PageStore:
        """Open a store, or make an empty one.

        Args:
            folder: the folder that the store lies in, or shall lie in.
            rendering: how pages are rendered; None: the settings that an existing store was made with.

        Raises:
            StoreError: the folder holds something else, a damaged store, a store of another version or with other
                settings; or there is no store there and ``rendering`` is None.
        """
        folder = Path(os.path.abspath(Path(folder).expanduser()))  # noqa: PTH100  # keeps links
        if (folder / STORE_FILE).exists():
            return cls(folder, _agreed(folder, rendering))
        try:
            others = sorted(path.name for path in folder.iterdir()) if folder.exists() else []
        except OSError as error:
            raise StoreError(f"{shown(folder)} cannot be read ({error.strerror}); name another folder") from error
        if half := [name for name in others if name in (PARTS, IMAGES)]:
            raise StoreError(
                f"{shown(folder)} has {half[0]}, but no {STORE_FILE}: it is half a page store; delete it and add its "
                "documents again"
            )
        if strange := [name for name in others if name not in _OWN]:
            raise StoreError(f"{shown(folder)} is no page store, it holds {shown(strange[0], 80)}; name a new folder")
        if rendering is None:
            raise StoreError(f"there is no page store at {shown(folder)}; make one with `rsgrpo index`")
        try:
            for name in (PARTS, IMAGES):
                (folder / name).mkdir(parents=True, exist_ok=True)
            with _writer_lock(folder):
                if not (folder / STORE_FILE).exists():
                    write_json(folder / STORE_FILE, _document(rendering), indent=2)
        except OSError as error:
            raise StoreError(f"no page store can be made at {shown(folder)} ({error.strerror})") from error
        return cls(folder, _agreed(folder, rendering))

    def add(self, paths: Iterable[Path], on_progress: OnProgress | None = None) -> IngestReport:
        """Add documents; a document that the store has already is read again only if its file has changed.

        A file counts as unchanged if its size and the time of its last change are the same as before, or its SHA-256
        is. Each document is in the store as soon as it is done, so the same call goes on after an interruption.

        Args:
            paths: the files to add, and folders whose documents are added with those of their subfolders.
            on_progress: a function that is called with the progress, a few times a second or more; None: no function.

        Returns:
            How many documents and pages were added, and which documents could not be read and why.

        Raises:
            DocumentError: a path does not exist, or a document cannot be read and the settings do not skip it.
            OcrError: pages shall be read by OCR, and its package is not installed.
            StoreError: another process writes to the store, or the disk is full.
        """
        begin = time.monotonic()
        check_ocr(self.rendering.ocr)
        sources, refused = find_documents(paths)
        counts = Counts()
        with self._writing():
            known, damaged = known_documents(self.folder)
            by_sha256 = {stored.sha256: stored.document for stored in known.values()}
            ingest = Ingest(self.folder, self.rendering, by_sha256, counts, on_progress, self._make_pool)
            work = []
            for source in sources:
                planned = self._work(source, known.get(source.document))
                if isinstance(planned, Remark):
                    refused.append(planned)
                elif planned is None:
                    counts.unchanged += 1
                else:
                    work.append(planned)
            for remark in refused:
                ingest.refuse(remark)
            if work:
                ingest.run(work)
                known, damaged = known_documents(self.folder)
            counts.damaged = damaged
            if counts.replaced or ingest.has_dropped:
                with store_writes(self.folder):
                    self._sweep()
        return counts.report(time.monotonic() - begin)

    def remove(self, *documents: str) -> IngestReport:
        """Remove documents, and those of their images that no other document uses.

        Args:
            documents: the names of the documents.

        Returns:
            How many documents were removed.

        Raises:
            StoreError: the store has no document of one of the names, and nothing was removed; or another process
                writes to the store.
        """
        begin = time.monotonic()
        with self._writing():
            parts = [self._part(document) for document in dict.fromkeys(documents)]
            with store_writes(self.folder):
                for part in parts:
                    part.unlink()
                self._sweep(with_texts=True)
        return Counts(removed=len(parts)).report(time.monotonic() - begin)

    def check_documents(self, documents: Iterable[str]) -> None:
        """Refuse names that no document of the store has.

        Args:
            documents: the names of the documents.

        Raises:
            StoreError: the store has no document of one of the names.
        """
        for document in documents:
            self._part(document)

    def documents(self) -> list[str]:
        """Return the names of all documents, in natural order."""
        return document_names(self.folder)

    def dates(self) -> dict[str, str]:
        """Return the day on which each document's file last changed, ``YYYY-MM-DD`` in UTC, by the document's name."""
        known, _ = known_documents(self.folder)
        return {
            name: datetime.fromtimestamp(document.mtime_ns / 1e9, UTC).date().isoformat()
            for name, document in known.items()
        }

    @property
    def num_pages(self) -> int:
        """How many pages all documents have together."""
        return sum(num_rows(part_path(self.folder, document)) for document in self.documents())

    def pages(self) -> Iterator[Page]:
        """Iterate over all pages: documents in natural order, and the pages of each in the order of the document.

        At most a few hundred pages are held in memory at a time.

        Yields:
            The pages, without their pixels.

        Raises:
            StoreError: the part of a document is damaged, or was removed meanwhile.
        """
        for document in self.documents():
            yield from read_pages(self.folder, document)

    def texts(self) -> Iterator[tuple[str, str]]:
        """Iterate over the id and the text of every page, in the order of :meth:`pages`.

        Yields:
            The id of each page and its text, which is empty where the page has none.

        Raises:
            StoreError: the part of a document is damaged, or was removed meanwhile.
        """
        for document in self.documents():
            yield from read_texts(self.folder, document)

    def text_digest(self) -> str:
        """Compute a digest that changes whenever a text may have changed; no text is read for it."""
        known, _ = known_documents(self.folder)
        made_of = sorted([name, stored.sha256, stored.rendered_by, stored.ocr] for name, stored in known.items())
        return hashlib.sha256(json_bytes(made_of)).hexdigest()

    def page(self, page_id: str) -> Page:
        """Return a page by its id.

        Args:
            page_id: the id of the page, such as ``manuals/plot.pdf#3``.

        Raises:
            StoreError: the store has no page with this id, or the part of its document is damaged.
        """
        document, number = split_page_id(page_id)
        self._part(document)
        for page in read_pages(self.folder, document):
            if page.page_number == number:
                return page
        raise StoreError(f"{shown(document)} has no page {number} in {shown(self.folder)}")

    def read_image(self, page: Page) -> Image.Image:
        """Read the pixels of a page, as they were rendered.

        Args:
            page: a page of this store.

        Returns:
            An RGB image with the page's width and height in pixels.

        Raises:
            StoreError: the image file is missing or damaged.
        """
        problem = image_problem(page.image_path, page.sha256)
        if problem:
            raise StoreError(
                f"the image of {shown(page.page_id)}, {shown(page.image_path)}, {problem}; remove the document and add "
                "it again"
            )
        ref = ImageRef(path=page.page_id, file=str(page.image_path))
        try:
            return read_image(ref, self.rendering.image_rules)
        except ImageError as error:
            raise StoreError(str(error)) from error

    def _part(self, document: str) -> Path:
        """Return the path of a document's part, or refuse a name that the store does not have."""
        path = part_path(self.folder, document)
        if not path.exists():
            likely = likely_names(document, self.documents())
            raise StoreError(
                f"there is no document {shown(document)!r} in {shown(self.folder)}{likely}; check the name"
            )
        return path

    def _work(self, source: SourceFile, former: StoredDocument | None) -> Work | Remark | None:
        """Decide what to do about a document: add it, nothing (None), or refuse it with a remark."""
        if former is None:
            return Work(source=source, former=None, is_whole=False)
        other = Path(former.path)
        if other != source.path and other.is_file() and not _is_same(other, source.path):
            return Remark(name=source.document, reason=same_name(source.path, other))
        try:
            status = source.path.stat()
            is_same = (former.num_bytes, former.mtime_ns) == (status.st_size, status.st_mtime_ns)
        except OSError:
            is_same = False  # whoever reads it says what is wrong
        is_whole = is_complete(self.folder, source.document, with_ocr=self.rendering.ocr != "none")
        return None if is_same and is_whole else Work(source=source, former=former, is_whole=is_whole)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Hold the writer lock; delete what a killed writer left before the block, and temporary files after it."""
        writing = self.folder / WRITING
        with _writer_lock(self.folder):
            with store_writes(self.folder):
                was_broken_off = writing.exists()
                shutil.rmtree(writing, ignore_errors=True)
                writing.mkdir(exist_ok=True)
            yield
            with store_writes(self.folder):
                if was_broken_off:
                    self._sweep()
                note_documents(self.folder)
                shutil.rmtree(writing)

    def _sweep(self, *, with_texts: bool = False) -> None:
        """Delete images that no document uses; delete none if a damaged part hides which images are used.

        What OCR read in them goes only when a document is taken out: it is small, and took long.
        """
        try:
            used = used_images(self.folder, self.documents())
        except StoreError:
            return
        for path in (self.folder / IMAGES).glob("*/*"):
            if path.name not in used:
                path.unlink(missing_ok=True)
        if with_texts:
            stems = {Path(name).stem for name in used}
            for path in (self.folder / OCR_TEXTS).glob("*/*.txt"):
                if path.stem not in stems:
                    path.unlink(missing_ok=True)


def _is_same(path: Path, other: Path) -> bool:
    try:
        return path.samefile(other)
    except OSError:
        return False


@contextmanager
def _writer_lock(folder: Path) -> Iterator[None]:
    """Hold the writer lock of a store.

    Raises:
        StoreError: another process holds the lock, or the lock file cannot be written.
    """
    try:
        with store_writes(folder):
            lock = WriterLock(folder / LOCK_FILE)
    except LockHeldError as error:
        raise StoreError(
            f"another process writes to {shown(folder)} ({shown(error.holder)}); wait until it is done, or name "
            "another folder"
        ) from error
    with lock:
        yield


def _document(rendering: RenderSettings) -> dict[str, object]:
    return {"version": STORE_VERSION} | {name: getattr(rendering, name) for name in _KEPT_SETTINGS}


def _agreed(folder: Path, rendering: RenderSettings | None) -> RenderSettings:
    """Check that settings agree with those that the store was made with, and return them."""
    path = folder / STORE_FILE
    try:
        document = read_json_object(path)
    except FileError as error:
        raise StoreError(f"{error}; delete the store and add its documents again") from error
    if document.get("version") != STORE_VERSION:
        raise StoreError(
            f"{shown(path)} is of version {shown(document.get('version'), 40)!r}, this release reads {STORE_VERSION}; "
            "use the release that made it, or add its documents to a new folder"
        )
    values: dict[str, Any] = {name: document.get(name) for name in _KEPT_SETTINGS}
    dpi, max_pixels, image_format = values.values()
    is_valid = (dpi is None or isinstance(dpi, int | float)) and isinstance(max_pixels, int)
    if not is_valid or image_format not in get_args(ImageFormat)[1:]:
        raise StoreError(f"{shown(path)} does not say how pages were rendered; delete the store and add them again")
    try:
        own = RenderSettings(**values)
    except (ConfigError, TypeError) as error:
        raise StoreError(f"{shown(path)}: {error}") from error
    if rendering is None:
        return own
    for name in _KEPT_SETTINGS:
        ours, theirs = getattr(rendering, name), getattr(own, name)
        if ours != theirs:
            raise StoreError(
                f"{shown(folder)} was begun with {name}={theirs}, not {ours}; keep that, or name another folder"
            )
    return rendering
