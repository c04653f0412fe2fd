"""Documents that visitors bring: taken in whole or not at all, judged by their content, indexed one after the other.

bytes ─► receiving/KEY/ (size) ─► what it is (content), pages ─► uploads/KEY/ ─► rendered, embedded ─► found
            └── removed whatever happens                             └── kept: marks are read off it; removed with it
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import secrets
import shutil
import unicodedata
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from recipes.serving.access import Visitor
from recipes.serving.library import Library
from recipes.serving.pdf_probe import ProbeError, Probes
from recipes.serving.refusals import PathHider, RefusedError
from recipes.serving.visible_documents import own_folder, shown_document
from rsgrpo.data.images.kinds import describe_non_image
from rsgrpo.data.inline_media import media_suffix
from rsgrpo.documents.records import IngestProgress, IngestReport
from rsgrpo.errors import RsgrpoError, shown

UploadState = Literal["waiting", "rendering", "embedding", "done", "failed"]

_HEAD_BYTES = 4096
_PDF_WITHIN = 1024
_TIFF = ".tif"  # the one kind of image whose pictures are pages
_IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".gif", _TIFF, ".webp", ".bmp", ".jp2"})
_STEM_BYTES = 200  # of a file name's 255: a number and a suffix come behind it
_ENDS = "the server ends; bring the document again when it is back"
_KEPT_UPLOADS = 500  # whose state can still be asked for
_NOT_IN_NAMES = re.compile(r"[^\w \-.,()+&@=\[\]]")


@dataclass(frozen=True, kw_only=True, slots=True)
class UploadBounds:
    """How much visitors may bring.

    Attributes:
        most_bytes: the largest file, in bytes.
        most_pages: the most pages of a document.
        waiting: how many documents may be on their way into the index, from their first byte on.
        waiting_of_one: how many of them may be one visitor's.
    """

    most_bytes: int = 100 << 20
    most_pages: int = 2000
    waiting: int = 256
    waiting_of_one: int = 64


@dataclass(kw_only=True, slots=True)
class Upload:
    """A document on its way into the index.

    Attributes:
        key: what it is found by.
        visitor: who brought it.
        name: its name, as the visitor knows it.
        state: how far it is.
        share: how much of the state's work is done, from 0 to 1.
        message: what the visitor should know.
        changed: is set, and replaced, whenever something of this changes.
    """

    key: str
    visitor: Visitor
    name: str
    state: UploadState = "waiting"
    share: float = 0.0
    message: str = ""
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def is_over(self) -> bool:
        """Whether nothing more will come."""
        return self.state in ("done", "failed")

    def json(self) -> dict[str, object]:
        """Write what a visitor sees of it."""
        return {
            "key": self.key,
            "name": self.name,
            "state": self.state,
            "share": round(self.share, 3),
            "message": self.message,
        }

    def tell(self, state: UploadState, share: float = 0.0, message: str = "") -> None:
        """Change the state, and wake whoever follows; in the event loop's thread.

        Args:
            state: how far it is.
            share: how much of the state's work is done, from 0 to 1.
            message: what the visitor should know.
        """
        self.state, self.share, self.message = state, share, message
        changed, self.changed = self.changed, asyncio.Event()
        changed.set()


def safe_name(given: str, suffix: str) -> str:
    """Make of the name that a visitor gives a file one that is no path.

    Args:
        given: the name, of which nothing is believed.
        suffix: the suffix that the content has, with the dot.

    Returns:
        A name without separators, control characters and leading dots, which ends in the suffix.

    Example:
        ``safe_name("../../etc/passwd\\0.txt", ".pdf")`` is ``"passwd_.txt.pdf"``.
    """
    last = unicodedata.normalize("NFC", given.encode("utf-8", "replace").decode()).replace("\\", "/").rpartition("/")[2]
    name = _NOT_IN_NAMES.sub("_", last).strip(" .")
    stem = name[: -len(suffix)] if name.lower().endswith(suffix) else name
    stem = stem.encode()[:_STEM_BYTES].decode(errors="ignore").strip(" .~") or "document"
    return f"{stem}{suffix}"


class UploadDesk:
    """Takes documents in, and has them indexed by one thread.

    Args:
        library: what they are added to.
        folder: the folder in which they are received and kept.
        bounds: how much visitors may bring.
        hide: takes paths out of messages.

    Attributes:
        probes: looks into files.
    """

    def __init__(self, library: Library, folder: Path, bounds: UploadBounds, hide: PathHider) -> None:
        self.bounds = bounds
        self.probes = Probes()
        self._library = library
        self._receiving = folder / "receiving"
        self._kept = folder / "uploads"
        self._hide = hide
        self._uploads: dict[str, Upload] = {}
        self._arriving: list[Visitor] = []  # of each file that is being received, whose it is
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="indexing")
        self._is_closed = False
        self._tasks: set[asyncio.Task[None]] = set()
        shutil.rmtree(self._receiving, ignore_errors=True)  # of a server that was killed

    async def take(self, visitor: Visitor, name: str, chunks: AsyncIterator[bytes]) -> Upload:
        """Receive a document, and have it indexed.

        Args:
            visitor: who brings it.
            name: its name, as the visitor gives it.
            chunks: the bytes of its file.

        Returns:
            The document on its way.

        Raises:
            RefusedError: it is too large, of no kind that is read, or too many wait.
        """
        if self._is_closed:
            raise RefusedError(_ENDS, 503)
        waiting = [*self._arriving, *(upload.visitor for upload in self._uploads.values() if not upload.is_over)]
        if self._library.has_sessions and not visitor.has_session:
            raise RefusedError("documents belong to sessions here, and there is no cookie; open the page first", 403)
        if len(waiting) >= self.bounds.waiting:
            raise RefusedError(f"{len(waiting)} documents wait to be indexed; bring this one later", 503)
        if waiting.count(visitor) >= self.bounds.waiting_of_one:
            raise RefusedError(f"{self.bounds.waiting_of_one} documents of yours wait already; bring it later", 429)
        self._arriving.append(visitor)
        try:
            return await self._received(visitor, name, chunks)
        finally:
            self._arriving.remove(visitor)

    async def _received(self, visitor: Visitor, name: str, chunks: AsyncIterator[bytes]) -> Upload:
        key = secrets.token_urlsafe(12)
        received = self._receiving / key
        try:
            received.mkdir(parents=True, mode=0o700)
            sha256 = await self._write(received / "file", chunks)
            suffix = await self._checked(received / "file")
        except BaseException:
            shutil.rmtree(received, ignore_errors=True)
            raise
        upload = Upload(key=key, visitor=visitor, name=safe_name(name, suffix))
        self._uploads[key] = upload
        for over in [key for key, old in self._uploads.items() if old.is_over][:-_KEPT_UPLOADS]:
            del self._uploads[over]
        task = asyncio.create_task(self._indexed(upload, received, sha256))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return upload

    def catch_up(self) -> None:
        """Have what a killed server left rendered, but not embedded, embedded before all that comes."""
        if self._library.is_behind:
            self._worker.submit(self._library.catch_up)

    def uploads(self, visitor: Visitor) -> list[Upload]:
        """List what a visitor has brought and is not over.

        Args:
            visitor: the visitor.
        """
        return [upload for upload in self._uploads.values() if self._sees(visitor, upload) and not upload.is_over]

    async def follow(self, visitor: Visitor, key: str) -> AsyncGenerator[Upload]:
        """Follow a document on its way.

        Args:
            visitor: who asks.
            key: the key of the document.

        Yields:
            The document after each change, the last time when it is over.

        Raises:
            RefusedError: the visitor brought no such document.
        """
        upload = self._uploads.get(key)
        if upload is None or not self._sees(visitor, upload):
            raise RefusedError("there is no such upload; it may have ended long ago", 404)
        while True:
            # Before it is handed on: while that is sent it may end, and its end must be told as well.
            changed, is_over = upload.changed, upload.is_over
            yield upload
            if is_over:
                return
            await changed.wait()

    async def remove(self, visitor: Visitor, document: str) -> None:
        """Take a document out of the index, and delete its file if it was brought here.

        Args:
            visitor: who asks.
            document: its name, as the visitor knows it.

        Raises:
            RefusedError: there is no such document, or it is not the visitor's own.
            RsgrpoError: it cannot be taken out.
        """
        found = [entry for entry in self._library.documents(visitor) if shown_document(entry.document) == document]
        own = next((entry for entry in found if entry.is_own or not self._library.has_sessions), None)
        if own is None and found:
            raise RefusedError("this document belongs to all, so no session can remove it", 403)
        if own is None:
            raise RefusedError(f"there is no document {shown(document, 80)!r}; it may be removed already", 404)
        name = own.document

        def removed() -> None:
            source = self._library.source_path(name)
            self._library.remove(name)
            if source is not None and source.is_relative_to(self._kept.absolute()):
                shutil.rmtree(self._kept / source.relative_to(self._kept.absolute()).parts[0], ignore_errors=True)

        await asyncio.get_running_loop().run_in_executor(self._worker, removed)

    def stop(self) -> None:
        """Take nothing more, and break off what is being looked into or rendered."""
        self._is_closed = True
        self.probes.close()

    def close(self) -> None:
        """Stop, and delete what has not come whole."""
        self.stop()
        self._worker.shutdown(wait=False, cancel_futures=True)
        shutil.rmtree(self._receiving, ignore_errors=True)

    def _sees(self, visitor: Visitor, upload: Upload) -> bool:
        return not self._library.has_sessions or upload.visitor == visitor

    async def _write(self, path: Path, chunks: AsyncIterator[bytes]) -> str:
        digest, num_bytes = hashlib.sha256(), 0
        with path.open("xb") as file:
            async for chunk in chunks:
                num_bytes += len(chunk)
                if num_bytes > self.bounds.most_bytes:
                    most = self.bounds.most_bytes / (1 << 20)
                    raise RefusedError(f"the file is larger than {most:g} MiB, the most that is taken; split it", 413)
                digest.update(chunk)
                await asyncio.to_thread(file.write, chunk)
        return digest.hexdigest()

    async def _checked(self, path: Path) -> str:
        """Say what suffix a file has by its content.

        Raises:
            RefusedError: it is of no kind that is read, or has too many pages.
        """
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
        if b"%PDF-" not in head[:_PDF_WITHIN]:
            suffix = media_suffix(head)
            if suffix not in _IMAGE_SUFFIXES:
                raise RefusedError(f"the file is {describe_non_image(head)[0]}; bring a PDF, or images of pages", 415)
            if suffix != _TIFF:
                return suffix
            what, counted = "file", self.probes.count_pictures(path)
        else:
            what, suffix, counted = "PDF", ".pdf", self.probes.count_pages(path)
        try:
            num_pages = await counted
        except ProbeError as error:
            if self._is_closed:
                raise RefusedError(_ENDS, 503) from None
            raise RefusedError(f"the {what} cannot be read: {self._hide(str(error))}", 422) from None
        if num_pages > self.bounds.most_pages:
            raise RefusedError(
                f"the {what} has {num_pages:,} pages, more than {self.bounds.most_pages:,}, the most that are taken",
                413,
            )
        return suffix

    async def _indexed(self, upload: Upload, received: Path, sha256: str) -> None:
        loop = asyncio.get_running_loop()

        def tell(state: UploadState, share: float = 0.0, message: str = "") -> None:
            with suppress(RuntimeError):  # the loop has ended before the thread
                loop.call_soon_threadsafe(upload.tell, state, share, message)

        try:
            message = await loop.run_in_executor(self._worker, self._add, upload, received, sha256, tell)
            upload.tell("done", 1.0, message)
        except RsgrpoError as error:
            upload.tell("failed", message=self._hide(str(error)))
        except Exception:  # a mistake of ours: its visitor must not wait for ever, and it goes on to the log
            upload.tell("failed", message="the server made a mistake with this document; its log says which")
            raise
        finally:
            shutil.rmtree(received, ignore_errors=True)

    def _add(self, upload: Upload, received: Path, sha256: str, tell: Callable[[UploadState, float, str], None]) -> str:
        """Add a received file to the library; returns what its visitor should know."""
        folder = f"{own_folder(upload.visitor)}/" if self._library.has_sessions else ""
        name, is_there = self._library.stored_name(f"{folder}{upload.name}", sha256)
        if is_there:
            return f"{shown_document(name)} is there already"
        place = self._kept / upload.key
        try:
            (place / name).parent.mkdir(parents=True, mode=0o700)
            (received / "file").rename(place / name)

            def rendering(progress: IngestProgress) -> None:
                if self._is_closed:
                    raise RefusedError("the server ended meanwhile; bring the document again", 503)
                tell("rendering", progress.share, f"{progress.pages} pages rendered")

            def embedding(num_embedded: int, num_wanted: int) -> None:
                tell("embedding", num_embedded / num_wanted, f"{num_embedded} of {num_wanted} pages embedded")

            rendered, _ = self._library.add(place, rendering, embedding)
            if rendered.refused:
                raise RefusedError(rendered.refused[0].reason)
            if not self._library.has(name):
                raise RefusedError(_why_nothing(rendered))
        except BaseException:
            shutil.rmtree(place, ignore_errors=True)
            raise
        return _told(shown_document(name), rendered)


def _why_nothing(report: IngestReport) -> str:
    if report.left_out_pages:
        return f"no page of it could be read ({report.left_out_pages[0].reason}), so nothing was added"
    return "every page is blank, so nothing was added"


def _told(name: str, report: IngestReport) -> str:
    parts = [f"{name}: {report.pages} pages"]
    if report.blank_pages:
        parts.append(f"{len(report.blank_pages)} blank ones left out")
    if report.left_out_pages:
        first = report.left_out_pages[0]
        parts.append(f"{len(report.left_out_pages)} could not be read, first {shown_document(first.name)}")
    return ", ".join(parts)
