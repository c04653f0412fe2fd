"""Read the text of page images by rapidocr (PP-OCRv6 through onnxruntime), which only this module imports.

A text is kept in the store under the hash of its image, ``ocr/ab/abcd….txt``: the same image is read once, whichever
documents show it, and a killed run goes on at the page where it was.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from rsgrpo.config.documents import OcrEngine
from rsgrpo.documents.pdf import plain_text
from rsgrpo.documents.records import TextOrigin
from rsgrpo.documents.stored_images import WRITING, Pixels
from rsgrpo.errors import RsgrpoError, shown

OCR_TEXTS = "ocr"
"""Folder of a store with what OCR read, one file for each image."""

_PACKAGES = ("rapidocr", "onnxruntime")
_MIN_SIDE = 8  # pixels; no script can be read in fewer, and rapidocr fails on strips of one or two

Ocr = Callable[[Pixels], str]
"""Reads the text in pixels, [height, width, 3] uint8, red, green and blue; lines are parted by line breaks."""


class OcrError(RsgrpoError):
    """Pages cannot be read by OCR; the message says why, and the way out."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PageText:
    """The text of a page.

    Attributes:
        text: the text; empty: there is none.
        origin: where it is from.
        problem: why OCR could not read the page; empty: it did, or was not asked.
    """

    text: str
    origin: TextOrigin
    problem: str = ""


def check_ocr(engine: OcrEngine) -> None:
    """Refuse an OCR whose packages are not installed; nothing is imported for it.

    Args:
        engine: the value of ``documents.ocr``.

    Raises:
        OcrError: a package is missing; the message says how to install it.
    """
    if engine == "none":
        return
    missing = [name for name in _PACKAGES if find_spec(name) is None]
    if missing:
        raise OcrError(
            f"documents.ocr={engine} needs {' and '.join(missing)}; install it with uv sync --extra ocr, or leave "
            "documents.ocr out: pages without a text layer are then found by their image alone"
        )


def ocr_name(engine: OcrEngine) -> str:
    """Name an OCR with its version, as the store notes it; empty: none reads.

    Args:
        engine: the value of ``documents.ocr``.
    """
    if engine == "none":
        return ""
    try:
        return f"{engine} {version(engine)}"
    except PackageNotFoundError:  # as where a test brings its own
        return engine


class TextReader:
    """Reads page images, and keeps what it read in their store.

    Args:
        store: the folder that the store lies in, which contains a folder for incomplete files.
        make_ocr: the function that loads the models, called at the first image that was not read before; None:
            rapidocr's.
    """

    def __init__(self, store: Path, make_ocr: Callable[[], Ocr] | None = None) -> None:
        self._store = store
        self._make_ocr = make_ocr or rapid_ocr
        self._ocr: Ocr | None = None

    def read(self, pixels: Pixels, sha256: str) -> PageText:
        """Read a page, or look up what was read in the same image before.

        Args:
            pixels: the colours, [height, width, 3] uint8, red, green and blue.
            sha256: the SHA-256 of the stored image file, 64 hexadecimal digits.

        Returns:
            The text, empty where there is nothing to read; with ``problem`` where reading failed.

        Raises:
            OSError: the disk is full.
        """
        file = self._store / OCR_TEXTS / sha256[:2] / f"{sha256}.txt"
        try:
            return PageText(text=file.read_bytes().decode(), origin="ocr")
        except (FileNotFoundError, UnicodeDecodeError):
            pass
        if self._ocr is None:
            self._ocr = self._make_ocr()
        try:
            text = plain_text(self._ocr(pixels)) if min(pixels.shape[:2]) >= _MIN_SIDE else ""
        except Exception as error:  # whatever the engine raises: the page is there all the same
            return PageText(text="", origin="ocr", problem=f"OCR failed ({shown(error, 120) or type(error).__name__})")
        _write(file, text, self._store / WRITING)
        return PageText(text=text, origin="ocr")


def rapid_ocr() -> Ocr:
    """Load rapidocr's models, which its wheel brings, for one thread.

    Returns:
        The function that reads pixels; lines come from top to bottom.
    """
    from rapidocr import RapidOCR  # here: it takes a second, and is an extra

    engine: Any = RapidOCR(
        params={
            "Global.log_level": "critical",  # it says of every page without text that there is none
            "EngineConfig.onnxruntime.intra_op_num_threads": 1,  # every core has its own process
            "EngineConfig.onnxruntime.inter_op_num_threads": 1,
        }
    )

    def read(pixels: Pixels) -> str:
        found = engine(np.ascontiguousarray(pixels[:, :, ::-1]))  # it takes blue, green, red
        return "\n".join(found.txts or ())

    return read


def _write(file: Path, text: str, writing: Path) -> None:
    """Write a text whole or not at all; a process that is killed leaves no file of half a text."""
    partial = writing / uuid.uuid4().hex
    try:
        partial.write_bytes(text.encode())
        file.parent.mkdir(parents=True, exist_ok=True)
        partial.replace(file)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
