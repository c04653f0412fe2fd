"""Whether values differ by more than rounding."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

ZERO_VARIANCE_SPREAD = 1.0e-6
"""Values of a group that lie closer together than this, relative to their size, count as equal: the difference is
rounding, which must never become a gradient. Sizes below 1 count as 1, or the rounding left over around zero (0.1 + 0.2
- 0.3 = 6e-17) would pass for a difference."""


def has_zero_variance(values: NDArray[np.float64]) -> bool:
    """Whether all values are equal up to rounding.

    Example:
        ``[2.1] * 8`` has none, as a single value; ``[0.0, 1.0]`` has some.
    """
    if len(values) < 2:
        return True
    low, high = float(values.min()), float(values.max())
    return high - low < ZERO_VARIANCE_SPREAD * max(1.0, abs(low), abs(high))
