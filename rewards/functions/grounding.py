"""Do the boxes of a response lie where the gold boxes lie?

Bind ``iou`` to the tokens of the boxes themselves, ``scope: {pattern: box}``: what is written around them
then receives nothing. What a policy might try:

* many boxes, so that one of them hits: every box beyond the number of gold boxes lowers the mean;
* the same box twice: matched to different gold boxes, so the second one earns nothing;
* a box over the whole page: earns the share of the page that the gold box covers, which is much where
  gold boxes are large; ``threshold`` takes that away.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rewards.base import RewardCall, RewardError, checks_itself, needs_gold, reads_sections
from rewards.boxes import CONVENTIONS, WrittenBox, rectangle, response_boxes
from rsgrpo.types import Box

_MAX_MATCHED = 64  # boxes of one response that are looked at, or as many as gold has; others only count as wrong
_WHOLE_IMAGE = {"permille": (1000.0, 1000.0), "shares": (1.0, 1.0), "fraction": (1.0, 1.0)}


def _argument_problem(arguments: Mapping[str, Any]) -> str:
    """What is wrong with the keyword arguments of :func:`iou`, in one phrase; empty if nothing is."""
    bounds = sorted({"min_pixels", "max_pixels"} & arguments.keys())
    if bounds:
        return (
            f"{' and '.join(bounds)} must go: the bounds of a page have one place, data.min_pixels and "
            "data.max_pixels, and the reward counts pixels of the page that the model really saw"
        )
    convention = arguments.get("convention", "permille")
    if convention != "pixels" and convention not in _WHOLE_IMAGE:
        return f"convention={convention!r:.80} is not known; choose one of {', '.join(CONVENTIONS)}"
    threshold = arguments.get("threshold", 0.0)
    if isinstance(threshold, bool) or not isinstance(threshold, int | float) or not 0.0 <= threshold <= 1.0:
        return f"threshold={threshold!r:.80} must lie in [0, 1]"
    return ""


def _gold_written(call: RewardCall, convention: str = "permille", section: str = "", threshold: float = 0.0) -> str:
    """The gold boxes as a response that follows the convention exactly."""
    written = []
    for box, (width, height) in zip(call.sample.boxes, _image_sizes(call, convention), strict=True):
        numbers = (box.left * width, box.top * height, box.right * width, box.bottom * height)
        written.append("[" + ", ".join(f"{number:.12f}" for number in numbers) + "]")
    text = " ".join(written)
    return f"<{section}>{text}</{section}>" if section else text


@checks_itself(argument_problem=_argument_problem, exact_answer=_gold_written)
@reads_sections(arguments=("section",))
@needs_gold("boxes")
def iou(call: RewardCall, convention: str = "permille", section: str = "", threshold: float = 0.0) -> float | None:
    """Mean intersection over union of written and gold boxes under the best one-to-one matching, in [0, 1].

    With p written and g gold boxes it is the largest sum of IoU over matchings, divided by max(p, g). A box
    that is malformed (corners swapped, no area, outside of the page) is written but matches nothing. Pixels and per
    mille in whole numbers are held against gold in whole numbers: the best box that can be written so earns 1.

    Args:
        call: the response to judge, with its sample.
        convention: what numbers count, one of ``rewards.boxes.CONVENTIONS``. ``pixels`` are those of the page that a
            gold box lies on, at the size at which the model saw it.
        section: the only section in which boxes are looked for; empty: the whole response.
        threshold: above 0: a matched pair counts 1 if its IoU reaches this, else 0 (accuracy at IoU).

    Returns:
        The mean in [0, 1]; 0.0 where the response has no box; None where a gold box has no area, which nothing matches.

    Raises:
        RewardError: ``convention`` is not known, or boxes are in pixels and the size of their page is not known.

    Example:
        Gold ``(100,100),(300,300)``. ``(100,100),(300,200)`` covers half of it: 0.5. The same with a second
        box anywhere: 0.25.
    """
    gold = call.sample.boxes
    if any(not (box.left < box.right and box.top < box.bottom) for box in gold):
        return None
    written = response_boxes(call.parsed, section)
    if not written or not gold:
        return 0.0
    sizes = _image_sizes(call, convention)
    rows = (_overlaps(response_box, gold, sizes) for response_box in written)
    found = [row for row in rows if row is not None][: max(_MAX_MATCHED, len(gold))]
    pairs = [[_pair_value(overlap, threshold) for overlap in row] for row in found]
    return best_matching(pairs) / max(len(written), len(gold))


@reads_sections(arguments=("section",))
def box_count(call: RewardCall, section: str = "") -> float:
    """1.0 if the response holds as many boxes as gold, else 0.0; malformed ones do not count.

    A reward of form for the start of training, when boxes rarely overlap gold. It pays wrong boxes as well.
    """
    sane = [
        response_box
        for response_box in response_boxes(call.parsed, section)
        if response_box.numbers[0] < response_box.numbers[2]
    ]
    return float(len([box for box in sane if box.numbers[1] < box.numbers[3]]) == max(1, len(call.sample.boxes)))


def box_iou(left: Box, right: Box) -> float:
    """Intersection over union of two rectangles: symmetric, in [0, 1], 1 for equal ones; 0 without an area.

    Example:
        ``[.1, .1, .9, .9]`` and ``[.2, .2, .8, .8]``: 0.36 / 0.64 = 0.5625.
    """
    width = min(left.right, right.right) - max(left.left, right.left)
    height = min(left.bottom, right.bottom) - max(left.top, right.top)
    if width <= 0.0 or height <= 0.0:
        return 0.0
    common = width * height
    areas = (left.right - left.left) * (left.bottom - left.top) + (right.right - right.left) * (
        right.bottom - right.top
    )
    return min(1.0, common / (areas - common))  # rounding may leave the union a little too small


def best_matching(values: Sequence[Sequence[float]]) -> float:
    """Largest sum of values over one-to-one matchings of rows and columns; 0.0 for an empty table.

    Example:
        ``[[0.9, 0.8], [0.7, 0.0]]``: 0.8 + 0.7 = 1.5, where taking the largest first gives 0.9.
    """
    if not values or not values[0]:
        return 0.0
    if len(values) == 1 or len(values[0]) == 1:
        return max(value for row in values for value in row)
    import numpy as np
    from scipy.optimize import linear_sum_assignment  # here: most data have one box, and it takes a while to import

    table = np.array(values)
    rows, columns = linear_sum_assignment(table, maximize=True)
    return float(table[rows, columns].sum())


def _pair_value(overlap: float, threshold: float) -> float:
    return overlap if threshold <= 0.0 else float(overlap >= threshold)


def _overlaps(written: WrittenBox, gold: Sequence[Box], sizes: Sequence[tuple[float, float]]) -> list[float] | None:
    """IoU of one written box with every gold box, each on its own page; None if it is malformed on all of them."""
    is_whole = all(number.is_integer() for number in written.numbers)
    overlaps = []
    is_sane = False
    for box, (width, height) in zip(gold, sizes, strict=True):
        found = rectangle(written, width, height)
        is_sane = is_sane or found is not None
        on_grid = _whole_numbers(box, width, height) if is_whole and width > 1.0 else box
        overlaps.append(0.0 if found is None else box_iou(found, on_grid))
    return overlaps if is_sane else None


def _whole_numbers(box: Box, width: float, height: float) -> Box:
    """A gold box with its edges at the nearest whole numbers; at least one wide and high."""
    left, top = min(round(box.left * width), width - 1), min(round(box.top * height), height - 1)
    right, bottom = max(left + 1, round(box.right * width)), max(top + 1, round(box.bottom * height))
    return Box(left=left / width, top=top / height, right=right / width, bottom=bottom / height)


def _image_sizes(call: RewardCall, convention: str) -> list[tuple[float, float]]:
    """For each gold box the numbers that stand for the whole width and height of its page."""
    problem = _argument_problem({"convention": convention})
    if problem:
        raise RewardError(problem)
    boxes = call.sample.boxes
    if convention != "pixels":
        return [_WHOLE_IMAGE[convention]] * len(boxes)
    sizes: dict[int, tuple[float, float]] = {}
    for box in boxes:
        if box.image_index not in sizes:
            sizes[box.image_index] = _seen_image(call, box.image_index)
    return [sizes[box.image_index] for box in boxes]


def _seen_image(call: RewardCall, image_index: int) -> tuple[float, float]:
    """Width and height in pixels, as the model saw it, of the page that a gold box lies on."""
    num_images = len(call.sample.images)
    candidates = range(num_images) if image_index == -1 else range(image_index, image_index + 1)
    if image_index >= num_images or not num_images:
        raise RewardError(
            f"sample {call.sample.sample_id!r:.80}: a gold box lies on image {image_index}, but the sample has "
            f"{num_images} images; fix its boxes"
        )
    sizes = {call.seen_size(index) for index in candidates}
    if len(sizes) > 1:
        raise RewardError(
            f"sample {call.sample.sample_id!r:.80}: its gold boxes do not say on which of {num_images} images they "
            "lie, and a pixel has another size on each; name each box's image in the data, or use convention=permille"
        )
    width, height = sizes.pop()
    return float(width), float(height)
