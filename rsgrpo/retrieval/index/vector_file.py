"""Vectors by row, in memory or mapped from a file, and which of them score highest; the one module that imports faiss.

faiss finds candidates in float32. Their scores are then computed anew in float64, each row by itself, so that equal
vectors score equally wherever they stand, and every row that ties with the last one asked for is found as well.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import faiss
import numpy as np

from rsgrpo.io.atomic_files import replacing
from rsgrpo.retrieval.index.exact_scores import (
    ROUNDING,
    SPARE_CANDIDATES,
    BestRows,
    RowArray,
    ScoreArray,
    best_rows,
    exact_scores,
    kth_score,
)
from rsgrpo.types import BoolArray, FloatArray

_ROWS_AT_ONCE = 8192  # scored or copied: 2,048 float64 each are 128 MiB
_FEW_ROWS = 512  # so few are scored at once, without faiss
_FEW_SHARE = 0.02  # the share of all rows that a filter leaves, up to which they are scored at once, without faiss
_WRITE_BYTES = 1 << 20
_LIST_SAMPLES = 64  # vectors a list that it learns from
_REFINED = 8  # candidates of inverted lists, whose codes have 8 bits, for each page asked for


class VectorFileError(ValueError):
    """A file of vectors cannot be read; the message says what is wrong with it."""


class VectorRows:
    """Vectors of one dimension, numbered from 0 as they were added.

    Args:
        index: the flat faiss index of the vectors, float32, or float16 as a scalar quantizer.
        lists: the inverted lists of faiss over the same rows; None: every search is exact.
        num_probes: how many of the lists a search reads.
    """

    def __init__(self, index: faiss.Index, lists: faiss.Index | None = None, num_probes: int = 1) -> None:
        self._index = index
        self._lists = lists
        self._num_probes = num_probes

    @classmethod
    def empty(cls, dimension: int, *, is_half: bool = False) -> VectorRows:
        """Make an object without vectors, to which some can be added.

        Args:
            dimension: how many numbers each vector has.
            is_half: whether the vectors are kept in float16 instead of float32.

        Returns:
            The object, in memory.
        """
        if is_half:
            half = faiss.ScalarQuantizer.QT_fp16
            return cls(faiss.IndexScalarQuantizer(dimension, half, faiss.METRIC_INNER_PRODUCT))
        return cls(faiss.IndexFlatIP(dimension))

    @classmethod
    def mapped(cls, file: Path, lists_file: Path | None = None, num_probes: int = 1) -> VectorRows:
        """Map the vectors of a file, of which only what a search touches is read.

        Args:
            file: the file that :meth:`write` wrote.
            lists_file: the file that :meth:`write_lists` wrote; None: there are no lists.
            num_probes: how many of the lists a search reads.

        Returns:
            The vectors, mapped.

        Raises:
            VectorFileError: a file cannot be read or holds something else, or the two do not fit together.
        """
        index = _read(file, faiss.IO_FLAG_MMAP_IFC)
        if not isinstance(index, faiss.IndexFlatIP | faiss.IndexScalarQuantizer):
            raise VectorFileError(f"it holds a {type(index).__name__} where flat vectors are expected")
        lists = _read(lists_file, faiss.IO_FLAG_MMAP) if lists_file else None
        if lists is not None and (lists.ntotal, lists.d) != (index.ntotal, index.d):
            raise VectorFileError(
                f"its lists hold {lists.ntotal} vectors of {lists.d}, not {index.ntotal} of {index.d}"
            )
        return cls(index, lists, num_probes)

    def __len__(self) -> int:
        return int(self._index.ntotal)

    @property
    def dimension(self) -> int:
        """How many numbers each vector has."""
        return int(self._index.d)

    @property
    def is_half(self) -> bool:
        """Whether the vectors are kept in float16."""
        return isinstance(self._index, faiss.IndexScalarQuantizer)

    def add(self, vectors: FloatArray) -> None:
        """Append vectors.

        Args:
            vectors: the vectors to append, [n, dimension] float32, contiguous.
        """
        if len(vectors):
            self._index.add(vectors)

    def rows(self, rows: RowArray) -> FloatArray:
        """Copy the vectors of some rows.

        Args:
            rows: the numbers of the rows, [n] int64.

        Returns:
            The vectors in the order of ``rows``, [n, dimension] float32.
        """
        found: FloatArray = self._index.reconstruct_batch(rows)
        return found

    def copies(self, rows: RowArray) -> Iterator[FloatArray]:
        """Copy the vectors of some rows, a few thousand at a time.

        Args:
            rows: the numbers of the rows, [n] int64.

        Yields:
            The vectors of the next rows, [at most 8192, dimension] float32.
        """
        for start in range(0, len(rows), _ROWS_AT_ONCE):
            yield self.rows(rows[start : start + _ROWS_AT_ONCE])

    def best(self, queries: FloatArray, k: int, allowed: BoolArray | None = None) -> list[BestRows]:
        """Find the best rows for each query.

        Args:
            queries: the vectors of the queries, [queries, dimension] float32, contiguous.
            k: how many rows are asked for, at least 1.
            allowed: whether each row may be found, [rows] bool; None: all may.

        Returns:
            The best rows of each query, in the order of the queries.
        """
        num_allowed = len(self) if allowed is None else int(np.count_nonzero(allowed))
        if not num_allowed:
            return [BestRows(rows=np.zeros(0, np.int64), scores=np.zeros(0)) for _ in queries]
        if num_allowed <= max(k, _FEW_ROWS, int(_FEW_SHARE * len(self)) if allowed is not None else 0):
            rows = np.arange(len(self)) if allowed is None else np.flatnonzero(allowed)
            return [best_rows(rows, self._scores(query, rows), k) for query in queries]
        if self._lists is not None:
            return self._best_of_lists(self._lists, queries, k, allowed)
        return self._best_of_all(queries, k, num_allowed, allowed)

    def _best_of_all(self, queries: FloatArray, k: int, num_allowed: int, allowed: BoolArray | None) -> list[BestRows]:
        num_candidates = min(k + SPARE_CANDIDATES, num_allowed)
        arguments = _selection(allowed)
        coarse, rows = self._index.search(queries, num_candidates, params=arguments)
        found = []
        for query, coarse_scores, query_rows in zip(queries, coarse, rows, strict=True):
            num_seen, last = num_candidates, float(coarse_scores[-1])
            scores = self._scores(query, query_rows)
            # A row that was not looked at may reach the k-th score: look at more (hundreds of equal blank pages).
            while num_seen < num_allowed and last >= kth_score(scores, k) - ROUNDING:
                num_seen = min(4 * num_seen, num_allowed)
                more, wide_rows = self._index.search(query[None], num_seen, params=arguments)
                query_rows, last = wide_rows[0], float(more[0, -1])
                scores = self._scores(query, query_rows)
            found.append(best_rows(query_rows, scores, k))
        return found

    def _best_of_lists(
        self, lists: faiss.Index, queries: FloatArray, k: int, allowed: BoolArray | None
    ) -> list[BestRows]:
        selected = _selector(allowed)
        arguments = faiss.SearchParametersIVF(sel=selected, nprobe=self._num_probes)
        _, rows = lists.search(queries, min(_REFINED * k + SPARE_CANDIDATES, len(self)), params=arguments)
        found = []
        for query, query_rows in zip(queries, rows, strict=True):
            held = query_rows[query_rows >= 0]  # fewer where the lists hold no more
            found.append(best_rows(held, self._scores(query, held), k))
        return found

    def _scores(self, query: FloatArray, rows: RowArray) -> ScoreArray:
        return exact_scores(self.copies(rows), query)

    def write(self, file: Path) -> None:
        """Write the vectors, whole or not at all.

        Raises:
            OSError: the disk is full, or there is no permission.
        """
        _write(self._index, file)

    def write_lists(self, file: Path, num_lists: int) -> None:
        """Write inverted lists over the vectors, which make searches of millions quick, and inexact.

        Args:
            file: the file to write, which is replaced.
            num_lists: how many lists are built; never more than there are vectors.

        Raises:
            OSError: the disk is full, or there is no permission.
        """
        num_lists = min(num_lists, len(self))
        lists = faiss.IndexIVFScalarQuantizer(
            faiss.IndexFlatIP(self.dimension),
            self.dimension,
            num_lists,
            faiss.ScalarQuantizer.QT_8bit,
            faiss.METRIC_INNER_PRODUCT,
        )
        lists.cp.min_points_per_centroid = 1  # a small index in a test needs no warning
        step = max(1, len(self) // (_LIST_SAMPLES * num_lists))
        lists.train(self.rows(np.arange(0, len(self), step)))
        for vectors in self.copies(np.arange(len(self))):
            lists.add(vectors)
        _write(lists, file)


def _selection(allowed: BoolArray | None) -> faiss.SearchParameters | None:
    return None if allowed is None else faiss.SearchParameters(sel=_selector(allowed))


def _selector(allowed: BoolArray | None) -> faiss.IDSelectorBitmap | None:
    return None if allowed is None else faiss.IDSelectorBitmap(np.packbits(allowed, bitorder="little"))


def _read(file: Path, how: int) -> faiss.Index:
    try:
        return faiss.read_index(str(file), how)
    except RuntimeError as error:
        raise VectorFileError(str(error).splitlines()[0]) from error


def _write(index: faiss.Index, file: Path) -> None:
    problems: list[OSError] = []
    with replacing(file) as output:

        def write(piece: bytes) -> int:
            try:
                return output.write(piece)
            except OSError as error:
                problems.append(error)
                return 0

        try:
            writer = faiss.PyCallbackIOWriter(write, _WRITE_BYTES)
            faiss.write_index(index, writer)
            del writer  # it writes what it still holds
        except RuntimeError:
            if not problems:
                raise
        if problems:  # faiss tells of them in words of its own, if at all
            raise problems[0]
