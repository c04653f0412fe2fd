"""Do the boxes of a response lie where the gold boxes lie?

Bind ``iou`` to the tokens of the boxes themselves, ``scope: {pattern: box}``: what is written around them
then receives nothing. What a policy might try:

* many boxes, so that one of them hits: every box beyond the number of gold boxes lowers the mean;
* the same box twice: matched to different gold boxes, so the second one earns nothing;
* a box over the whole page: earns the share of the page that the gold box covers, which is much where
  gold boxes are large; ``threshold`` takes that away.
"""

from __future__ import annotations

from collections.abc import Sequence

from rewards.base import RewardCall, RewardError, needs_gold
from rewards.boxes import CONVENTIONS, rectangle, response_boxes
from rsgrpo.images import page_size
from rsgrpo.types import Box

_QWEN_FACTOR = 28  # Qwen2.5-VL's pages have sides that are multiples of patch size times merge size
_MAX_MATCHED = 64  # boxes of one response that are looked at; further ones only count as wrong


@needs_gold("boxes")
def iou(
    call: RewardCall,
    convention: str = "permille",
    section: str = "",
    threshold: float = 0.0,
    min_pixels: int = 3136,
    max_pixels: int = 1568000,
) -> float | None:
    """Mean intersection over union of written and gold boxes under the best one-to-one matching, in [0, 1].

    With p written and g gold boxes it is the largest sum of IoU over matchings, divided by max(p, g). A box
    that is malformed (corners swapped, no area, outside of the page) is written but matches nothing.

    Args:
        call: the response.
        convention: what numbers count, one of ``rewards.boxes.CONVENTIONS``.
        section: look for boxes in this section only; empty: in the whole response.
        threshold: above 0: a matched pair counts 1 if its IoU reaches this, else 0 (accuracy at IoU).
        min_pixels: ``data.min_pixels``, for ``pixels`` only.
        max_pixels: ``data.max_pixels``, likewise.

    Returns:
        The mean; 0.0 where the response has no box; None where a gold box has no area, which nothing matches.

    Raises:
        RewardError: ``convention`` is not known, or the page that pixels are counted on is not.

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
    width, height = _full_size(call, convention, min_pixels, max_pixels)
    found = [box for one in written if (box := rectangle(one, width, height)) is not None][:_MAX_MATCHED]
    pairs = [[_pair_value(box_iou(left, right), threshold) for right in gold] for left in found]
    return best_matching(pairs) / max(len(written), len(gold))


def box_count(call: RewardCall, section: str = "") -> float:
    """1.0 if the response holds as many boxes as gold, else 0.0; malformed ones do not count.

    A reward of form for the start of training, when boxes rarely overlap gold. It pays wrong boxes as well.
    """
    sane = [one for one in response_boxes(call.parsed, section) if one.numbers[0] < one.numbers[2]]
    return float(len([one for one in sane if one.numbers[1] < one.numbers[3]]) == max(1, len(call.sample.boxes)))


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


def _full_size(call: RewardCall, convention: str, min_pixels: int, max_pixels: int) -> tuple[float, float]:
    """What the whole width and height of the page count."""
    if convention == "permille":
        return 1000.0, 1000.0
    if convention == "fraction":
        return 1.0, 1.0
    if convention != "pixels":
        raise RewardError(f"convention={convention!r} is not known; choose one of {', '.join(CONVENTIONS)}")
    sample = call.sample
    indexes = {box.image_index for box in sample.boxes}
    named = sorted(indexes) if indexes != {-1} else list(range(len(sample.images)))
    if len(named) != 1 or not 0 <= named[0] < len(sample.images):
        raise RewardError(
            f"sample {sample.sample_id!r}: its gold boxes do not say on which of {len(sample.images)} images they lie, "
            "and a pixel has another size on each; use convention=permille, or data with one image a box"
        )
    width, height = page_size(sample.images[named[0]], min_pixels, max_pixels)
    return float(_whole_patches(width)), float(_whole_patches(height))


def _whole_patches(side: int) -> int:
    """A side as the processor rounds it."""
    return max(1, round(side / _QWEN_FACTOR)) * _QWEN_FACTOR
