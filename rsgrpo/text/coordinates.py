"""Boxes in the three ways that the field writes them.

* Shares of width and height, 0 to 1: what a :class:`Box` holds, and MIG-Bench.
* Per mille, whole numbers 0 to 1000: Qwen2-VL's box tokens and MGrounding-630k.
* Pixels of the page as the model sees it, whole numbers: what Qwen2.5-VL speaks.
  :mod:`rsgrpo.data.images.image_view` knows that size; the processor's part in it is :func:`smart_resize`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from rsgrpo.errors import RsgrpoError
from rsgrpo.types import Box

PER_MILLE = 1000
PATCH_SIDE = 28
"""The side of one image token in pixels: patches of 14, two by two."""

_MAX_ASPECT_RATIO = 200


class CoordinateError(RsgrpoError, ValueError):
    """Numbers are no box, or an image has no size for the model."""


def smart_resize(
    width: int, height: int, *, min_pixels: int, max_pixels: int, factor: int = PATCH_SIDE
) -> tuple[int, int]:
    """Size at which a model sees an image.

    Both sides are rounded to multiples of ``factor``; if the area is then beyond a bound, both are scaled by
    one number to meet it and rounded towards the inside of it. A side of less than half a token rounds to none, so
    that such a strip counts as too small: it is scaled to ``min_pixels`` whatever its area, as in the processor.

    Args:
        width: the width of the image that the processor gets, in pixels.
        height: the height of the image that the processor gets, in pixels.
        min_pixels: smallest area (the processor's ``size.shortest_edge``).
        max_pixels: largest area (``size.longest_edge``).
        factor: the side of one image token, in pixels.

    Returns:
        Width and height in pixels, multiples of ``factor``.

    Raises:
        CoordinateError: a side is not positive, or one is more than 200 times the other.

    Example:
        ``smart_resize(1000, 700, min_pixels=3136, max_pixels=12845056)`` is ``(1008, 700)``; 1000 × 10, of which
        the processor makes 0.36 tokens of height, is ``(560, 28)``.
    """
    if min(width, height) < 1 or max(width, height) > _MAX_ASPECT_RATIO * min(width, height):
        raise CoordinateError(
            f"an image of {width}×{height} has no size for the models: sides 1 to {_MAX_ASPECT_RATIO} : 1"
        )
    wide, high = round(width / factor) * factor, round(height / factor) * factor
    if wide * high > max_pixels:
        scale = math.sqrt(width * height / max_pixels)
        wide = max(factor, math.floor(width / scale / factor) * factor)
        high = max(factor, math.floor(height / scale / factor) * factor)
    elif wide * high < min_pixels:
        scale = math.sqrt(min_pixels / (width * height))
        wide = math.ceil(width * scale / factor) * factor
        high = math.ceil(height * scale / factor) * factor
    return wide, high


def to_per_mille(box: Box) -> tuple[int, int, int, int]:
    """Whole numbers 0 to 1000: left, top, right, bottom. Back again, no edge moves by more than 1/2000.

    Example:
        ``to_per_mille(Box(left=0.1, top=0.2, right=0.5, bottom=1.0))`` is ``(100, 200, 500, 1000)``.
    """
    return to_pixels(box, (PER_MILLE, PER_MILLE))


def to_pixels(box: Box, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Whole pixels of an image of ``size`` (width, height), such as :func:`smart_resize` gives.

    Back again, no edge moves by more than half a pixel.

    Example:
        ``to_pixels(Box(left=0.25, top=0, right=0.5, bottom=1), (1008, 700))`` is ``(252, 0, 504, 700)``.
    """
    width, height = size
    return round(box.left * width), round(box.top * height), round(box.right * width), round(box.bottom * height)


def from_pixels(numbers: Sequence[float], size: tuple[int, int], image_index: int = -1) -> Box:
    """The box that four pixel numbers (left, top, right, bottom) say on an image of ``size`` (width, height).

    Raises:
        CoordinateError: there are not four numbers, one is out of range, or the box has no area.

    Example:
        ``from_pixels((252, 0, 504, 700), (1008, 700))`` is ``Box(left=0.25, top=0.0, right=0.5, bottom=1.0)``.
    """
    width, height = size
    if len(numbers) != len(("left", "top", "right", "bottom")):
        raise CoordinateError(f"a box needs four numbers, got {list(numbers)}")
    left, top, right, bottom = numbers
    if not (0 <= left < right <= width and 0 <= top < bottom <= height):
        raise CoordinateError(
            f"{list(numbers)} is no box on {width}×{height}: expected 0 ≤ left < right ≤ width, and so on"
        )
    return Box(
        left=left / width, top=top / height, right=right / width, bottom=bottom / height, image_index=image_index
    )


def box_tokens(box: Box) -> str:
    """A box in Qwen2-VL's notation, as MGrounding-630k writes it.

    Example:
        ``<|box_start|>(100,200),(500,1000)<|box_end|>``
    """
    left, top, right, bottom = to_per_mille(box)
    return f"<|box_start|>({left},{top}),({right},{bottom})<|box_end|>"
