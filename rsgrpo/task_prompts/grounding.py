"""MIG-Bench: a box is asked for in 0-1000 coordinates; a model that answers in pixels is converted first."""

from __future__ import annotations

import re

_BOX_FORMAT = "Format:<|box_start|>(x1,y1),(x2,y2)<|box_start|>. Don't generate addtional words."
"""The original's hint for Qwen2-VL and Migician, its two slips kept: they are part of what a model was asked."""

_THOUSAND = 1000
_INTEGER_BOX = re.compile(
    r"\((\d+),\s*(\d+)\),\s*\((\d+),\s*(\d+)\)|\[(\d+),\s*(\d+),\s*(\d+),\s*(\d+)\]|"
    r"<box>\s*(\d+)\s+(\d+)\s+(\d+)\s+(\d+)\s*</box>"
)
_ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth")
_NAMED_IMAGE = re.compile(
    r"\b(?:(\d+)(?:st|nd|rd|th)|(" + "|".join(_ORDINALS) + r"))\s+image\b|\bimage[\s-]*(\d+)", re.IGNORECASE
)


def grounding_text(question: str) -> str:
    """Question and format hint, which the original puts behind every question alike."""
    return question + _BOX_FORMAT


def target_image(question: str, num_images: int) -> int:
    """Which image a question asks for, by its own words; the data name it nowhere else.

    Args:
        question: such as ``… in the 3th image``; of several mentions the last one counts.
        num_images: images of the question.

    Returns:
        0-based index; -1 where no image is named, or one that is not there.

    Example:
        ``target_image("Find it in the 3th image.", 4)`` is 2; ``target_image("Find it.", 4)`` is -1.
    """
    found = -1
    for number, word, plain in _NAMED_IMAGE.findall(question):
        index = _ORDINALS.index(word.lower()) if word else int(number or plain) - 1
        if 0 <= index < num_images:
            found = index
    return found


def thousandths_from_pixels(response: str, width: int, height: int) -> str:
    """Rewrite every integer box of a response from pixels to 0-1000 coordinates.

    Qwen2.5-VL speaks in pixels of the image as its processor resized it; MIG-Bench's scorer reads 0-1000.

    Args:
        response: with boxes as ``(x1,y1),(x2,y2)``, ``[x1, y1, x2, y2]`` or ``<box>x1 y1 x2 y2</box>``.
        width: of the resized image, in pixels.
        height: likewise.

    Returns:
        The response with boxes as ``(x1,y1),(x2,y2)``, cut at 1000; other text as it was.

    Example:
        ``thousandths_from_pixels("at [28, 56, 280, 560]", 560, 560)`` is ``"at (50,100),(500,1000)"``.
    """

    def rewrite(match: re.Match[str]) -> str:
        numbers = [int(group) for group in match.groups() if group is not None]
        sides = (width, height, width, height)
        x1, y1, x2, y2 = (
            min(_THOUSAND, round(number * _THOUSAND / side)) for number, side in zip(numbers, sides, strict=True)
        )
        return f"({x1},{y1}),({x2},{y2})"

    return _INTEGER_BOX.sub(rewrite, response)
