"""Look into a file in a process of its own: what a hostile file breaks is that process.

python -m recipes.serving.pdf_probe count FILE          {"pages": 12}, of a PDF file
python -m recipes.serving.pdf_probe pictures FILE       {"pages": 12}, of a TIFF file
python -m recipes.serving.pdf_probe words FILE PAGE     {"words": [["Total", 0.1, 0.2, 0.15, 0.22], …]}, of a PDF file
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from rsgrpo.documents.records import PlacedWord
from rsgrpo.types import Box

_SECONDS = 30
_AT_ONCE = 2
_MEMORY_BYTES = 4 << 30
_EDGES = ("left", "top", "right", "bottom")
# All that Python needs to start. Tokens and keys of the server are not among it: a hostile file must not find them.
_ENVIRONMENT = frozenset({"HOME", "LANG", "LC_ALL", "LC_CTYPE", "LD_LIBRARY_PATH", "PATH", "PYTHONPATH", "TMPDIR"})


class ProbeError(Exception):
    """A file cannot be looked into; the message is a phrase about it."""


class Probes:
    """Looks into files, a few at a time, in threads of its own: however slow they are, nothing else waits for them."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="probe")
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen[bytes]] = set()
        self._closing = threading.Event()

    async def count_pages(self, path: Path) -> int:
        """Count the pages of a PDF file.

        Args:
            path: the path of the file.

        Raises:
            ProbeError: it cannot be read; the message says why.
        """
        return int((await self._probed("count", str(path)))["pages"])

    async def count_pictures(self, path: Path) -> int:
        """Count the pictures of a TIFF file, each of which is a page; a damaged one counts as one picture.

        Args:
            path: the path of the file.

        Raises:
            ProbeError: it cannot be read; the message says why.
        """
        return int((await self._probed("pictures", str(path)))["pages"])

    async def page_words(self, path: Path, page_number: int) -> tuple[PlacedWord, ...]:
        """Read the words of a page's text layer with their places.

        Args:
            path: the path of the PDF file.
            page_number: the number of the page, from 1.

        Raises:
            ProbeError: they cannot be read; the message says why.
        """
        found = (await self._probed("words", str(path), str(page_number)))["words"]
        return tuple(
            PlacedWord(text=text, box=Box(left=left, top=top, right=right, bottom=bottom))
            for text, left, top, right, bottom in found
        )

    def close(self) -> None:
        """Break off what is being looked into, and look into nothing more."""
        with self._lock:
            self._closing.set()
            for process in self._running:
                process.kill()
        self._threads.shutdown(wait=False)

    async def _probed(self, *arguments: str) -> dict[str, Any]:
        if self._closing.is_set():
            raise ProbeError("the server ends")
        answer = await asyncio.get_running_loop().run_in_executor(self._threads, self._run, arguments)
        if "problem" in answer:
            raise ProbeError(answer["problem"])
        return answer

    def _run(self, arguments: Sequence[str]) -> dict[str, Any]:
        root = Path(__file__).resolve().parents[2]
        with self._lock:
            if self._closing.is_set():
                return {"problem": "the server ends"}
            process = subprocess.Popen(
                [sys.executable, "-m", "recipes.serving.pdf_probe", *arguments],
                cwd=root,
                env={name: value for name, value in os.environ.items() if name in _ENVIRONMENT},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
            self._running.add(process)
        try:
            with process:
                try:
                    told, _ = process.communicate(timeout=_SECONDS)
                except subprocess.TimeoutExpired:
                    return {"problem": f"it takes longer than {_SECONDS} seconds to open"}
                finally:
                    process.kill()
        finally:
            with self._lock:
                self._running.discard(process)
        if self._closing.is_set():
            return {"problem": "the server ends"}
        try:
            return dict(json.loads(told))
        except ValueError:
            return {"problem": "the reader died of it; save it anew with another program"}


def _main(arguments: Sequence[str]) -> None:
    from rsgrpo.config.documents import RenderSettings
    from rsgrpo.documents.pdf import PdfDocument
    from rsgrpo.documents.records import DocumentError

    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    what, path = arguments[0], Path(arguments[1])
    try:
        if what == "count":
            print(json.dumps({"pages": PdfDocument(path, RenderSettings()).num_pages}))
        elif what == "pictures":
            print(json.dumps({"pages": _num_pictures(path)}))
        else:
            words = PdfDocument(path, RenderSettings()).words(int(arguments[2]))
            told = [(word.text, *(round(getattr(word.box, edge), 4) for edge in _EDGES)) for word in words]
            print(json.dumps({"words": told}))
    except (DocumentError, OSError, MemoryError) as error:
        problem = str(error) if isinstance(error, DocumentError) else "it cannot be read"
        print(json.dumps({"problem": problem}))


def _num_pictures(path: Path) -> int:
    from rsgrpo.data.images.headers import DECODING_ERRORS, open_image

    try:
        return open_image(path.read_bytes()).facts.num_frames
    except DECODING_ERRORS:
        return 1  # what is wrong with it is said where it is rendered


if __name__ == "__main__":
    _main(sys.argv[1:])
