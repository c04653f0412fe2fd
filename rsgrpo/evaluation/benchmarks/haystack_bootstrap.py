"""The numbers that the Visual Haystacks and MIRAGE scorers print: means and deviations over 100 resamples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

NUM_RESAMPLES = 100


@dataclass(frozen=True, kw_only=True, slots=True)
class Reply:
    """One reply as the scorer sees it.

    Attributes:
        is_correct: whether gold is among the tokens of the reply.
        is_compliant: whether yes or no is among the tokens of the reply.
        retrieved: for each image 1 if the model's retriever kept it, else 0; empty where unknown.
        relevant: for each image 1 if it is relevant by gold, else 0; empty where unknown.
    """

    is_correct: bool
    is_compliant: bool
    retrieved: tuple[int, ...] = ()
    relevant: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Printed:
    """The printed numbers, and in how many resamples a ratio was undefined (counted as 0; MIRAGE stops there)."""

    numbers: Mapping[str, float]
    num_undefined: int


def printed_numbers(records: Sequence[Sequence[Reply]], seed: int = 0) -> Printed:
    """Resample questions with replacement, 100 times, by numpy's legacy generator as the original does.

    Args:
        records: replies by question: one, or one for each needle position.
        seed: the seed of the generator.

    Returns:
        The printed numbers by name: ``accuracy_mean``, ``accuracy_std`` (population), ``compliance_…``; over several
        positions also ``position_<j>_correct``, ``…_compliant`` and ``…_total``, summed over resamples; with retrieval
        flags also ``recall_…`` and ``precision_…`` of the pooled images.
    """
    if not records:
        return Printed(numbers={}, num_undefined=0)
    num_records = len(records)
    generator = np.random.RandomState(seed)
    # [100, n] times each question was drawn
    weights = np.stack(
        [
            np.bincount(generator.choice(num_records, num_records, replace=True), minlength=num_records)
            for _ in range(NUM_RESAMPLES)
        ]
    )
    num_positions = max(len(replies) for replies in records)
    correct, compliant, total = (np.zeros((num_records, num_positions), dtype=np.int64) for _ in range(3))
    for row, replies in enumerate(records):
        for column, reply in enumerate(replies):
            correct[row, column] = reply.is_correct
            compliant[row, column] = reply.is_compliant
            total[row, column] = 1
    drawn = (weights @ total).sum(axis=1)
    numbers: dict[str, float] = {}
    _add_spread(numbers, "accuracy", (weights @ correct).sum(axis=1) / drawn)
    _add_spread(numbers, "compliance", (weights @ compliant).sum(axis=1) / drawn)
    if num_positions > 1:
        for title, counts in (("correct", correct), ("compliant", compliant), ("total", total)):
            for position, value in enumerate((weights @ counts).sum(axis=0)):
                numbers[f"position_{position}_{title}"] = float(value)
    num_undefined = _add_retrieval(numbers, records, weights)
    return Printed(numbers=numbers, num_undefined=num_undefined)


def _add_spread(numbers: dict[str, float], name: str, values: NDArray[np.float64]) -> None:
    numbers[f"{name}_mean"] = float(np.mean(values))
    numbers[f"{name}_std"] = float(np.std(values))


def _add_retrieval(numbers: dict[str, float], records: Sequence[Sequence[Reply]], weights: NDArray[np.int64]) -> int:
    """Add pooled recall and precision, where every reply has flags; returns how many ratios were undefined."""
    replies = [reply for record in records for reply in record]
    if len(replies) != len(records) or not all(reply.retrieved and reply.relevant for reply in replies):
        return 0
    counts = np.array([_confusion(reply) for reply in replies], dtype=np.int64)  # [n, 3]
    hits, false_alarms, misses = (weights @ counts).T
    num_undefined = 0
    for name, others in (("recall", misses), ("precision", false_alarms)):
        whole = hits + others
        num_undefined += int((whole == 0).sum())
        _add_spread(numbers, name, hits / np.maximum(whole, 1))
    return num_undefined


def _confusion(reply: Reply) -> tuple[int, int, int]:
    pairs = list(zip(reply.retrieved, reply.relevant, strict=False))
    return pairs.count((1, 1)), pairs.count((1, 0)), pairs.count((0, 1))
