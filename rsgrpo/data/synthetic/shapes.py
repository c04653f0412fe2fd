"""White pages with coloured shapes whose boxes are known to the pixel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from rsgrpo.types import Box

COLOURS = {"red": (214, 40, 40), "blue": (40, 80, 220), "green": (30, 150, 60), "yellow": (240, 200, 20)}
FORMS = ("circle", "square", "triangle")
KINDS = tuple((colour, form) for colour in COLOURS for form in FORMS)
"""Every shape that there is, as colour and form."""

_CELLS = 2  # shapes a row and a column at most; each has a cell of its own, so none covers another
_SMALLEST, _LARGEST = 0.5, 0.9  # side of a shape as a share of its cell's


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """A shape on a page.

    Attributes:
        colour: the name of the colour, a key of ``COLOURS``.
        form: the name of the form, one of ``FORMS``.
        box: the smallest rectangle that holds the shape's pixels, in whole pixels: left, top, right, bottom (the last
            two lie behind the last pixel).
    """

    colour: str
    form: str
    box: tuple[int, int, int, int]

    @property
    def name(self) -> str:
        """The name of the shape, such as ``red circle``."""
        return f"{self.colour} {self.form}"

    def share(self, image_pixels: int, image_index: int) -> Box:
        """The shape's box as shares of the image."""
        left, top, right, bottom = (side / image_pixels for side in self.box)
        return Box(left=left, top=top, right=right, bottom=bottom, image_index=image_index)


def place(kinds: Sequence[tuple[str, str]], image_pixels: int, rng: np.random.Generator) -> tuple[Shape, ...]:
    """Give shapes places and sizes on a page.

    Args:
        kinds: colour and form of each, at most four.
        image_pixels: the side of the square image, in pixels.
        rng: the generator that draws cells and sizes.

    Raises:
        ValueError: there are more shapes than cells.
    """
    if len(kinds) > _CELLS**2:
        raise ValueError(f"a page has room for {_CELLS**2} shapes, not {len(kinds)}")
    cell = image_pixels // _CELLS
    shapes = []
    for (colour, form), index in zip(kinds, rng.permutation(_CELLS**2), strict=False):
        side = int(cell * rng.uniform(_SMALLEST, _LARGEST))
        column, row = int(index) % _CELLS, int(index) // _CELLS
        left = column * cell + int(rng.integers(0, cell - side + 1))
        top = row * cell + int(rng.integers(0, cell - side + 1))
        shapes.append(Shape(colour=colour, form=form, box=(left, top, left + side, top + side)))
    return tuple(shapes)


def draw(shapes: Sequence[Shape], image_pixels: int) -> Image.Image:
    """Draw an image with the shapes on white."""
    image = Image.new("RGB", (image_pixels, image_pixels), (255, 255, 255))
    pen = ImageDraw.Draw(image)
    for shape in shapes:
        left, top, right, bottom = shape.box
        last_x, last_y = right - 1, bottom - 1  # PIL's rectangles hold their last pixel
        fill = COLOURS[shape.colour]
        if shape.form == "circle":
            pen.ellipse((left, top, last_x, last_y), fill=fill)
        elif shape.form == "square":
            pen.rectangle((left, top, last_x, last_y), fill=fill)
        else:
            pen.polygon(((left, last_y), (last_x, last_y), ((left + last_x) // 2, top)), fill=fill)
    return image
