"""The vectors of pages that have many each, in memory or mapped from files, and which pages score highest.

Three files belong together, each an array of numpy's own format:

    vectors-000003.npy   the vectors of all pages one after another, [vectors, dimension] float32 or float16
    offsets-000003.npy   where each page's vectors begin, and where the last one's end, [pages + 1] int64
    means-000003.npy     the mean of each page's vectors, [pages, dimension] float32
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy_format
from numpy.typing import NDArray

from rsgrpo.io.atomic_files import replacing
from rsgrpo.retrieval.index.exact_scores import BestRows, RowArray, ScoreArray, best_rows, kth_score
from rsgrpo.retrieval.index.maxsim import Counts, exact_maxsim, maxsim_scores, rounding_of, starts_of
from rsgrpo.retrieval.index.vector_file import VectorFileError
from rsgrpo.types import BoolArray, FloatArray

_VECTORS_AT_ONCE = 1 << 14  # of 128 float32 each 8 MiB, which a core's caches hold
_PRODUCTS_AT_ONCE = 1 << 22
_QUERIES_AT_ONCE = 64


class MultiVectorRows:
    """Pages with many vectors each, numbered from 0 as they were added.

    Args:
        vectors: the vectors of all pages one after another, [vectors, dimension] float32 or float16.
        offsets: where each page's vectors begin, and where the last one's end, [pages + 1] int64.
        means: the mean of each page's vectors, [pages, dimension] float32; None: every search looks at all vectors.
        num_candidates: how many pages a search looks at in full, those whose means score highest; 0: all.
    """

    def __init__(
        self, vectors: NDArray[Any], offsets: Counts, means: FloatArray | None = None, num_candidates: int = 0
    ) -> None:
        self._vectors = vectors
        self._offsets = offsets
        self._means = means
        self._num_candidates = num_candidates
        self._waiting: list[FloatArray] = []  # added, and not yet behind the others

    @classmethod
    def empty(cls, dimension: int) -> MultiVectorRows:
        """Make an object without pages, to which some can be added.

        Args:
            dimension: how many numbers each vector has.

        Returns:
            The object, in memory.
        """
        return cls(np.zeros((0, dimension), np.float32), np.zeros(1, np.int64))

    @classmethod
    def mapped(cls, vectors: Path, offsets: Path, means: Path, num_candidates: int = 0) -> MultiVectorRows:
        """Map the vectors of a file, of which only what a search touches is read.

        Args:
            vectors: the file of the vectors, as :func:`write_multi_vectors` wrote it.
            offsets: the file that says which of them belong to a page.
            means: the file of the means.
            num_candidates: how many pages a search looks at in full; 0: all.

        Returns:
            The pages, mapped.

        Raises:
            VectorFileError: a file cannot be read or holds something else, or they do not fit together.
        """
        found, starts, centres = _read(vectors), _read(offsets), _read(means)
        num_pages = len(starts) - 1
        if found.ndim != 2 or found.dtype not in (np.float32, np.float16):
            raise VectorFileError(
                f"it holds {found.dtype} of the shape {list(found.shape)}, where vectors are expected"
            )
        if starts.dtype != np.int64 or num_pages < 0 or starts[0] != 0 or starts[-1] != len(found):
            raise VectorFileError(f"its offsets are not of the {len(found)} vectors beside them")
        if (np.diff(starts) < 1).any() or centres.shape != (num_pages, found.shape[1]):
            raise VectorFileError("a page has no vectors, or its offsets and means are not of the same pages")
        return cls(found, starts, centres, num_candidates)

    def __len__(self) -> int:
        return len(self._offsets) - 1 + len(self._waiting)

    @property
    def dimension(self) -> int:
        """How many numbers each vector has."""
        return int(self._vectors.shape[1])

    def add(self, vectors: Sequence[FloatArray]) -> None:
        """Append pages.

        Args:
            vectors: the vectors of each page, [vectors, dimension] float32, at least one.
        """
        self._waiting += vectors

    def counts(self, rows: RowArray) -> Counts:
        """Count the vectors of some pages.

        Args:
            rows: the numbers of the pages, [n] int64.

        Returns:
            The number of vectors of each, [n] int64.
        """
        self._settle()
        found: Counts = self._offsets[rows + 1] - self._offsets[rows]
        return found

    def rows(self, rows: RowArray) -> list[FloatArray]:
        """Copy the vectors of some pages.

        Args:
            rows: the numbers of the pages, [n] int64.

        Returns:
            For each page, in the order of ``rows``, its vectors, [vectors, dimension] float32.
        """
        self._settle()
        return [np.array(self._vectors[self._offsets[row] : self._offsets[row + 1]], np.float32) for row in rows]

    def parts(self, rows: RowArray, at_once: int | None = None) -> Iterator[tuple[FloatArray, Counts]]:
        """Read the vectors of some pages, a few thousand at a time.

        Args:
            rows: the numbers of the pages, [n] int64, rising.
            at_once: the most vectors to give at a time; a page that has more comes alone. None: 16,384.

        Yields:
            The vectors of the next pages one after another, [vectors, dimension] float32, and the number of vectors of
            each, [pages] int64.
        """
        counts = self.counts(rows)
        ends = np.cumsum(counts)
        first = 0
        while first < len(rows):
            before = ends[first] - counts[first]
            stop = max(first + 1, int(np.searchsorted(ends, before + (at_once or _VECTORS_AT_ONCE), side="right")))
            yield self._vectors_of(rows[first:stop], counts[first:stop]), counts[first:stop]
            first = stop

    def best(self, queries: Sequence[FloatArray], k: int, allowed: BoolArray | None = None) -> list[BestRows]:
        """Find the best pages for each question.

        Args:
            queries: the vectors of each question, [vectors, dimension] float32, at least one.
            k: how many pages are asked for, at least 1.
            allowed: whether each page may be found, [pages] bool; None: all may.

        Returns:
            The best pages of each question, in the order of the questions.
        """
        self._settle()
        rows = np.arange(len(self)) if allowed is None else np.flatnonzero(allowed)
        if self._means is not None and 0 < self._num_candidates < len(rows):
            candidates = [self._candidates(self._means, query, rows, max(k, self._num_candidates)) for query in queries]
            return [self._best([query], k, of_query)[0] for query, of_query in zip(queries, candidates, strict=True)]
        found: list[BestRows] = []
        for start in range(0, len(queries), _QUERIES_AT_ONCE):
            found += self._best(queries[start : start + _QUERIES_AT_ONCE], k, rows)
        return found

    def _best(self, queries: Sequence[FloatArray], k: int, rows: RowArray) -> list[BestRows]:
        """Find the best of some pages: by scores in float32, then those that may be among them exactly."""
        if len(rows) <= k:
            return [BestRows(rows=rows, scores=self._exact(query, rows)) for query in queries]
        num_vectors = sum(map(len, queries))
        at_once = min(_VECTORS_AT_ONCE, max(1, _PRODUCTS_AT_ONCE // num_vectors))
        scores = np.concatenate([maxsim_scores(*part, queries) for part in self.parts(rows, at_once)])
        found = []
        for query, of_query in zip(queries, scores.T, strict=True):
            seen = rows[of_query >= kth_score(of_query, k) - 2 * rounding_of(query)]
            found.append(best_rows(seen, self._exact(query, seen), k))
        return found

    def _exact(self, query: FloatArray, rows: RowArray) -> ScoreArray:
        parts = [exact_maxsim(*part, query) for part in self.parts(rows)]
        return np.concatenate(parts) if parts else np.zeros(0)

    def _candidates(self, means: FloatArray, query: FloatArray, rows: RowArray, num: int) -> RowArray:
        """Choose pages by the score of their mean: the question's vectors, added up, against it."""
        whole = query.sum(axis=0)
        scores = np.concatenate(
            [means[rows[i : i + _VECTORS_AT_ONCE]] @ whole for i in range(0, len(rows), _VECTORS_AT_ONCE)]
        )
        found: RowArray = rows[scores >= kth_score(scores, num)]
        return found

    def _vectors_of(self, rows: RowArray, counts: Counts) -> FloatArray:
        if rows[-1] - rows[0] + 1 == len(rows):
            return _as_float32(self._vectors[self._offsets[rows[0]] : self._offsets[rows[-1] + 1]])
        places = np.repeat(self._offsets[rows] - starts_of(counts), counts) + np.arange(counts.sum())
        return _as_float32(self._vectors[places])

    def _settle(self) -> None:
        """Put the pages that were added behind the others."""
        if self._waiting:
            ends = self._offsets[-1] + np.cumsum([len(vectors) for vectors in self._waiting])
            self._vectors = np.concatenate([self._vectors, *self._waiting])
            self._offsets = np.concatenate([self._offsets, ends])
            self._waiting = []


def write_multi_vectors(
    vectors: Path, offsets: Path, means: Path, sources: Sequence[tuple[MultiVectorRows, RowArray]], *, is_half: bool
) -> None:
    """Write the vectors of pages, each file whole or not at all; only a few thousand vectors are in memory at a time.

    Args:
        vectors: the file to write the vectors to.
        offsets: the file to write to where each page's begin.
        means: the file to write the mean of each page's vectors to.
        sources: the pages to write: an object that holds some, and their numbers in it, rising, [n] int64.
        is_half: whether the vectors are written in float16 instead of float32.

    Raises:
        OSError: the disk is full, or there is no permission.
    """
    counts = np.concatenate([rows_of.counts(rows) for rows_of, rows in sources])
    dimension = sources[0][0].dimension
    kind = np.dtype(np.float16 if is_half else np.float32)
    with replacing(vectors) as output, replacing(means) as centres:
        _write_header(output, (int(counts.sum()), dimension), kind)
        _write_header(centres, (len(counts), dimension), np.dtype(np.float32))
        for rows_of, rows in sources:
            for part, part_counts in rows_of.parts(rows):
                output.write(np.ascontiguousarray(part, kind).data)
                summed = np.add.reduceat(part.astype(np.float64), starts_of(part_counts), axis=0)
                centres.write(np.ascontiguousarray(summed / part_counts[:, None], np.float32).data)
    with replacing(offsets) as output:
        starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
        _write_header(output, starts.shape, starts.dtype)
        output.write(starts.data)


def _write_header(output: Any, shape: tuple[int, ...], kind: np.dtype[Any]) -> None:
    descr = npy_format.dtype_to_descr(kind)
    npy_format.write_array_header_1_0(output, {"descr": descr, "fortran_order": False, "shape": shape})


def _read(file: Path) -> NDArray[Any]:
    try:
        # Not numpy's load, which would also open pickles. Copy on write: torch takes no array that is read-only.
        found: NDArray[Any] = np.asarray(npy_format.open_memmap(file, mode="c"))
    except (ValueError, EOFError) as error:
        raise VectorFileError(str(error).splitlines()[0]) from error
    return found


def _as_float32(vectors: NDArray[Any]) -> FloatArray:
    if vectors.dtype == np.float32:
        return vectors
    import torch  # four times as fast as numpy here; only for half precision, as it takes long to import

    found: FloatArray = torch.from_numpy(vectors).float().numpy()
    return found
