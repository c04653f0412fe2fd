"""Gold beyond an answer, as columns of an item: the options of a choice, and boxes on its pages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rsgrpo.types import Box

CHOICES_COLUMN = "choices"
BOXES_COLUMN = "boxes"


class GoldColumnError(ValueError):
    """A column does not hold what its name says; the message is one phrase about the item."""


def take_choices(columns: dict[str, Any]) -> tuple[str, ...]:
    """Take ``choices``, a list of options without their letters, out of an item's columns.

    Args:
        columns: of the item; the column is removed. Absent: none.

    Raises:
        GoldColumnError: it is no list of at least two texts that all differ.
    """
    value = columns.pop(CHOICES_COLUMN, None)
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise GoldColumnError(f"{CHOICES_COLUMN} must be a list of texts, got {value!r:.80}")
    if len(value) < 2 or len(set(value)) < len(value):
        raise GoldColumnError(f"{CHOICES_COLUMN} must hold at least two options, all different, got {value!r:.80}")
    return tuple(value)


def take_boxes(columns: dict[str, Any], paths: Sequence[str]) -> tuple[Box, ...]:
    """Take ``boxes`` out of an item's columns.

    Args:
        columns: of the item; the column is removed. Absent: none.
        paths: of the item's images.

    Returns:
        The boxes.

    Raises:
        GoldColumnError: it is no list of such objects, an image is not the item's, or a box is inverted,
            empty, or reaches beyond its page.

    Example:
        ``{"boxes": [{"box": [0.1, 0.02, 0.3, 0.4], "image": "imgs/2.png"}]}``: shares of the page's width and
        height, left, top, right, bottom; ``image`` may be absent.
    """
    value = columns.pop(BOXES_COLUMN, None)
    if value is None:
        return ()
    if not isinstance(value, list):
        raise GoldColumnError(f"{BOXES_COLUMN} must be a list of objects, got {value!r:.80}")
    return tuple(_box(one, paths) for one in value)


def gold_columns(choices: Sequence[str], boxes: Sequence[Box], paths: Sequence[str]) -> dict[str, Any]:
    """The columns that :func:`take_choices` and :func:`take_boxes` read; none for what is empty."""
    columns: dict[str, Any] = {CHOICES_COLUMN: list(choices)} if choices else {}
    if boxes:
        columns[BOXES_COLUMN] = [
            {"box": [box.left, box.top, box.right, box.bottom]}
            | ({"image": paths[box.image_index]} if box.image_index >= 0 else {})
            for box in boxes
        ]
    return columns


def _box(value: object, paths: Sequence[str]) -> Box:
    numbers = value.get("box") if isinstance(value, Mapping) else None
    if not isinstance(value, Mapping) or not isinstance(numbers, list) or len(numbers) != 4:
        raise GoldColumnError(
            f'{BOXES_COLUMN} must hold objects {{"box": [left, top, right, bottom]}}, got {value!r:.80}'
        )
    if any(isinstance(number, bool) or not isinstance(number, int | float) for number in numbers):
        raise GoldColumnError(f"a box must be four numbers, got {numbers!r:.80}")
    left, top, right, bottom = (float(number) for number in numbers)
    if not (0.0 <= left < right <= 1.0 and 0.0 <= top < bottom <= 1.0):
        raise GoldColumnError(
            f"the box {numbers} is no rectangle on the page: shares of its width and height must be "
            "0 <= left < right <= 1 and 0 <= top < bottom <= 1"
        )
    image = value.get("image", "")
    if image and image not in paths:
        raise GoldColumnError(f"the box {numbers} lies on {image!r}, which is none of the item's images")
    return Box(left=left, top=top, right=right, bottom=bottom, image_index=list(paths).index(image) if image else -1)
