"""MaxSim, the score of a multi-vector embedder: each vector of a question looks for its best match on a page.

    score(q, p) = sum_i max_j q_i · p_j

Scores of many pages are computed in float32, where products of matrices are quick and their last bits depend on what
stands beside; those of the few best are computed anew in float64, each product by itself, so that pages with equal
vectors score equally wherever they stand.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from rsgrpo.retrieval.index.exact_scores import ROUNDING, ScoreArray
from rsgrpo.types import FloatArray

Counts = NDArray[np.int64]

_PAIRS_AT_ONCE = 1 << 15  # of vectors: 128 float64 each are 32 MiB


def rounding_of(query: FloatArray) -> float:
    """Bound the error of a question's scores of :func:`maxsim_scores`: that of each best match, added up.

    Args:
        query: the vectors of the question, [vectors, dimension] float32.
    """
    return ROUNDING * len(query)


def maxsim_scores(vectors: FloatArray, counts: Counts, queries: Sequence[FloatArray]) -> ScoreArray:
    """Compute the scores of pages for questions, in float32.

    Args:
        vectors: the vectors of the pages one after another, [vectors, dimension] float32.
        counts: how many of them are of each page, at least 1, [pages].
        queries: the vectors of each question, [vectors, dimension] float32, at least one each.

    Returns:
        The scores, [pages, questions] float64, off by at most :func:`rounding_of`.

    Example:
        A page of the vectors (1, 0) and (0, 1) scores 1 + 0.8 for the vectors (1, 0) and (0.6, 0.8).
    """
    products = vectors @ np.concatenate(list(queries)).T
    best = np.maximum.reduceat(products, starts_of(counts), axis=0).astype(np.float64)
    return np.add.reduceat(best, starts_of([len(query) for query in queries]), axis=1)


def exact_maxsim(vectors: FloatArray, counts: Counts, query: FloatArray) -> ScoreArray:
    """Compute the scores of pages for one question in float64, each summed in one order whatever stands beside it.

    Args:
        vectors: the vectors of the pages one after another, [vectors, dimension] float32.
        counts: how many of them are of each page, at least 1, [pages].
        query: the vectors of the question, [vectors, dimension] float32.

    Returns:
        The scores, [pages] float64.
    """
    products = vectors @ query.T
    best = np.maximum.reduceat(products, starts_of(counts), axis=0)
    # Only matches that may be the best but for rounding are computed anew.
    rows, columns = np.nonzero(products >= np.repeat(best, counts, axis=0) - 2 * ROUNDING)
    pages = np.repeat(np.arange(len(counts)), counts)[rows]
    exact = np.full(best.shape, -np.inf)
    for start in range(0, len(rows), _PAIRS_AT_ONCE):
        part = slice(start, start + _PAIRS_AT_ONCE)
        pairs = vectors[rows[part]].astype(np.float64) * query[columns[part]].astype(np.float64)
        np.maximum.at(exact, (pages[part], columns[part]), pairs.sum(axis=1))
    found: ScoreArray = exact.sum(axis=1)
    return found


def starts_of(counts: Sequence[int] | Counts) -> Counts:
    """Find where the vectors of each item begin.

    Args:
        counts: how many vectors each item has, [items].

    Returns:
        The number of the first vector of each item, [items] int64.

    Example:
        ``starts_of([3, 1, 2])`` is ``[0, 3, 4]``.
    """
    found: Counts = np.cumsum(counts, dtype=np.int64) - np.asarray(counts, dtype=np.int64)
    return found
