"""Which training pairs stand together in which step, decided for the whole training before it begins.

A batch is of one source (VisRAG, arXiv:2410.10594: pages of another source are told apart by their looks alone), and
holds no page and no question twice: the page of one pair would be a wrong answer to the other. The plan depends on the
pairs and the seed only, not on how many ranks share a batch.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from rsgrpo.data.file_bytes import DataError
from rsgrpo.errors import shown
from rsgrpo.retrieval.training.training_pairs import TrainingPair

Rows = NDArray[np.int64]
"""Numbers of pairs, from 0."""

_SHOWN_SOURCES = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchPlan:
    """The batches of a training, in order.

    Attributes:
        batches: the numbers of the pairs of each step, [batch_size] each.
        num_left_out: how many pairs the first epoch leaves out, as they fill no batch.
        small_sources: how many pairs the sources have that fill no batch at all, by name.
    """

    batches: tuple[Rows, ...]
    num_left_out: int
    small_sources: dict[str, int]


def plan_batches(
    pairs: Sequence[TrainingPair], *, batch_size: int, num_epochs: int, max_steps: int, seed: int
) -> BatchPlan:
    """Put pairs into batches.

    Args:
        pairs: the pairs.
        batch_size: how many pairs a batch has, over all ranks.
        num_epochs: how many passes over the pairs there are; each has an order of its own. What fills no batch is left
            out of the epoch.
        max_steps: the most batches; 0: as many as the epochs have.
        seed: the seed of the orders.

    Returns:
        The plan; the same for the same arguments.

    Raises:
        DataError: no source has pairs for a single batch.

    Example:
        Five pairs of source A and three of B, ``batch_size=2``: two batches of A and one of B in each epoch.
    """
    by_source: dict[str, list[int]] = defaultdict(list)
    for row, pair in enumerate(pairs):
        by_source[pair.source].append(row)
    batches: list[Rows] = []
    num_left_out = 0
    filled: set[str] = set()
    for epoch in range(num_epochs):
        of_epoch: list[Rows] = []
        generator = np.random.default_rng((seed, epoch))
        for source, rows in sorted(by_source.items()):
            found = _batches_of(pairs, generator.permutation(rows), batch_size)
            filled |= {source} if found else set()
            of_epoch += found
        if not of_epoch:
            break
        num_left_out = num_left_out if epoch else len(pairs) - batch_size * len(of_epoch)
        batches += [of_epoch[index] for index in generator.permutation(len(of_epoch))]
        if max_steps and len(batches) >= max_steps:
            break
    if not batches:
        raise DataError(_too_few(pairs, batch_size))
    return BatchPlan(
        batches=tuple(batches[: max_steps or None]),
        num_left_out=num_left_out,
        small_sources={source: len(rows) for source, rows in sorted(by_source.items()) if source not in filled},
    )


def _batches_of(pairs: Sequence[TrainingPair], rows: Rows, batch_size: int) -> list[Rows]:
    """Put each pair into the first batch that is not full and has neither its page nor its question."""
    full: list[Rows] = []
    open_batches: list[_OpenBatch] = []
    for row in rows.tolist():
        keys = _keys(pairs[row])
        batch = next((found for found in open_batches if found.keys.isdisjoint(keys)), None)
        if batch is None:
            batch = _OpenBatch()
            open_batches.append(batch)
        batch.rows.append(row)
        batch.keys |= keys
        if len(batch.rows) == batch_size:
            full.append(np.array(batch.rows, dtype=np.int64))
            open_batches.remove(batch)
    return full


@dataclass(eq=False, slots=True)
class _OpenBatch:
    """A batch that is not full yet, with the pages and questions that it has."""

    rows: list[int] = field(default_factory=list)
    keys: set[str] = field(default_factory=set)


def _keys(pair: TrainingPair) -> set[str]:
    return {f"page {pair.page.digest}", f"question {' '.join(pair.query.split())}"}


def _too_few(pairs: Sequence[TrainingPair], batch_size: int) -> str:
    keys: dict[str, set[str]] = defaultdict(set)
    for pair in pairs:
        keys[pair.source] |= _keys(pair)
    pages = Counter({source: sum(key.startswith("page ") for key in found) for source, found in keys.items()})
    named = ", ".join(
        f"{count} pages and {len(keys[source]) - count} questions{f' of {shown(source, 40)!r}' if source else ''}"
        for source, count in pages.most_common(_SHOWN_SOURCES)
    )
    return (
        f"retriever.batch_size={batch_size} is more than any source has different pages and questions for ({named}): a "
        "batch is of one source and has no page and no question twice; lower retriever.batch_size, or add pairs"
    )
