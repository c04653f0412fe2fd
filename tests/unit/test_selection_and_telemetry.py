"""Which groups are trained on, and what a step tells about itself."""

from __future__ import annotations

import numpy as np
import pytest

from rsgrpo.advantages import credit_groups
from rsgrpo.config import CreditConfig, FilterConfig
from rsgrpo.selection import has_signal, mean_total, select_groups
from rsgrpo.telemetry import StaleWeightsError, check_logprob_gap, step_telemetry
from rsgrpo.types import ResponseStats
from tests.unit.test_credit_laws import make_group, reward

WEIGHTS = {"a": 3.0, "b": 1.0}


def _group(sample_id: str, a: tuple[float, float], b: tuple[float, float], *, scope: tuple[int, int] = (0, 2)):
    return make_group(sample_id, [4, 4], [[reward("a", a[i], scope), reward("b", b[i], (0, 4))] for i in range(2)])


def test_any_varying_reward_is_signal() -> None:
    assert has_signal(_group("g", (1, 0), (1, 1)), WEIGHTS)
    assert has_signal(_group("g", (1, 1), (0, 1)), WEIGHTS)
    # The mean of the sum lies in the public range, yet nothing can be learned: the public filter keeps it.
    equal = _group("g", (1, 1), (0, 0))
    assert not has_signal(equal, WEIGHTS)
    assert select_groups([equal], FilterConfig(mode="mean_range"), WEIGHTS).kept == (equal,)


def test_a_reward_without_weight_or_without_tokens_is_no_signal() -> None:
    assert not has_signal(_group("g", (1, 0), (1, 1)), {"a": 0.0, "b": 1.0})
    assert not has_signal(_group("g", (1, 0), (1, 1), scope=(2, 2)), WEIGHTS)


def test_selection_counts_what_it_drops_and_never_fails_on_nothing() -> None:
    groups = [_group("keep", (1, 0), (1, 1)), _group("drop", (0, 0), (0, 0))]
    selection = select_groups(groups, FilterConfig(), WEIGHTS)
    assert [group.sample_id for group in selection.kept] == ["keep"]
    assert selection.dropped == {"no_signal": 1}
    assert select_groups([], FilterConfig(), WEIGHTS).kept == ()
    assert len(select_groups(groups, FilterConfig(mode="none"), WEIGHTS).kept) == 2


def test_the_public_rule_looks_at_the_mean_of_the_weighted_sum() -> None:
    # sums 3·1 + 1 and 3·0 + 0: mean 2, inside (0.01, 6.9); all zero: mean 0, outside
    assert mean_total(_group("g", (1, 0), (1, 0)), WEIGHTS) == 2.0
    selection = select_groups([_group("g", (0, 0), (0, 0))], FilterConfig(mode="mean_range"), WEIGHTS)
    assert selection.dropped == {"mean_out_of_range": 1}


def test_telemetry_of_a_step_by_hand() -> None:
    credited = credit_groups([_group("g", (1, 0), (0, 1))], WEIGHTS, CreditConfig())
    stats = [
        ResponseStats(
            sample_id="g",
            response_index=index,
            logprobs=np.array([0.0, 0.0, 0.0, -0.4], np.float32),
            entropy=np.array([1, 3, 0, 0], np.float32),
        )
        for index in range(2)
    ]
    values = step_telemetry(credited, stats, WEIGHTS)
    assert values["reward/a/mean"] == 0.5
    assert values["reward/total"] == 3 * 0.5 + 0.5
    assert values["scope/a/mean_tokens"] == 2
    assert values["scope/a/entropy"] == 2.0  # (1 + 3) / 2 tokens
    assert values["scope/b/entropy"] == 1.0  # 4 / 4
    assert values["scope/a/flat_groups_frac"] == 0.0
    # a pulls tokens 0 and 1 one way, b all four the other: half of the credited tokens are pulled both ways
    assert values["scope/sign_conflict_frac"] == 0.5
    # the engine said 0 everywhere: gaps 0, 0, 0, 0.4
    assert values["engine/logprob_gap_max"] == pytest.approx(0.4)
    assert values["engine/logprob_gap_mean"] == pytest.approx(0.1)
    assert values["engine/kl"] == pytest.approx((np.exp(-0.4) + 0.4 - 1) / 4, rel=1e-5)


def test_stale_weights_stop_the_run() -> None:
    check_logprob_gap(0.49, 0.5)
    for gap in (0.51, float("nan")):
        with pytest.raises(StaleWeightsError, match="stale or broken weights"):
            check_logprob_gap(gap, 0.5)
