"""Real pictures for haystacks: the stamps of Debian's package tuxpaint-stamps-default, each with a handwritten digit.

The package (GPL-2, 161 MB) holds 785 pictures, of which 674 have an English caption of their own. It is fetched with
``apt-get download`` into a folder that the user names, and nothing of it is kept in the repository.
"""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from rsgrpo.data.synthetic.scans import INK, scan_mask
from rsgrpo.errors import RsgrpoError

PACKAGE = "tuxpaint-stamps-default"
PAGE_PIXELS = 84
"""Width and height of a page: 3 × 3 tokens of a Qwen2.5-VL."""
LOW_PIXELS = 56
"""Width and height of a page in the low-resolution pass: 2 × 2 tokens."""

_DIGIT_PIXELS = 28
_PICTURE_WIDTH, _PICTURE_HEIGHT = 84, 56
_KEPT_PIXELS = 96  # of a picture's longer side in memory
_MAX_CROP_FRAC = 0.08
_MIN_SCALE = 0.75
_MAX_CAPTION_WORDS = 3
_MIN_LETTERS = 3  # of a word that can tell captions apart


@dataclass(frozen=True, kw_only=True, slots=True)
class Stamp:
    """A picture of the collection.

    Attributes:
        caption: the first line of the text file beside the picture, which is English and unique in the collection.
        picture: the picture, scaled down to 96 pixels at most, RGBA.
    """

    caption: str
    picture: Image.Image


def fetch_stamps(folder: Path) -> Path:
    """Download and unpack the package, unless the folder holds it already.

    Args:
        folder: the folder that gets the package and ``unpacked``.

    Returns:
        The folder of the pictures.

    Raises:
        RsgrpoError: apt or dpkg failed; the message has what they say.
    """
    unpacked = folder / "unpacked"
    pictures = unpacked / "usr" / "share" / "tuxpaint" / "stamps"
    if pictures.is_dir():
        return pictures
    folder.mkdir(parents=True, exist_ok=True)
    if not list(folder.glob(f"{PACKAGE}_*.deb")):
        _run(["apt-get", "download", PACKAGE], folder)
    archive = max(folder.glob(f"{PACKAGE}_*.deb"))
    partial = folder / "partial"
    _run(["dpkg-deb", "-x", str(archive), str(partial)], folder)
    partial.rename(unpacked)
    return pictures


def _run(command: list[str], folder: Path) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RsgrpoError(
            f"{' '.join(command)} failed: {done.stderr.strip()[-300:]}; put {PACKAGE}_*.deb into {folder}"
        )


@lru_cache(maxsize=1)
def read_stamps(pictures: Path) -> tuple[Stamp, ...]:
    """Read every picture that has a caption, the first one of each caption, in the order of their paths."""
    found: dict[str, Stamp] = {}
    for file in sorted(pictures.rglob("*.png")):
        text = file.with_suffix(".txt")
        lines = text.read_text(encoding="utf-8", errors="replace").splitlines() if text.is_file() else []
        caption = lines[0].strip() if lines else ""
        if caption and caption not in found:
            picture = Image.open(file).convert("RGBA")
            picture.thumbnail((_KEPT_PIXELS, _KEPT_PIXELS), Image.Resampling.LANCZOS)
            found[caption] = Stamp(caption=caption, picture=picture)
    return tuple(found.values())


def told_apart(captions: Sequence[str]) -> list[int]:
    """Choose captions of three words at most that hold a word which no other caption holds.

    So a question has one right page: of "A dolphin.", "Two dolphins." and "A dolphin jumping." the first is left out.
    Words are compared from three letters on, which leaves out "The letter q." and "The letter r." both.

    Args:
        captions: the captions of the whole collection.

    Returns:
        The indexes of the chosen ones, ascending.
    """
    words = [
        {word for word in re.findall(r"[^\W\d_]+", caption.lower()) if len(word) >= _MIN_LETTERS}
        for caption in captions
    ]
    counts = Counter(word for found in words for word in found)
    return [
        index
        for index, (caption, found) in enumerate(zip(captions, words, strict=True))
        if len(caption.split()) <= _MAX_CAPTION_WORDS and any(counts[word] == 1 for word in found)
    ]


def draw_stamp(stamp: Stamp, scan: int, rng: np.random.Generator) -> Image.Image:
    """Draw a page: the picture on tinted paper above, the handwritten digit below on the right.

    Args:
        stamp: the picture.
        scan: the index of the digit in scikit-learn's data.
        rng: the generator of scale, crop, mirror, place and paper.

    Returns:
        The RGB page, ``PAGE_PIXELS`` wide and high.
    """
    picture = stamp.picture
    width, height = picture.size
    left, top, right, bottom = rng.uniform(0.0, _MAX_CROP_FRAC, 4)  # shares cut off at each side
    picture = picture.crop(
        (round(left * width), round(top * height), round((1 - right) * width), round((1 - bottom) * height))
    )
    if rng.random() < 0.5:
        picture = ImageOps.mirror(picture)
    scale = min(_PICTURE_WIDTH / picture.width, _PICTURE_HEIGHT / picture.height) * rng.uniform(_MIN_SCALE, 1.0)
    size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    picture = picture.resize(size, Image.Resampling.BICUBIC)
    page = Image.new("RGB", (PAGE_PIXELS, PAGE_PIXELS), tuple(int(part) for part in rng.integers(225, 256, 3)))
    place = (int(rng.integers(0, _PICTURE_WIDTH - size[0] + 1)), int(rng.integers(0, _PICTURE_HEIGHT - size[1] + 1)))
    page.paste(picture, place, mask=picture)
    digit = scan_mask(scan, _DIGIT_PIXELS)
    corner = PAGE_PIXELS - _DIGIT_PIXELS
    page.paste(Image.new("RGB", digit.size, INK), (corner - int(rng.integers(0, 3)), corner), mask=digit)
    return page
