"""Inner products that do not depend on the vectors beside, so that equal vectors score equally wherever they stand."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rsgrpo.types import FloatArray

RowArray = NDArray[np.int64]
ScoreArray = NDArray[np.float64]

SPARE_CANDIDATES = 16
"""How many candidates more than wanted a library is asked for, so that a tie with the last is seen in one search."""

ROUNDING = 2e-5
"""The most that a library's float32 score may be off by, for vectors of length 1: 2,048 terms summed in 8 lanes are at
most 256 roundings of 2^-24, 1.5e-5; ten times what was seen."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BestRows:
    """The best rows for a query.

    Attributes:
        rows: the numbers of the rows, [m] int64; at least as many as were asked for where there are so many, and all
            that tie with the last; in no order.
        scores: the inner product of each row and the query, [m] float64.
    """

    rows: RowArray
    scores: ScoreArray


def exact_scores(parts: Iterable[FloatArray], query: FloatArray) -> ScoreArray:
    """Compute each vector's inner product with a query, in float64, summed in one order whatever stands beside it.

    Args:
        parts: the vectors in parts of any size, each part [vectors, dimension] float32.
        query: the vector of the query, [dimension] float32.

    Returns:
        The scores of the vectors of all parts, [all vectors] float64.
    """
    wide = query.astype(np.float64)
    found = [(vectors * wide).sum(axis=1) for vectors in parts]
    return np.concatenate(found) if found else np.zeros(0)


def kth_score(scores: ScoreArray, k: int) -> float:
    """Find the k-th largest score.

    Args:
        scores: the scores, [n] float64, at least ``k`` of them.
        k: the place of the score that is wanted, from 1.

    Returns:
        The k-th largest score.
    """
    return float(np.partition(scores, len(scores) - k)[len(scores) - k])


def best_rows(rows: RowArray, scores: ScoreArray, k: int) -> BestRows:
    """Keep the rows whose score is at least the k-th largest; all rows where there are no more than ``k``.

    Args:
        rows: the numbers of the rows, [n] int64.
        scores: the score of each row, [n] float64.
        k: how many rows are asked for, at least 1.

    Returns:
        The rows that were kept, with their scores.
    """
    if len(scores) > k:
        kept = scores >= kth_score(scores, k)
        rows, scores = rows[kept], scores[kept]
    return BestRows(rows=rows, scores=scores)
