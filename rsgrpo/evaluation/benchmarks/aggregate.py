"""From scored items to a result: means, bootstrap intervals, breakdowns and counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from rsgrpo.evaluation.benchmarks.base import BenchmarkResult, GroupSummary, MetricSummary, Mode, ScoredItem

NUM_RESAMPLES = 1000
_SEED = 20260101  # fixed: the same predictions always print the same interval
_QUANTILES = (0.025, 0.975)


def bootstrap_means(values: NDArray[np.float64], num_resamples: int = NUM_RESAMPLES) -> NDArray[np.float64]:
    """Means of resamples with replacement, seeded.

    A resample of n values is a multinomial draw over the distinct ones, which is the same distribution
    and needs k binomial draws instead of n index draws.

    Args:
        values: [n] float64, at least one.
        num_resamples: B, how many resamples are drawn.

    Returns:
        [B] float64, the mean of each resample.

    Example:
        Values 0, 0, 1, 1: each mean is Binomial(4, 1/2) / 4.
    """
    distinct, counts = np.unique(values, return_counts=True)
    draws = np.random.default_rng(_SEED).multinomial(len(values), counts / len(values), size=num_resamples)
    means: NDArray[np.float64] = draws @ distinct / len(values)
    return means


def summary_of_draws(value: float, draws: NDArray[np.float64], count: int) -> MetricSummary:
    """A number with the 95 % percentile interval of its resamples."""
    low, high = np.quantile(draws, _QUANTILES)
    return MetricSummary(value=value, low=float(low), high=float(high), count=count)


def summarize_values(values: Sequence[float]) -> MetricSummary:
    """Mean and interval of some numbers; all zero where there are none."""
    if not values:
        return MetricSummary(value=0.0, low=0.0, high=0.0, count=0)
    array = np.asarray(values, dtype=np.float64)
    # sum() of Python adds from left to right, as the originals do.
    return summary_of_draws(sum(values) / len(values), bootstrap_means(array), len(values))


def summarize_metrics(items: Sequence[ScoredItem], names: Iterable[str]) -> dict[str, MetricSummary]:
    """Each metric over those items that have it."""
    return {name: summarize_values([item.metrics[name] for item in items if name in item.metrics]) for name in names}


def summarize_groups(items: Sequence[ScoredItem], names: Sequence[str]) -> tuple[GroupSummary, ...]:
    """The metrics broken down by every property that items carry, in order of first appearance."""
    members: dict[tuple[str, str], list[ScoredItem]] = {}
    for item in items:
        for key in item.groups.items():
            members.setdefault(key, []).append(item)
    return tuple(
        GroupSummary(kind=kind, name=name, metrics=summarize_metrics(some, names))
        for (kind, name), some in members.items()
    )


def macro_average(groups: Sequence[GroupSummary], items: Sequence[ScoredItem], kind: str, metric: str) -> MetricSummary:
    """Unweighted mean of one metric over the groups of one kind, its interval from resampling inside each group."""
    chosen = [group for group in groups if group.kind == kind]
    if not chosen:
        return MetricSummary(value=0.0, low=0.0, high=0.0, count=0)
    draws = np.zeros(NUM_RESAMPLES)
    for position, group in enumerate(chosen):
        values = [item.metrics[metric] for item in items if item.groups.get(kind) == group.name]
        # A rotation of its own for each group: they share the seed, and must not move together.
        draws += np.roll(bootstrap_means(np.asarray(values)), position * 37)
    value = sum(group.metrics[metric].value for group in chosen) / len(chosen)
    return summary_of_draws(value, draws / len(chosen), sum(group.metrics[metric].count for group in chosen))


def build_result(
    *,
    name: str,
    mode: Mode,
    main_metric: str,
    metric_names: Sequence[str],
    items: Sequence[ScoredItem],
    counts: Mapping[str, int],
    printed: Mapping[str, float],
    extra_metrics: Mapping[str, MetricSummary] | None = None,
) -> BenchmarkResult:
    """Put the result of a benchmark together from its scored items.

    Args:
        name: the name of the benchmark.
        mode: whose rules scored the items.
        main_metric: the metric that stands for the benchmark in short tables.
        metric_names: what items carry, in the order of tables.
        items: the scored items.
        counts: anomalies that belong to no item, such as missing predictions.
        printed: what the original's script prints.
        extra_metrics: further numbers over all items.

    Returns:
        The result; its ``anomalies`` adds up ``counts`` and those of the items.
    """
    anomalies = Counter({kind: count for kind, count in counts.items() if count})
    for item in items:
        anomalies.update(item.anomalies)
    return BenchmarkResult(
        name=name,
        mode=mode,
        main_metric=main_metric,
        metrics=summarize_metrics(items, metric_names) | dict(extra_metrics or {}),
        groups=summarize_groups(items, metric_names),
        printed=dict(printed),
        anomalies=dict(anomalies),
        items=tuple(items),
    )
