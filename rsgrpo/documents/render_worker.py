"""A worker process that surveys documents, renders their pages and stores them; it gets its tasks through a pipe.

It is started as ``python -m rsgrpo.documents.render_worker DESCRIPTOR STORE SETTINGS``. It ends when the other end of
the pipe is closed, also by the death of the process that holds it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import sys
from multiprocessing.connection import Connection
from pathlib import Path

from rsgrpo.config.documents import RenderSettings
from rsgrpo.documents.ocr import PageText, TextReader
from rsgrpo.documents.office import convert_to_pdf
from rsgrpo.documents.pdf import PdfDocument, RenderedPage
from rsgrpo.documents.pictures import PictureDocument
from rsgrpo.documents.records import DocumentError
from rsgrpo.documents.sources import FileStamp, Kind, file_kind
from rsgrpo.documents.stored_images import encode_image, is_blank, store_image
from rsgrpo.documents.tasks import (
    BadDocument,
    BadPage,
    Done,
    NoRoom,
    Ready,
    RenderPages,
    StoredPage,
    Survey,
    Surveyed,
    Task,
)
from rsgrpo.errors import shown
from rsgrpo.io.special_files import open_regular

# pdfium keeps what it has read of a document, mostly images, until it is closed: then it is opened anew.
_MAX_KEPT_BYTES = 32 << 20
_MIN_KEPT_PAGES, _MAX_KEPT_PAGES = 16, 1024


class RenderWorker:
    """Does one task after the other, and sends the answers.

    Args:
        connection: the connection to the process that sends the tasks.
        store: the folder that the page store lies in.
        settings: how pages are rendered.
    """

    def __init__(self, connection: Connection, store: Path, settings: RenderSettings) -> None:
        self._connection = connection
        self._store = store
        self._settings = settings
        self._document: PdfDocument | PictureDocument | None = None
        self._opened: tuple[int, Path] | None = None
        self._pages_left = 0
        self._reader: TextReader | None = None

    def serve(self) -> None:
        """Do tasks until the other end of the connection is closed."""
        try:
            self._connection.send(Ready())
            while True:
                task: Task = self._connection.recv()
                self._do(task)
        except (EOFError, BrokenPipeError, ConnectionResetError):
            return

    def _do(self, task: Task) -> None:
        try:
            if isinstance(task, Survey):
                self._connection.send(self._survey(task))
            else:
                self._render(task)
        except DocumentError as error:
            self._connection.send(BadDocument(reason=str(error)))
        except _StoreWriteError as error:
            self._connection.send(NoRoom(reason=str(error)))
        except (EOFError, BrokenPipeError, ConnectionResetError):
            raise
        except FileNotFoundError:
            self._connection.send(BadDocument(reason="its file is gone"))
        except OSError as error:
            self._connection.send(BadDocument(reason=f"it cannot be read ({error.strerror or shown(error, 120)})"))
        except MemoryError:
            self._connection.send(BadDocument(reason="there is not enough memory to read it"))

    def _survey(self, task: Survey) -> Surveyed:
        stamp = FileStamp.of(task.path)
        with open_regular(str(task.path)) as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        kind = file_kind(task.path)
        path = task.path
        if sha256 == task.known_sha256:
            return Surveyed(sha256=sha256, stamp=stamp, kind=kind, path=path, num_pages=0)
        if kind == "office":
            path, kind = convert_to_pdf(task.path, task.office_folder), "pdf"
        document = self._open(task.key, path, kind)
        return Surveyed(
            sha256=sha256,
            stamp=stamp,
            kind=kind,
            path=path,
            num_pages=document.num_pages,
            outline=document.outline(),
        )

    def _open(self, key: int, path: Path, kind: Kind) -> PdfDocument | PictureDocument:
        """Open a document, or return it if it is still open from the task before."""
        if self._document is not None and self._opened == (key, path) and self._pages_left > 0:
            return self._document
        if self._document is not None:
            self._document.close()
            self._document = None
        reader = PdfDocument if kind == "pdf" else PictureDocument
        document = reader(path, self._settings)
        self._document, self._opened = document, (key, path)
        kept = _MAX_KEPT_BYTES * document.num_pages // max(1, path.stat().st_size)
        self._pages_left = min(max(kept, _MIN_KEPT_PAGES), _MAX_KEPT_PAGES)
        return document

    def _render(self, task: RenderPages) -> None:
        for number in range(task.first, task.last + 1):
            document = self._open(task.key, task.path, task.kind)
            try:
                page = document.page(number)
            except DocumentError as error:
                self._connection.send(BadPage(number=number, reason=str(error)))
                continue
            except MemoryError:
                self._connection.send(BadPage(number=number, reason="there is not enough memory to render it"))
                continue
            self._pages_left -= 1
            self._connection.send(self._stored(number, page))
        self._connection.send(Done())

    def _stored(self, number: int, page: RenderedPage) -> StoredPage:
        data, suffix = (page.file, page.suffix) if page.file else encode_image(page.pixels, self._settings.image_format)
        try:
            stored = store_image(self._store, data, suffix)
        except OSError as error:
            raise _StoreWriteError(error.strerror or str(error)) from error
        is_page_blank = is_blank(page.pixels)
        text = self._text(page, stored.sha256, is_blank=is_page_blank)
        return StoredPage(
            number=number,
            image=stored.name,
            sha256=stored.sha256,
            num_bytes=stored.num_bytes,
            is_new=stored.is_new,
            width=page.pixels.shape[1],
            height=page.pixels.shape[0],
            blank=is_page_blank,
            text=text.text,
            text_origin=text.origin,
            problem=text.problem,
        )

    def _text(self, page: RenderedPage, sha256: str, *, is_blank: bool) -> PageText:
        """Take the page's text layer, or what OCR reads where there is none and it is asked."""
        if page.text.strip():
            return PageText(text=page.text, origin="text_layer")
        if self._settings.ocr == "none" or is_blank:
            return PageText(text="", origin="none")
        if self._reader is None:
            self._reader = TextReader(self._store)
        try:
            return self._reader.read(page.pixels, sha256)
        except OSError as error:
            raise _StoreWriteError(error.strerror or str(error)) from error


class _StoreWriteError(Exception):
    """An image cannot be written into the store."""


def main(arguments: list[str]) -> None:
    """Do tasks for the process at the other end of a pipe.

    Args:
        arguments: three texts: the file descriptor of the pipe, the folder of the store, and the settings as JSON.
    """
    logging.getLogger("pypdfium2").setLevel(logging.ERROR)  # odd outlines are no news to whoever indexes
    descriptor, store, settings = arguments
    worker = RenderWorker(Connection(int(descriptor)), Path(store), RenderSettings(**json.loads(settings)))
    worker.serve()


if __name__ == "__main__":
    main(sys.argv[1:])
