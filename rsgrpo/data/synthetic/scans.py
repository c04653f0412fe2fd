"""The handwritten digits of the generated pages: scikit-learn's scans, and the words for numbers.

The scans come with scikit-learn (UCI "Optical Recognition of Handwritten Digits", test part: 1,797 scans).
"""

from __future__ import annotations

import itertools
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

NUMBERS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine",
    "ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen",
)  # fmt: skip
"""The words for the numbers: each is one token, as each colour is, which halves the time to learn them."""

INK = (25, 25, 40)
"""The red, green and blue of the ink that digits are written in."""

_MAX_INK = 16.0  # the scans' grey levels run from 0 to 16


@lru_cache(maxsize=1)
def _scans() -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    from sklearn.datasets import load_digits  # here, because importing scikit-learn takes a second

    data = load_digits()
    return data.images, data.target


def split_scans(sizes: tuple[int, ...], seed: int) -> tuple[tuple[tuple[int, ...], ...], ...]:
    """Deal the scans out so that no handwriting is in two splits.

    Args:
        sizes: how many scans of each digit every split gets; what is left over goes to the last one.
        seed: the seed of the shuffle.

    Returns:
        For each split a tuple of ten tuples: the indexes of the scans of each digit.

    Raises:
        ValueError: there are too few scans of a digit.
    """
    digits = _scans()[1]
    rng = np.random.default_rng((seed, 0))
    splits: list[list[tuple[int, ...]]] = [[] for _ in sizes]
    for digit in range(10):
        scans = rng.permutation(np.flatnonzero(digits == digit))
        if sum(sizes) > len(scans):
            raise ValueError(f"the splits want {sum(sizes)} scans of the digit {digit}, there are {len(scans)}")
        bounds = [*np.cumsum((0, *sizes[:-1])), len(scans)]
        for split, (start, stop) in zip(splits, itertools.pairwise(bounds), strict=True):
            split.append(tuple(int(scan) for scan in scans[start:stop]))
    return tuple(tuple(split) for split in splits)


def scan_mask(scan: int, side: int) -> Image.Image:
    """Scale a scan up, as a mask through which ink is pasted.

    Args:
        scan: the index of the handwritten digit in scikit-learn's data.
        side: the width and height of the mask, in pixels.

    Returns:
        The mask, 8-bit grey: 255 where there is full ink.
    """
    ink = np.clip(_scans()[0][scan] / _MAX_INK, 0.0, 1.0)
    return Image.fromarray((255 * ink).astype(np.uint8)).resize((side, side), Image.Resampling.BICUBIC)
