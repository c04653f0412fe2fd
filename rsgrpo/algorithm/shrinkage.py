"""The baseline between the mean of a response's siblings and that of the step's other groups.

Few siblings make a noisy mean. Where questions differ little, the mean of the other groups tells more of what a
response earns; where they differ much, the siblings do. How much each of both counts is estimated from the step (Zeng
et al., "Shrinking the Variance", arXiv 2511.03710). Neither the response's own value nor, in all that goes over groups,
its own group takes part, so that the gradient gets no bias from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rsgrpo.algorithm.zero_variance import has_zero_variance

Vector = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Shrinkage:
    """For each of the G groups of a step, where the baseline of one reward lies.

    Attributes:
        others_mean: [G] the mean over all other groups, each of which counts once; 0 where no other has a value.
        weight: [G] the share in [0, 1] of ``others_mean`` in the baseline; the rest is that of the siblings' mean.
    """

    others_mean: Vector
    weight: Vector


def shrinkage(groups: Sequence[Vector]) -> Shrinkage:
    """Estimate how far the baselines of a step's groups shrink towards the mean of the other groups.

    A sibling's mean has the variance s / (n - 1) around what its question earns, and questions differ by t. The best
    mixture of both gives the weight ``(s / (n - 1)) / (s / (n - 1) + t)`` to the other groups. s is the variance
    within the other groups, t that of their means less what s adds to it, not below 0.

    Args:
        groups: for each group [n] the values of one reward, without those of responses to which it does not apply.

    Returns:
        Mean of the others and weight for each group. The weight is 0 where fewer than two other groups have a value,
        where these are all alike, and 1 for a single response, which has no siblings.

    Example:
        ``[0, 1]``, ``[0, 1]``, ``[1, 1]``: for the last group s = 0.5, and the means of the others, both 0.5, do not
        differ, so t = 0, the weight 1 and the baseline 0.5: its responses earn more than is usual, and get credit.
    """
    counts = np.array([len(values) for values in groups], dtype=np.float64)
    means = np.array([values.mean() if len(values) else np.nan for values in groups])
    squares = np.array([((values - values.mean()) ** 2).sum() if len(values) else 0.0 for values in groups])
    others_mean, weight = np.zeros(len(groups)), np.zeros(len(groups))
    for index, count in enumerate(counts):
        is_other = counts > 0
        is_other[index] = False
        if not is_other.any():
            continue
        others_mean[index] = means[is_other].mean()
        if count == 1:
            weight[index] = 1.0
        elif is_other.sum() > 1 and not has_zero_variance(_values_of(groups, is_other)):
            freedom = (counts[is_other] - 1).sum()
            within = squares[is_other].sum() / freedom if freedom else 0.0
            between = max(0.0, means[is_other].var(ddof=1) - within * (1.0 / counts[is_other]).mean())
            noise = within / (count - 1) if count else 0.0
            weight[index] = noise / (noise + between) if noise else 0.0
    return Shrinkage(others_mean=others_mean, weight=weight)


def _values_of(groups: Sequence[Vector], chosen: NDArray[np.bool_]) -> Vector:
    return np.concatenate([values for values, is_chosen in zip(groups, chosen, strict=True) if is_chosen])
