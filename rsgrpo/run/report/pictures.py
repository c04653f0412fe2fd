"""Page images as data URIs, scaled so that the report stays small."""

from __future__ import annotations

import base64
import dataclasses
import io
from collections.abc import Iterable
from pathlib import Path

from PIL import Image

from rsgrpo.config.image_rules import ImageRules
from rsgrpo.data.images.loading import load_image
from rsgrpo.data.images.sources import ImageError
from rsgrpo.types import ImageRef

_BUDGET_BYTES = 4_500_000  # of base64 text; the whole report stays below 8 MB
_SIDES = (720, 480, 320, 200, 120, 64)  # tried from the largest until the budget holds
_JPEG_QUALITY = 78
_READ_SIDE = 4 * _SIDES[0]  # large scans are brought to this square's area first


def embed_pictures(images: Iterable[ImageRef], run_folder: Path, rules: ImageRules) -> dict[ImageRef, str]:
    """Encode every image once.

    Args:
        images: pages, repeated ones count once.
        run_folder: where to look for an image whose recorded place is gone (a run folder that was moved).
        rules: how the run read images; their bounds of size are not applied.

    Returns:
        The data URI of each image; images that cannot be read are left out.
    """
    rules = dataclasses.replace(rules, min_pixels=None, max_pixels=_READ_SIDE**2)
    opened: dict[ImageRef, Image.Image] = {}
    for image in dict.fromkeys(images):
        pixels = _open(image, run_folder, rules)
        if pixels is not None:
            opened[image] = pixels
    encoded: dict[ImageRef, str] = {}
    for side in _SIDES:
        encoded = {image: _data_uri(pixels, side) for image, pixels in opened.items()}
        if sum(map(len, encoded.values())) <= _BUDGET_BYTES:
            break
    return encoded


def _open(image: ImageRef, run_folder: Path, rules: ImageRules) -> Image.Image | None:
    recorded = Path(image.parquet_file or image.file)
    file = _find(recorded, run_folder)
    if file is None:
        return None
    found = (
        dataclasses.replace(image, parquet_file=str(file))
        if image.parquet_file
        else dataclasses.replace(image, file=str(file))
    )
    try:
        pixels = load_image(found, rules)
    except ImageError:
        return None  # the page says that the image is missing
    pixels.thumbnail((_SIDES[0], _SIDES[0]))
    return pixels


def _find(recorded: Path, run_folder: Path) -> Path | None:
    """The image file at its path, or below the run folder by the longest matching end of its path."""
    if recorded.is_file():
        return recorded
    parts = recorded.parts[1:] if recorded.is_absolute() else recorded.parts
    candidates = (run_folder.joinpath(*parts[start:]) for start in range(len(parts)))
    return next((candidate for candidate in candidates if candidate.is_file()), None)


def _data_uri(pixels: Image.Image, side: int) -> str:
    small = pixels.copy()
    small.thumbnail((side, side))
    buffer = io.BytesIO()
    # Small pages stay exact; photographs of pages are far smaller as JPEG.
    is_small = small.width * small.height <= 128 * 128
    if is_small:
        small.save(buffer, "PNG", optimize=True)
    else:
        small.save(buffer, "JPEG", quality=_JPEG_QUALITY, optimize=True)
    kind = "png" if is_small else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
