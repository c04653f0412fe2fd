"""MileBench's combined images: many pictures on few canvases, each with its number."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from rsgrpo.config.image_rules import ImageRules
from rsgrpo.data.images.headers import DECODING_ERRORS, open_image
from rsgrpo.data.images.loading import read_image, reading_fingerprint
from rsgrpo.io.atomic_files import replacing
from rsgrpo.types import ImageRef

CELL_PIXELS = 800
"""The width and height in pixels that every picture is brought to; its own proportions are lost, as in the original."""

_CAPTION_PIXELS = 48
_JPEG_QUALITY = 95


@dataclass(frozen=True, kw_only=True, slots=True)
class Canvas:
    """One combined image.

    Attributes:
        file_name: the name of the file: ``<sample id>-<index of the canvas>.jpg``.
        first: the 0-based index of its first picture.
        count: how many pictures are on it, row by row.
        columns: how many columns the grid has.
        rows: how many rows the grid has.
    """

    file_name: str
    first: int
    count: int
    columns: int
    rows: int

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the canvas, in pixels."""
        return self.columns * CELL_PIXELS, self.rows * CELL_PIXELS

    @property
    def captions(self) -> tuple[str, ...]:
        """The texts below its pictures, which are counted from 1 over all canvases."""
        return tuple(f"Image {self.first + index + 1}" for index in range(self.count))


def combine_grid(sample_id: str, num_images: int, max_canvases: int) -> tuple[Canvas, ...]:
    """Lay pictures out on at most ``max_canvases`` canvases, consecutive ones together.

    Args:
        sample_id: the id of the sample, which goes into the file names.
        num_images: how many pictures are combined.
        max_canvases: the most canvases, at least 1.

    Returns:
        The canvases, in order; none if there are no pictures.

    Example:
        Five pictures on at most two canvases: 3 on a 2 × 2 grid (1600×1600), 2 on a 2 × 1 grid (1600×800).
    """
    if not num_images:
        return ()
    per_canvas = (num_images - 1) // max_canvases + 1
    canvases = []
    for index, first in enumerate(range(0, num_images, per_canvas)):
        count = min(per_canvas, num_images - first)
        columns = math.isqrt(count - 1) + 1
        canvases.append(
            Canvas(
                file_name=f"{sample_id}-{index}.jpg",
                first=first,
                count=count,
                columns=columns,
                rows=-(-count // columns),
            )
        )
    return tuple(canvases)


def combine_images(
    sample_id: str, images: Sequence[ImageRef], max_canvases: int, folder: Path, rules: ImageRules
) -> tuple[ImageRef, ...]:
    """Draw the canvases of one sample; those that were drawn by the same rules already are left as they are.

    Args:
        sample_id: the id of the sample, which goes into the file names.
        images: the pictures to combine.
        max_canvases: the most canvases, at least 1.
        folder: the folder to draw in, made if need be.
        rules: how pictures are read; the canvas decides on their sizes.

    Returns:
        References to the files of the canvases, in order.

    Raises:
        ImageError: a picture cannot be read.
    """
    folder.mkdir(parents=True, exist_ok=True)
    combined = []
    for canvas in combine_grid(sample_id, len(images), max_canvases):
        file = folder / canvas.file_name
        drawn_by = reading_fingerprint(rules.full_size)
        if not _is_drawn(file, drawn_by):
            _draw(canvas, images, file, rules, drawn_by)
        combined.append(ImageRef(path=f"{folder.name}/{canvas.file_name}", file=str(file)))
    return tuple(combined)


def _is_drawn(file: Path, drawn_by: str) -> bool:
    """Whether the canvas is there, and shows pictures as they would be read now."""
    try:
        canvas = open_image(file.read_bytes()).image
    except DECODING_ERRORS:
        return False
    return canvas.info.get("comment") == drawn_by.encode()


def _draw(canvas: Canvas, images: Sequence[ImageRef], file: Path, rules: ImageRules, drawn_by: str) -> None:
    sheet = Image.new("RGB", canvas.size)
    font = ImageFont.load_default(_CAPTION_PIXELS)
    draw = ImageDraw.Draw(sheet)
    for index, caption in enumerate(canvas.captions):
        left, top = index % canvas.columns * CELL_PIXELS, index // canvas.columns * CELL_PIXELS
        image = read_image(images[canvas.first + index], rules)
        sheet.paste(image.resize((CELL_PIXELS, CELL_PIXELS), Image.Resampling.LANCZOS), (left, top))
        _, _, width, height = draw.textbbox((0, 0), caption, font=font)
        bottom = top + CELL_PIXELS
        draw.rectangle((left, bottom - height - 16, left + CELL_PIXELS, bottom), fill="black")
        draw.text((left + (CELL_PIXELS - width) / 2, bottom - height - 8), caption, fill="white", font=font)
    with replacing(file, is_cache=True) as canvas_file:
        sheet.save(canvas_file, format="JPEG", quality=_JPEG_QUALITY, comment=drawn_by)
