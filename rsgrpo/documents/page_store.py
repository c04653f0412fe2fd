"""A folder with the pages of documents: rendered once, stored once, added and removed while others read.

store.json              what pages look like: dpi, max_pixels, image format
pages.parquet/          one parquet file a document: its pages with title, text layer and image
images/ab/abcd….png     the images, by the SHA-256 of the file
writing/                what is not complete; there only while somebody writes, or died writing
writer.lock             locked by the one who writes
"""

from __future__ import annotations

import fcntl
import os
import platform
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import get_args

from PIL import Image

from rsgrpo.config.checks import ConfigError
from rsgrpo.config.documents import ImageFormat, RenderSettings
from rsgrpo.data.images.loading import read_image
from rsgrpo.data.images.sources import ImageError
from rsgrpo.documents.counts import Counts
from rsgrpo.documents.ingest import Ingest, MakePool, OnProgress, Work
from rsgrpo.documents.known_documents import KNOWN_FILE, known_documents, note_documents
from rsgrpo.documents.parts import (
    StoredDocument,
    document_names,
    has_all_images,
    num_rows,
    part_path,
    read_pages,
    used_images,
)
from rsgrpo.documents.records import IngestReport, Page, Remark, StoreError, split_page_id
from rsgrpo.documents.rendering import RenderPool
from rsgrpo.documents.sources import SourceFile, find_documents, same_name
from rsgrpo.documents.stored_images import IMAGES, PARTS, STORE_FILE, WRITING, image_problem, store_writes
from rsgrpo.errors import shown
from rsgrpo.io.atomic_files import FileError, read_json_object, write_json
from rsgrpo.types import ImageRef

LOCK_FILE = "writer.lock"
STORE_VERSION = 1

_OWN = frozenset({PARTS, IMAGES, WRITING, LOCK_FILE, STORE_FILE, KNOWN_FILE})


class PageStore:
    """Documents as pages, in a folder; made by :meth:`open`.

    Any number of processes may read while one writes: each sees a document as it was before or after, never half.

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
            folder: of the store.
            rendering: how pages are rendered; None: as the store was begun, which must be there then.

        Raises:
            StoreError: the folder holds something else, a damaged or newer store, or one with other settings.
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
        """Add documents; those that are there already are read again only where their files have changed.

        A file counts as unchanged if size and time of its last change are what they were, or its SHA-256 is. What was
        added is in the store as soon as each document is done: after an interruption the same call goes on.

        Args:
            paths: files, and folders whose documents are taken.
            on_progress: is told a few times a second or more.

        Returns:
            What was done, and what is wrong with which document.

        Raises:
            DocumentError: a path is not there, or a document cannot be read and the settings do not skip it.
            StoreError: another process writes to the store, or the disk is full.
        """
        begin = time.monotonic()
        sources, refused = find_documents(paths)
        counts = Counts()
        with self._writing():
            known, damaged = known_documents(self.folder)
            by_sha256 = {one.sha256: one.document for one in known.values()}
            ingest = Ingest(self.folder, self.rendering, by_sha256, counts, on_progress, self._make_pool)
            work = []
            for source in sources:
                one = self._work(source, known.get(source.document))
                if isinstance(one, Remark):
                    refused.append(one)
                elif one is None:
                    counts.unchanged += 1
                else:
                    work.append(one)
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
        """Remove documents, and those of their images that no other one has.

        Args:
            documents: their names.

        Raises:
            StoreError: one is not there, and nothing was removed; or another process writes to the store.
        """
        begin = time.monotonic()
        with self._writing():
            parts = [self._part(document) for document in dict.fromkeys(documents)]
            with store_writes(self.folder):
                for part in parts:
                    part.unlink()
                self._sweep()
        return Counts(removed=len(parts)).report(time.monotonic() - begin)

    def documents(self) -> list[str]:
        """Names of all documents, in natural order."""
        return document_names(self.folder)

    def dates(self) -> dict[str, str]:
        """The day of each document's file by the document's name, as ``YYYY-MM-DD`` in UTC."""
        known, _ = known_documents(self.folder)
        return {
            name: datetime.fromtimestamp(document.mtime_ns / 1e9, UTC).date().isoformat()
            for name, document in known.items()
        }

    @property
    def num_pages(self) -> int:
        """Pages of all documents."""
        return sum(num_rows(part_path(self.folder, document)) for document in self.documents())

    def pages(self) -> Iterator[Page]:
        """All pages: documents in natural order, pages as they follow one another; a few hundred are held at a time.

        Raises:
            StoreError: a document's part is damaged, or was removed meanwhile.
        """
        for document in self.documents():
            yield from read_pages(self.folder, document)

    def page(self, page_id: str) -> Page:
        """One page.

        Args:
            page_id: such as ``manuals/plot.pdf#3``.

        Raises:
            StoreError: there is none of this id.
        """
        document, number = split_page_id(page_id)
        self._part(document)
        for page in read_pages(self.folder, document):
            if page.page_number == number:
                return page
        raise StoreError(f"{shown(document)} has no page {number} in {shown(self.folder)}")

    def read_image(self, page: Page) -> Image.Image:
        """A page's pixels, as they were rendered.

        Args:
            page: of this store.

        Returns:
            RGB, of the page's width and height.

        Raises:
            StoreError: the image is missing, or damaged.
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
        """Where a document's pages stand."""
        path = part_path(self.folder, document)
        if not path.exists():
            raise StoreError(f"there is no document {shown(document)!r} in {shown(self.folder)}")
        return path

    def _work(self, source: SourceFile, former: StoredDocument | None) -> Work | Remark | None:
        """What has to be done about a document: nothing, something, or it cannot be."""
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
        try:
            is_whole = has_all_images(self.folder, source.document)
        except StoreError:
            is_whole = False
        return None if is_same and is_whole else Work(source=source, former=former, is_whole=is_whole)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Be the only writer; what a killed one left is cleared away first, and at the end what nobody needs."""
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

    def _sweep(self) -> None:
        """Delete images that no document has; none at all where a part is damaged, so that it cannot be told."""
        try:
            used = used_images(self.folder, self.documents())
        except StoreError:
            return
        for folder in (self.folder / IMAGES).iterdir():
            for path in folder.iterdir():
                if path.name not in used:
                    path.unlink(missing_ok=True)


def _is_same(path: Path, other: Path) -> bool:
    try:
        return path.samefile(other)
    except OSError:
        return False


@contextmanager
def _writer_lock(folder: Path) -> Iterator[None]:
    """Be the only writer of a store; the system lets go of the lock when a process dies, however it does.

    Raises:
        StoreError: there is another one.
    """
    with store_writes(folder):
        descriptor = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(descriptor, 200, 0).decode(errors="replace")
            raise StoreError(
                f"another process writes to {shown(folder)} ({shown(holder) or 'it does not say which'}); wait until "
                "it is done, or name another folder"
            ) from error
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} on {platform.node()}".encode(), 0)
        yield
    finally:
        os.close(descriptor)


def _document(rendering: RenderSettings) -> dict[str, object]:
    return {
        "version": STORE_VERSION,
        "dpi": rendering.dpi,
        "max_pixels": rendering.max_pixels,
        "image_format": rendering.image_format,
    }


def _agreed(folder: Path, rendering: RenderSettings | None) -> RenderSettings:
    """The settings, where they are the store's."""
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
    dpi, max_pixels, image_format = (document.get(name) for name in ("dpi", "max_pixels", "image_format"))
    is_valid = (dpi is None or isinstance(dpi, int | float)) and isinstance(max_pixels, int)
    if not is_valid or image_format not in get_args(ImageFormat)[1:]:
        raise StoreError(f"{shown(path)} does not say how pages were rendered; delete the store and add them again")
    try:
        own = RenderSettings(dpi=dpi, max_pixels=max_pixels, image_format=str(image_format))  # type: ignore[arg-type]
    except (ConfigError, TypeError) as error:
        raise StoreError(f"{shown(path)}: {error}") from error
    if rendering is None:
        return own
    for name in ("dpi", "max_pixels", "image_format"):
        ours, theirs = getattr(rendering, name), getattr(own, name)
        if ours != theirs:
            raise StoreError(
                f"{shown(folder)} was begun with {name}={theirs}, not {ours}; keep that, or name another folder"
            )
    return rendering
