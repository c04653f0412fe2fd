"""Inner products that do not depend on their neighbours, so that equal vectors score equally wherever they stand."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rsgrpo.types import FloatArray

RowArray = NDArray[np.int64]
ScoreArray = NDArray[np.float64]

SPARE_CANDIDATES = 16
"""Candidates to ask a library for beyond those wanted, so that a tie at the end is seen without a second search."""

ROUNDING = 2e-5
"""What a library's float32 score may be off by, for vectors of length 1: 2,048 terms summed in 8 lanes are at most 256
roundings of 2^-24, 1.5e-5; ten times what was seen."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BestRows:
    """The best rows for a query.

    Attributes:
        rows: [m] int64; at least as many as were asked for where there are so many, and all that tie with the last.
        scores: [m] float64, their inner products with the query; in no order.
    """

    rows: RowArray
    scores: ScoreArray


def exact_scores(parts: Iterable[FloatArray], query: FloatArray) -> ScoreArray:
    """Each vector's inner product with a query, in float64, summed in one order whatever stands beside it.

    Args:
        parts: [n, dimension] float32, some at a time.
        query: [dimension] float32.

    Returns:
        [vectors of all parts] float64.
    """
    wide = query.astype(np.float64)
    found = [(vectors * wide).sum(axis=1) for vectors in parts]
    return np.concatenate(found) if found else np.zeros(0)


def kth_score(scores: ScoreArray, k: int) -> float:
    """The k-th largest.

    Args:
        scores: [n] float64, at least k.
        k: from 1.
    """
    return float(np.partition(scores, len(scores) - k)[len(scores) - k])


def best_rows(rows: RowArray, scores: ScoreArray, k: int) -> BestRows:
    """Only what reaches the k-th score; all where there are no more than k.

    Args:
        rows: [n] int64.
        scores: [n] float64, of these rows.
        k: how many are asked for.
    """
    if len(scores) > k:
        kept = scores >= kth_score(scores, k)
        rows, scores = rows[kept], scores[kept]
    return BestRows(rows=rows, scores=scores)
