"""Boxes written in a response: where they stand, and what rectangles they are."""

from __future__ import annotations

import re
from dataclasses import dataclass

from rsgrpo.text.sections import ParsedResponse
from rsgrpo.types import Box

CONVENTIONS = ("permille", "shares", "pixels")
"""What a number written in a box may count: thousandths of the page's side (Qwen2-VL, MGrounding-630k), shares of it
(MIG-Bench's gold), or pixels of the page as the model sees it (Qwen2.5-VL). ``fraction`` is an older name of shares."""

# Bounded counts: nothing can be matched in two ways, so a hostile response costs linear time.
_NUMBER = r"(-?(?:[0-9]{1,6}(?:\.[0-9]{0,18})?|\.[0-9]{1,18}))"
_BLANKS = "[ ]{0,2}"
_ANY_BLANKS = r"[ \t\r\n]{0,40}"  # a JSON list may be indented over several lines; corners in a sentence are not
_COMMA = f"{_BLANKS},{_BLANKS}"
_WIDE_COMMA = f"{_ANY_BLANKS},{_ANY_BLANKS}"
_POINT = rf"\({_BLANKS}{_NUMBER}{_COMMA}{_NUMBER}{_BLANKS}\)"
_LISTED_POINT = rf"\[{_ANY_BLANKS}{_NUMBER}{_WIDE_COMMA}{_NUMBER}{_ANY_BLANKS}\]"
_BOX = re.compile(
    "|".join(
        (
            rf"{_POINT}{_BLANKS}(?:,{_BLANKS})?{_POINT}",
            rf"\({_BLANKS}{_COMMA.join([_NUMBER] * 4)}{_BLANKS}\)",
            rf"\[{_ANY_BLANKS}{_WIDE_COMMA.join([_NUMBER] * 4)}{_ANY_BLANKS}\]",
            rf"\[{_ANY_BLANKS}{_LISTED_POINT}{_WIDE_COMMA}{_LISTED_POINT}{_ANY_BLANKS}\]",
            rf"<box>{_BLANKS}{'[ ,]{1,3}'.join([_NUMBER] * 4)}{_BLANKS}</box>",
        )
    )
)


@dataclass(frozen=True, kw_only=True, slots=True)
class WrittenBox:
    """Four numbers as they stand in a response.

    Attributes:
        start: the character offset of the opening bracket.
        stop: the character offset behind the closing bracket.
        numbers: x and y of the first corner, then x and y of the second, as they are written.
    """

    start: int
    stop: int
    numbers: tuple[float, float, float, float]


def find_boxes(text: str, start: int = 0, stop: int | None = None) -> tuple[WrittenBox, ...]:
    """All boxes in a piece of text, in order, without overlap.

    Args:
        text: the response. ``(x1,y1),(x2,y2)``, ``(x1,y1,x2,y2)``, ``[x1,y1,x2,y2]`` (alone, or in JSON such as
            ``{"bbox_2d": […]}``), ``[[x1,y1],[x2,y2]]`` and ``<box>x1 y1 x2 y2</box>`` are boxes, with integers or
            decimals. The special tokens around a box leave no text.
        start: where to begin.
        stop: where to end; None: the end of the text.

    Returns:
        The boxes in the order of the text; the numbers may be anything, ``rectangle`` judges them.

    Example:
        ``find_boxes("at (100,20),(300,400)")`` is one box from offset 3 to 21.
    """
    return tuple(
        WrittenBox(start=match.start(), stop=match.end(), numbers=_four_numbers(match))
        for match in _BOX.finditer(text, start, len(text) if stop is None else stop)
    )


def response_boxes(parsed: ParsedResponse, section: str = "") -> tuple[WrittenBox, ...]:
    """The boxes of a response, or of one of its sections only.

    Args:
        parsed: the response, cut into its sections.
        section: the declared section to look in (every place where a repeatable one stands); empty: the whole response.

    Returns:
        The boxes in the order of the text; none where the section's opening tag is absent.
    """
    if not section:
        return find_boxes(parsed.text)
    return tuple(
        box
        for place in parsed.all_of(section)
        for box in find_boxes(parsed.text, place.content_start, place.content_stop)
    )


def rectangle(written: WrittenBox, width: float, height: float) -> Box | None:
    """A written box as shares of the page.

    Args:
        written: the numbers as they are written.
        width: what the page's whole width counts: 1000, 1, or its pixels.
        height: what the page's whole height counts: 1000, 1, or its pixels.

    Returns:
        The rectangle as shares of the page; None if the box is malformed: corners swapped or equal in a coordinate, or
        outside of the page.

    Example:
        ``(100,20),(300,400)`` at 1000 by 1000 is ``Box(left=0.1, top=0.02, right=0.3, bottom=0.4)``;
        ``(300,400),(100,20)`` is None.
    """
    left, top, right, bottom = written.numbers
    if not (0.0 <= left < right <= width and 0.0 <= top < bottom <= height):
        return None
    return Box(left=left / width, top=top / height, right=right / width, bottom=bottom / height)


def _four_numbers(match: re.Match[str]) -> tuple[float, float, float, float]:
    left, top, right, bottom = (float(number) for number in match.groups() if number is not None)
    return left, top, right, bottom
