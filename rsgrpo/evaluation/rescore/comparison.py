"""Compare two runs on the same samples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rsgrpo.evaluation.benchmarks.aggregate import summarize_values
from rsgrpo.evaluation.benchmarks.base import BenchmarkResult, MetricSummary, ScoredItem

_MAX_EXACT_PAIRS = 25  # beyond, Wilcoxon's normal approximation is as good and exact tables are slow


@dataclass(frozen=True, kw_only=True, slots=True)
class PairedTest:
    """One metric of two runs over the samples that both answered.

    Attributes:
        metric: the name of the metric.
        mean_first: the mean of the first run.
        mean_second: the mean of the second run.
        difference: the second mean minus the first, with its paired-bootstrap interval; ``count`` is the number of
            pairs.
        num_better: on how many samples the second run is better.
        num_worse: on how many samples the second run is worse.
        test: the name of the test: ``McNemar, exact`` where the metric is 0 or 1 only, else ``Wilcoxon signed-rank``.
        p_value: the two-sided p-value; 1.0 where no sample differs.
    """

    metric: str
    mean_first: float
    mean_second: float
    difference: MetricSummary
    num_better: int
    num_worse: int
    test: str
    p_value: float


@dataclass(frozen=True, kw_only=True, slots=True)
class PairedSample:
    """One sample in two runs."""

    sample_id: str
    first: ScoredItem
    second: ScoredItem


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """Two runs on one benchmark in one mode.

    Attributes:
        tests: the tests of all metrics.
        pairs: the samples that both runs answered.
        num_only_first: how many samples only the first run answered.
        num_only_second: how many samples only the second run answered.
    """

    tests: tuple[PairedTest, ...]
    pairs: tuple[PairedSample, ...]
    num_only_first: int
    num_only_second: int


def compare(first: BenchmarkResult, second: BenchmarkResult) -> Comparison:
    """Pair two results sample by sample and test each metric's difference.

    A sample (at one needle position) that a run answered more than once counts with its last answer.

    Args:
        first: the result of the baseline.
        second: the result of the run that is compared with it, in the same mode.

    Returns:
        The tests of all metrics, and the pairs.

    Example:
        Two runs, 0/1 scores: the second is right on 8 samples where the first is wrong and wrong on 2 where
        it is right. McNemar's exact test: 2 * P(Binomial(10, 1/2) <= 2) = 0.109.
    """
    left, right = _by_sample(first), _by_sample(second)
    pairs = tuple(
        PairedSample(sample_id=key[0], first=item, second=right[key]) for key, item in left.items() if key in right
    )
    names = [name for name in first.metrics if all(name in pair.first.metrics for pair in pairs)]
    return Comparison(
        tests=tuple(_test(name, pairs) for name in names) if pairs else (),
        pairs=pairs,
        num_only_first=len(left.keys() - right.keys()),
        num_only_second=len(right.keys() - left.keys()),
    )


def _by_sample(result: BenchmarkResult) -> Mapping[tuple[str, str], ScoredItem]:
    return {(item.sample_id, item.groups.get("needle position", "")): item for item in result.items}


def _test(metric: str, pairs: tuple[PairedSample, ...]) -> PairedTest:
    before = np.array([pair.first.metrics[metric] for pair in pairs])
    after = np.array([pair.second.metrics[metric] for pair in pairs])
    differences = after - before
    num_better, num_worse = int((differences > 0).sum()), int((differences < 0).sum())
    is_binary = bool(np.isin(np.concatenate([before, after]), (0.0, 1.0)).all())
    return PairedTest(
        metric=metric,
        mean_first=float(before.mean()),
        mean_second=float(after.mean()),
        difference=summarize_values(differences.tolist()),
        num_better=num_better,
        num_worse=num_worse,
        test="McNemar, exact" if is_binary else "Wilcoxon signed-rank",
        p_value=_p_value(differences, is_binary=is_binary),
    )


def _p_value(differences: NDArray[np.float64], *, is_binary: bool) -> float:
    changed = differences[differences != 0]
    if not len(changed):
        return 1.0
    from scipy import stats  # here, because it takes half a second and most rescoring compares nothing

    if is_binary:
        return float(stats.binomtest(int((changed > 0).sum()), len(changed)).pvalue)
    has_ties = len(set(np.abs(changed))) < len(changed)
    method = "approx" if has_ties or len(changed) > _MAX_EXACT_PAIRS else "exact"
    return float(stats.wilcoxon(changed, method=method).pvalue)
