"""Look into a PDF file in a process of its own: what a hostile file breaks is that process.

python -m recipes.serving.pdf_probe count FILE          {"pages": 12}
python -m recipes.serving.pdf_probe words FILE PAGE     {"words": [["Total", 0.1, 0.2, 0.15, 0.22], …]}
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rsgrpo.documents.records import PlacedWord
from rsgrpo.types import Box

_SECONDS = 30
_MEMORY_BYTES = 4 << 30
_EDGES = ("left", "top", "right", "bottom")


class ProbeError(Exception):
    """A PDF file cannot be looked into; the message is a phrase about it."""


def count_pages(path: Path) -> int:
    """Count the pages of a PDF file.

    Args:
        path: the path of the file.

    Raises:
        ProbeError: it cannot be read; the message says why.
    """
    return int(_probed("count", str(path))["pages"])


def page_words(path: Path, page_number: int) -> list[PlacedWord]:
    """Read the words of a page's text layer with their places.

    Args:
        path: the path of the PDF file.
        page_number: the number of the page, from 1.

    Raises:
        ProbeError: they cannot be read; the message says why.
    """
    found = _probed("words", str(path), str(page_number))["words"]
    return [
        PlacedWord(text=text, box=Box(left=left, top=top, right=right, bottom=bottom))
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
            words = PdfDocument(Path(path), RenderSettings()).words(int(arguments[2]))
            told = [(word.text, *(round(getattr(word.box, edge), 4) for edge in _EDGES)) for word in words]
            print(json.dumps({"words": told}))
    except (DocumentError, OSError, MemoryError) as error:
        problem = str(error) if isinstance(error, DocumentError) else "it cannot be read"
        print(json.dumps({"problem": problem}))


if __name__ == "__main__":
    _main(sys.argv[1:])
