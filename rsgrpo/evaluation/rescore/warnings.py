"""The warnings above the table: everything that changes what a number means, with its count."""

from __future__ import annotations

from collections import Counter

from rsgrpo.errors import shown
from rsgrpo.evaluation.benchmarks.base import NOT_TEXT
from rsgrpo.evaluation.rescore.scoring import DataSet, Rescored, some_ids
from rsgrpo.io.ids import near_misses

_NUM_NEAR = 3


def run_warnings(run: Rescored, data: DataSet) -> tuple[str, ...]:
    """Warnings of one run; empty where every question has one prediction, and every row is one.

    Args:
        run: the scored run.
        data: the data set that it was scored on.

    Returns:
        One sentence for each warning, the gravest first.
    """
    gaps, total = run.gaps, len(data.samples)
    counts = {mode: len(result.items) for mode, result in run.results.items()}
    over = f"official is over {counts['official']} items, strict over {counts['strict']}"
    found = []
    if gaps.missing:
        missing = [sample.sample_id for sample in gaps.missing]
        found.append(
            f"{len(missing)} of {_many(total, 'question')} without a prediction ({some_ids(missing)}); {over}: "
            "official treats them as the benchmark's own script would, strict scores them 0"
        )
    if gaps.unknown_ids:
        unknown = list(dict.fromkeys(gaps.unknown_ids))
        found.append(
            f"{_many(len(gaps.unknown_ids), 'prediction')} with an id that no question has ({some_ids(unknown)}): "
            "left out" + _alike(unknown, [sample.sample_id for sample in gaps.missing])
        )
    if gaps.problems:
        found.append(
            f"{_many(len(gaps.problems), 'row')} left out that are no prediction, where the original's script would "
            f"stop; {over}; the first: {shown(gaps.problems[0])}"
        )
    kinds = Counter(oddity.kind for oddity in gaps.oddities)
    for kind, count in kinds.items():
        first = next(oddity.detail for oddity in gaps.oddities if oddity.kind == kind)
        meaning = f"{count} x {kind}"
        if kind == NOT_TEXT:
            meaning += (
                ": official scores 0, where the original's script would stop; strict reads numbers, lists of one text"
            )
        found.append(f"{meaning}; the first: {shown(first)}")
    if gaps.doubled_ids:
        found.append(
            f"{_many(len(gaps.doubled_ids), 'prediction')} too many for questions that have one "
            f"({some_ids(gaps.doubled_ids)}); {over}: strict counts the last"
        )
    if data.skipped:
        listed = ", ".join(f"{count} x {reason}" for reason, count in data.skipped.items())
        num_records = _many(sum(data.skipped.values()), "record")
        found.append(f"{num_records} of the data set left out that cannot be used ({shown(listed)})")
    return tuple(found)


def comparison_warnings(first: Rescored, second: Rescored) -> tuple[str, ...]:
    """Warnings of a comparison: what only one of two runs answered."""
    num_both = len(first.answered_ids & second.answered_ids)
    lonely = [
        f"{len(run.answered_ids - other.answered_ids)} only by {shown(run.run)}"
        for run, other in ((first, second), (second, first))
        if run.answered_ids - other.answered_ids
    ]
    return (f"{num_both} questions are answered by both runs, {', '.join(lonely)}",) if lonely else ()


def _alike(unknown: list[str], missing: list[str]) -> str:
    pairs = near_misses(unknown, missing)
    shown_pairs = ", ".join(
        f"{shown(seen, 40)!r} looks like {shown(wanted, 40)!r}" for seen, wanted in pairs[:_NUM_NEAR]
    )
    return f" ({shown_pairs}{f', {len(pairs)} such' if len(pairs) > _NUM_NEAR else ''})" if pairs else ""


def _many(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
