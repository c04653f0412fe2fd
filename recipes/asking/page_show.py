"""The pages of an answer in a browser: one file with the pages, and beside each what the answer says of it."""

from __future__ import annotations

import html
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

from recipes.asking.answer_view import page_told
from rsgrpo.answering.records import Answered
from rsgrpo.types import ImageRef

_STYLE = """
body { font: 16px sans-serif; margin: 2em auto; max-width: 60em; padding: 0 1em; }
img { max-width: 100%; border: 1px solid #888; } figure { margin: 2em 0; }
@media (prefers-color-scheme: dark) { body { background: #181818; color: #eee; } }
"""


def show_pages(answered: Answered, image_url: Callable[[ImageRef], str]) -> Path:
    """Write the pages of an answer to a file that a browser shows, and open it where there is a display.

    Args:
        answered: the answer.
        image_url: gives a page's data URL.

    Returns:
        The file, which stays.

    Raises:
        ImageError: a page cannot be read.
    """
    text = page_document(answered, image_url)
    descriptor, name = tempfile.mkstemp(prefix="rsgrpo-pages-", suffix=".html")
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
    opener = shutil.which("xdg-open")
    if opener and (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        subprocess.Popen([opener, name], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return Path(name)


def page_document(answered: Answered, image_url: Callable[[ImageRef], str]) -> str:
    """Write the pages of an answer as HTML; whatever pages and answer say is shown as text.

    Args:
        answered: the answer.
        image_url: gives a page's data URL.

    Raises:
        ImageError: a page cannot be read.
    """
    figures = []
    for page in answered.pages:
        lines = [line for line in answered.evidence if line.number == page.number]
        told = "".join(f"<p>{html.escape(line.text)}</p>" for line in lines)
        name = html.escape(f"[{page.number}] {page_told(page)}{'' if page.is_shown else ' (left out by the filter)'}")
        figures.append(
            f'<figure><figcaption><b>{name}</b>{told}</figcaption><img src="{image_url(page.image)}"></figure>'
        )
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        f"<title>{html.escape(answered.question)}</title><style>{_STYLE}</style>"
        f"<h1>{html.escape(answered.question)}</h1><p><b>{html.escape(answered.answer)}</b></p>"
        f"{''.join(figures)}</html>\n"
    )
