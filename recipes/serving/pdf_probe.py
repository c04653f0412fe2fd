"""Look into a PDF file in a process of its own: what a hostile file breaks is that process.

python -m recipes.serving.pdf_probe count FILE          {"pages": 12}
python -m recipes.serving.pdf_probe words FILE PAGE     {"words": [["Total", 0.1, 0.2, 0.15, 0.22], …]}
"""

from __future__ import annotations

import ctypes
import json
import resource
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rsgrpo.types import Box

_SECONDS = 30
_MEMORY_BYTES = 4 << 30
_MAX_WORDS = 20_000
_SCALE = 10_000  # pdfium gives whole numbers of pixels; of a page this large they are shares


class ProbeError(Exception):
    """A PDF file cannot be looked into; the message is a phrase about it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PageWord:
    """A word of a page's text layer.

    Attributes:
        text: the word.
        box: where it stands.
    """

    text: str
    box: Box


def count_pages(path: Path) -> int:
    """Count the pages of a PDF file.

    Args:
        path: the path of the file.

    Raises:
        ProbeError: it cannot be read; the message says why.
    """
    return int(_probed("count", str(path))["pages"])


def page_words(path: Path, page_number: int) -> list[PageWord]:
    """Read the words of a page's text layer with their places.

    Args:
        path: the path of the PDF file.
        page_number: the number of the page, from 1.

    Raises:
        ProbeError: they cannot be read; the message says why.
    """
    found = _probed("words", str(path), str(page_number))["words"]
    return [
        PageWord(text=text, box=Box(left=left, top=top, right=right, bottom=bottom))
        for text, left, top, right, bottom in found
    ]


def _probed(*arguments: str) -> dict[str, Any]:
    root = Path(__file__).resolve().parents[2]
    try:
        ended = subprocess.run(
            [sys.executable, "-m", "recipes.serving.pdf_probe", *arguments],
            cwd=root,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_SECONDS,
            start_new_session=True,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ProbeError(f"it takes longer than {_SECONDS} seconds to open") from None
    try:
        answer = json.loads(ended.stdout)
    except ValueError:
        raise ProbeError("the reader died of it; save it anew with another program") from None
    if "problem" in answer:
        raise ProbeError(answer["problem"])
    return dict(answer)


def _main(arguments: Sequence[str]) -> None:
    from rsgrpo.config.documents import RenderSettings
    from rsgrpo.documents.pdf import PdfDocument
    from rsgrpo.documents.records import DocumentError

    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    what, path = arguments[:2]
    try:
        if what == "count":
            print(json.dumps({"pages": PdfDocument(Path(path), RenderSettings()).num_pages}))
        else:
            print(json.dumps({"words": list(_words(path, int(arguments[2])))}))
    except (DocumentError, OSError, MemoryError) as error:
        problem = str(error) if isinstance(error, DocumentError) else "it cannot be read"
        print(json.dumps({"problem": problem}))


def _words(path: str, page_number: int) -> Iterator[tuple[str, float, float, float, float]]:
    """Read the words of a page, with the left, upper, right and lower edge of each as shares of the page."""
    import pypdfium2

    page = pypdfium2.PdfDocument(path)[page_number - 1]
    layer = page.get_textpage()
    word, boxes = "", list[tuple[float, float, float, float]]()
    num_words = 0
    for index in range(layer.count_chars() + 1):
        is_behind = index == layer.count_chars()
        character = " " if is_behind else layer.get_text_range(index, 1, errors="replace")
        if character.strip():
            word += character
            boxes.append(_shares(page, layer.get_charbox(index)))
            continue
        if word and num_words < _MAX_WORDS:
            num_words += 1
            lefts, tops, rights, bottoms = zip(*boxes, strict=True)
            yield word, min(lefts), min(tops), max(rights), max(bottoms)
        word, boxes = "", []


def _shares(page: object, box: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
    """Turn a character's box from the PDF's coordinates into shares of the page as it is rendered."""
    from pypdfium2 import raw

    left, bottom, right, top = box
    corners = []
    for across, up in ((left, top), (right, bottom)):
        found_x, found_y = ctypes.c_int(), ctypes.c_int()
        raw.FPDF_PageToDevice(page, 0, 0, _SCALE, _SCALE, 0, across, up, found_x, found_y)
        corners.append((found_x.value / _SCALE, found_y.value / _SCALE))
    (x, y), (other_x, other_y) = corners
    held = [min(1.0, max(0.0, share)) for share in (min(x, other_x), min(y, other_y), max(x, other_x), max(y, other_y))]
    return held[0], held[1], held[2], held[3]


if __name__ == "__main__":
    _main(sys.argv[1:])
