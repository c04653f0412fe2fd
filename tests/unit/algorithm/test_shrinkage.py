"""The baseline between a response's siblings and the step's other groups."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rsgrpo.algorithm.advantages import credit_groups
from rsgrpo.algorithm.shrinkage import Shrinkage, shrinkage
from rsgrpo.config import ConfigError, CreditConfig, FilterConfig, RlConfig
from tests.examples import examples
from tests.unit.strategies import simple_group

SHRUNK = CreditConfig(baseline="shrunk_mean", scale="none", aggregation="constant", constant_tokens=1)
VALUES = st.floats(-5, 5).map(lambda value: round(value, 3))


def of(*groups: list[float]) -> Shrinkage:
    return shrinkage([np.array(values) for values in groups])


def test_alike_questions_are_compared_with_the_other_groups_and_different_ones_with_siblings() -> None:
    # For the last group the others have s = 1/2 and the means 1/2, 1/2: t = max(0, 0 - 1/4) = 0, weight 1.
    found = of([0, 1], [1, 0], [1, 1])
    assert (found.weight[2], found.others_mean[2]) == (1.0, 0.5)
    # The others' means 0 and 10 with no variance within: s = 0, weight 0.
    assert of([0, 0], [10, 10], [1, 0]).weight[2] == 0.0
    # s = 1/2, means 1/2 and 7/2: t = 9/2 - 1/2 * 1/2 = 17/4; three values have two siblings, noise 1/4:
    # the weight is (1/4) / (1/4 + 17/4) = 1/18, the mean of the others 2.
    found = of([0, 1], [3, 4], [5, 6, 7])
    assert found.weight[2] == pytest.approx(1 / 18)
    assert found.others_mean[2] == 2.0


def test_without_two_other_groups_siblings_alone_count_and_without_siblings_the_others_alone() -> None:
    assert of([0, 1], [1, 1]).weight.tolist() == [0.0, 0.0]
    assert of([0, 1]).weight.tolist() == [0.0]
    found = of([0], [1], [])
    assert found.weight[:2].tolist() == [1.0, 1.0]
    assert found.others_mean[:2].tolist() == [1.0, 0.0]


@examples(100)
@given(st.lists(st.lists(VALUES, max_size=4), min_size=1, max_size=6))
def test_neither_mean_nor_weight_depends_on_the_groups_own_values(groups: list[list[float]]) -> None:
    found = of(*groups)
    assert ((found.weight >= 0) & (found.weight <= 1)).all()
    for index, values in enumerate(groups):
        other = of(*groups[:index], [value * -3 + 1 for value in values], *groups[index + 1 :])
        assert other.weight[index] == found.weight[index]
        assert other.others_mean[index] == found.others_mean[index]


def test_the_gradient_has_no_bias_and_less_variance_where_questions_are_alike() -> None:
    # One token, sampled 1 with probability p; it earns 1 or 0. d/dx E[r] = p (1 - p) for p = sigmoid(x), and the
    # gradient of a token's log-probability is token - p. All outcomes of one group of two, three others fixed.
    others = [[0.0, 1.0], [1.0, 0.0], [1.0, 1.0]]
    p = 0.6

    def estimates(config: CreditConfig) -> tuple[float, float]:
        mean = square = 0.0
        for pair in itertools.product((0, 1), repeat=2):
            groups = [
                simple_group(str(n), "a", values, [1, 1]) for n, values in enumerate([[*map(float, pair)], *others])
            ]
            credited, *_ = credit_groups(groups, {"a": 1.0}, config)
            # The denominator counts the eight responses of the step; the group has two of them.
            estimate = 4 * sum(
                float((rollout.positive_weights - rollout.negative_weights)[0]) * (token - p)
                for rollout, token in zip(credited.rollouts, pair, strict=True)
            )
            chance = float(np.prod([p if token else 1 - p for token in pair]))
            mean += chance * estimate
            square += chance * estimate**2
        return mean, square - mean**2

    alone = CreditConfig(baseline="leave_one_out", scale="none", aggregation="constant", constant_tokens=1)
    (shrunk_mean, shrunk_variance), (alone_mean, alone_variance) = estimates(SHRUNK), estimates(alone)
    assert alone_mean == pytest.approx(p * (1 - p), rel=1e-5)
    assert shrunk_mean == pytest.approx(p * (1 - p), rel=1e-5)
    assert shrunk_variance < 0.6 * alone_variance


def test_a_group_of_equal_values_gets_credit_against_the_others_and_none_from_rounding() -> None:
    alike = ([0.0, 1.0], [1.0, 0.0], [1.0, 1.0])
    groups = [simple_group(str(n), "a", values, [1, 1]) for n, values in enumerate(alike)]
    assert credit_groups(groups, {"a": 1.0}, SHRUNK)[2].rollouts[0].advantages == (0.5,)
    # Three times 0.1 + 0.2: the mean of two of them is not the third to the last bit. The others differ a lot
    # and have no variance of their own, so that siblings alone count.
    groups = [
        simple_group(str(n), "a", values, [1] * 3) for n, values in enumerate(([0.0] * 3, [9.0] * 3, [0.1 + 0.2] * 3))
    ]
    for rollout in credit_groups(groups, {"a": 1.0}, SHRUNK)[2].rollouts:
        assert rollout.advantages == (0.0,)


def test_settings_that_contradict_it_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"baseline=shrunk_mean compares over the batch.* set rl\.credit\.scale"):
        CreditConfig(baseline="shrunk_mean")
    with pytest.raises(ConfigError, match=r"baseline=shrunk_mean they have credit too; set rl\.filter\.mode=none"):
        RlConfig(credit=SHRUNK)
    RlConfig(credit=SHRUNK, filter=FilterConfig(mode="none"), samples_per_prompt=1)
