"""Gold beyond an answer, as columns of an item: the options of a choice, and boxes on its pages."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rsgrpo.text.coordinates import PER_MILLE
from rsgrpo.types import Box

CHOICES_COLUMN = "choices"
BOXES_COLUMN = "boxes"

_KEYS = ("box", "bbox_2d")  # ours, and Qwen2.5-VL's
_LARGEST_NUMBER = 1e9  # beyond any page; integers of a thousand digits stop here
_EDGE_PIXELS = 1.0  # annotations often count a far edge one pixel beyond the page; that much is cut


class GoldColumnError(ValueError):
    """A column does not hold what its name says; the message is one phrase about the item."""


def take_choices(columns: dict[str, Any]) -> tuple[str, ...]:
    """Take ``choices``, a list of options without their letters, out of an item's columns.

    Args:
        columns: the columns of the item; the column of choices is removed. Absent: none.

    Raises:
        GoldColumnError: the value is no list of at least two texts that all differ.
    """
    value = columns.pop(CHOICES_COLUMN, None)
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(choice, str) for choice in value):
        raise GoldColumnError(f"{CHOICES_COLUMN} must be a list of texts, got {value!r:.80}")
    if len(value) < 2 or len(set(value)) < len(value):
        raise GoldColumnError(f"{CHOICES_COLUMN} must hold at least two options, all different, got {value!r:.80}")
    return tuple(value)


def take_boxes(
    columns: dict[str, Any],
    paths: Sequence[str],
    coordinates: str = "shares",
    image_size: Callable[[int], tuple[int, int]] | None = None,
) -> tuple[Box, ...]:
    """Take ``boxes`` out of an item's columns.

    Args:
        columns: the columns of the item; the column of boxes is removed. Absent: none.
        paths: the paths of the item's images.
        coordinates: what their numbers count: ``shares`` of the page's width and height, ``permille`` (0 to 1000), or
            ``pixels`` of the image as it is stored, upright.
        image_size: gives width and height of the item's image of a 0-based index, for ``pixels``.

    Returns:
        The boxes, as shares of their images.

    Raises:
        GoldColumnError: the value is no list of such objects, an image is not the item's, a box is inverted, empty,
            reaches beyond its page or counts otherwise, or is in pixels while the size of its image is not known.
        ImageError: the image of a box in pixels cannot be read.

    Example:
        ``{"boxes": [{"box": [0.1, 0.02, 0.3, 0.4], "image": "imgs/2.png"}]}``: left, top, right, bottom; ``image`` (a
        path, or a 0-based index) may be absent. ``bbox_2d`` is read like ``box``, as is a bare list of four numbers.
    """
    value = columns.pop(BOXES_COLUMN, None)
    if value is None:
        return ()
    if not isinstance(value, list):
        raise GoldColumnError(f"{BOXES_COLUMN} must be a list of objects, got {value!r:.80}")
    return tuple(_box(box, paths, coordinates, image_size) for box in value)


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


def _box(
    value: object, paths: Sequence[str], coordinates: str, image_size: Callable[[int], tuple[int, int]] | None
) -> Box:
    numbers = _four_numbers(value)
    index = _image_index(value.get("image"), numbers, paths) if isinstance(value, Mapping) else -1
    if coordinates == "pixels":
        if index < 0 and len(paths) != 1:
            raise GoldColumnError(
                f"the box {_shown(numbers)} is in pixels of one of {len(paths)} images, and does not say which; give "
                'it its "image"'
            )
        index = max(index, 0)
        assert image_size is not None
        width, height = image_size(index)
    else:
        width, height = (PER_MILLE, PER_MILLE) if coordinates == "permille" else (1, 1)
    left, top, right, bottom = numbers
    if coordinates != "shares":
        if max(numbers) <= 1:
            raise GoldColumnError(
                f"the box {_shown(numbers)} looks like shares of the page, but data.box_coordinates={coordinates}"
            )
        right, bottom = (
            float(side) if side < edge <= side + _EDGE_PIXELS else edge
            for side, edge in ((width, right), (height, bottom))
        )
    if not (0.0 <= left < right <= width and 0.0 <= top < bottom <= height):
        hint = "" if max(numbers) <= width else " (data.box_coordinates says what the numbers count)"
        raise GoldColumnError(
            f"the box {_shown(numbers)} is no rectangle on the page: as {coordinates} they must be "
            f"0 <= left < right <= {width} and 0 <= top < bottom <= {height}{hint}"
        )
    return Box(left=left / width, top=top / height, right=right / width, bottom=bottom / height, image_index=index)


def _four_numbers(value: object) -> list[float]:
    numbers = value
    if isinstance(value, Mapping):
        numbers = next((value[key] for key in _KEYS if value.get(key) is not None), None)
    if not isinstance(numbers, list | tuple) or len(numbers) != 4:
        raise GoldColumnError(
            f'{BOXES_COLUMN} must hold objects {{"box": [left, top, right, bottom]}}, got {value!r:.80}'
        )
    if not all(
        isinstance(number, int | float) and not isinstance(number, bool) and not abs(number) > _LARGEST_NUMBER
        for number in numbers
    ):
        raise GoldColumnError(f"a box must be four numbers, got {numbers!r:.80}")
    return [float(number) for number in numbers]


def _image_index(image: object, numbers: Sequence[float], paths: Sequence[str]) -> int:
    """0-based index among the item's images of the one that a box names; -1 for none."""
    if image is None or image == "":
        return -1
    if isinstance(image, int) and not isinstance(image, bool) and 0 <= image < len(paths):
        return image
    if image not in paths:
        raise GoldColumnError(f"the box {_shown(numbers)} lies on {image!r:.80}, which is none of the item's images")
    return list(paths).index(str(image))


def _shown(numbers: Sequence[float]) -> str:
    return f"[{', '.join(f'{number:g}' for number in numbers)}]"
