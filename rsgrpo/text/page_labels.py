"""What a label such as ``[7]:`` means where a filter left pages out and the others kept their numbers."""

from __future__ import annotations

from collections.abc import Sequence


def label_index(number: int, page_numbers: Sequence[int]) -> int:
    """The 0-based place of the image that a label ``[number]:`` means.

    Args:
        number: the number in the label, at least 1.
        page_numbers: the number by which labels call each image; empty: 1, 2, ….

    Returns:
        The place; of a number that no image has, one behind the last image, another for each such number.

    Example:
        With the numbers (7, 12), 12 gives 1 and 3 gives 4; without numbers 3 gives 2.
    """
    if not page_numbers:
        return number - 1
    return page_numbers.index(number) if number in page_numbers else len(page_numbers) + number - 1
