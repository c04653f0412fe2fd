"""Credit by hand: what each option does, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rsgrpo.algorithm.advantages import credit_groups, normalise
from rsgrpo.algorithm.credit_table import merged
from rsgrpo.algorithm.zero_variance import ZERO_VARIANCE_SPREAD, has_zero_variance
from rsgrpo.config import Aggregation, CreditConfig, Normaliser, Scoping
from rsgrpo.types import ScopedReward, TokenSpan
from tests.oracles.upstream_objective import reference_advantages
from tests.unit.strategies import scoped_reward, scored_group, scored_rollout, simple_group

REFERENCE = CreditConfig(compat="upstream")


def test_options_of_the_normalisation() -> None:
    # values 3, 1, 2: mean 2, unbiased std 1; leave-one-out 3 - 1.5 = 1.5, 1 - 2.5 = -1.5, 0
    values = np.array([3.0, 1.0, 2.0])
    np.testing.assert_allclose(normalise(values, CreditConfig()), [1, -1, 0], rtol=2e-6)
    no_scale = CreditConfig(scale="none", baseline="leave_one_out")
    np.testing.assert_allclose(normalise(values, no_scale), [1.5, -1.5, 0])
    by_batch = CreditConfig(scale="batch_std", epsilon=0.0)
    np.testing.assert_allclose(normalise(values, by_batch, batch_std=4.0), [0.25, -0.25, 0])
    np.testing.assert_allclose(normalise(values, CreditConfig(epsilon=1.0)), [0.5, -0.5, 0])


def test_leave_one_out_with_a_scale_divides_by_the_groups_std() -> None:
    values = np.array([3.0, 1.0, 2.0])  # std 1, so the scale changes nothing
    np.testing.assert_allclose(normalise(values, CreditConfig(baseline="leave_one_out")), [1.5, -1.5, 0], rtol=2e-6)


def test_the_step_wide_std_pools_all_groups_of_a_reward() -> None:
    # values 0, 2 and 4, 6: pooled mean 3, squares 9 + 1 + 1 + 9 = 20, unbiased std sqrt(20 / 3) = 2.58199
    groups = [simple_group("g", "a", [0.0, 2.0], [1, 1]), simple_group("h", "a", [4.0, 6.0], [1, 1])]
    credited = credit_groups(groups, {"a": 1.0}, CreditConfig(scale="batch_std", epsilon=0.0))
    advantages = [rollout.advantages[0] for group in credited for rollout in group.rollouts]
    np.testing.assert_allclose(advantages, np.array([-1, 1, -1, 1]) / 2.581988897)


def test_a_reward_that_does_not_apply_is_left_out_of_the_mean() -> None:
    # values 1, None, 0: mean 0.5, not 1/3; A = ±0.7071 and nothing for the second
    (group,) = credit_groups([simple_group("g", "a", [1.0, None, 0.0], [2, 2, 2])], {"a": 1.0}, CreditConfig())
    advantages = [rollout.advantages[0] for rollout in group.rollouts]
    np.testing.assert_allclose(advantages, [0.70711, 0.0, -0.70711], atol=1e-5)
    # its two tokens are in scope, but nothing was said of them: N = 4
    np.testing.assert_allclose(group.rollouts[0].positive_weights, 0.70711 / 4, rtol=1e-5)
    assert not group.rollouts[1].positive_weights.any()
    assert not group.rollouts[1].negative_weights.any()


@pytest.mark.parametrize("scoping", ["scoped", "whole"])
@pytest.mark.parametrize("aggregation", ["scope_tokens", "token_mean", "sequence_mean", "constant"])
def test_credit_does_not_depend_on_groups_to_which_no_reward_applies(
    aggregation: Aggregation, scoping: Scoping
) -> None:
    config = CreditConfig(aggregation=aggregation, scoping=scoping, constant_tokens=100)
    judged = simple_group("g", "a", [1.0, 0.0], [100, 60])
    others = [simple_group(f"g{index}", "a", [None, None], [80, 40]) for index in range(9)]
    (alone,) = credit_groups([judged], {"a": 1.0}, config)
    beside = credit_groups([judged, *others], {"a": 1.0}, config)
    for expected, found in zip(alone.rollouts, beside[0].rollouts, strict=True):
        assert expected.positive_weights.any() or expected.negative_weights.any()
        np.testing.assert_array_equal(expected.positive_weights, found.positive_weights)
        np.testing.assert_array_equal(expected.negative_weights, found.negative_weights)
    assert not any(
        rollout.positive_weights.any() or rollout.negative_weights.any()
        for group in beside[1:]
        for rollout in group.rollouts
    )


def test_a_reward_that_does_not_apply_pulls_the_weighted_sum_neither_up_nor_down() -> None:
    # format 1, 1, 1; a penalty None, -0.5, -1: its mean -0.75 stands for None. Totals 0.25, 0.5, 0: mean 0.25, std 0.25
    rollouts = [
        scored_rollout("g", row, 10, [scoped_reward("format", 1.0, (0, 10)), scoped_reward("penalty", value, (0, 10))])
        for row, value in enumerate((None, -0.5, -1.0))
    ]
    config = CreditConfig(scoping="whole", aggregation="sequence_mean")
    (group,) = credit_groups([scored_group("g", rollouts)], {"format": 1.0, "penalty": 1.0}, config)
    np.testing.assert_allclose([rollout.advantages[0] for rollout in group.rollouts], [0.0, 1.0, -1.0], atol=1e-5)
    # Where the only reward with a weight does not apply, there is nothing to compare: values None, 1, 0 of the other
    (group,) = credit_groups([scored_group("g", rollouts)], {"format": 0.0, "penalty": 1.0}, config)
    np.testing.assert_allclose(
        [rollout.advantages[1] for rollout in group.rollouts], [0.0, 0.70711, -0.70711], atol=1e-5
    )
    np.testing.assert_allclose(
        group.rollouts[1].positive_weights, 0.70711 / (2 * 10), rtol=1e-5
    )  # R = 2 responses judged


def test_the_public_formula_gives_a_reward_of_weight_0_nothing() -> None:
    # its z-scores of 0 r are 0, and so it is not counted in K_m either
    rollouts = [
        scored_rollout("g", row, size, [scoped_reward(name, value, (0, size)) for name, value in values.items()])
        for row, (size, values) in enumerate(((4, {"on": 1.0, "off": 0.0}), (5, {"on": 0.0, "off": 1.0})))
    ]
    config = CreditConfig(compat="upstream")
    (both,) = credit_groups([scored_group("g", rollouts)], {"on": 1.0, "off": 0.0}, config)
    # z = ±0.7071 on 4 + 5 tokens, K_m = 1
    np.testing.assert_allclose(both.rollouts[0].positive_weights, 0.70711 / 9, rtol=1e-5)
    assert not both.rollouts[0].negative_weights.any()
    assert [rollout.advantages[1] for rollout in both.rollouts] == [0.0, 0.0]


def test_a_rollout_without_the_scope_counts_in_the_mean_and_gets_no_credit() -> None:
    # values 1, 0, 0 with the scope only in the first two: mean 1/3, std 0.57735, A = 1.1547, -0.57735, none
    rollouts = [
        scored_rollout("g", 0, 2, [scoped_reward("a", 1.0, (0, 1))]),
        scored_rollout("g", 1, 2, [scoped_reward("a", 0.0, (0, 1))]),
        scored_rollout("g", 2, 2, [scoped_reward("a", 0.0)]),
    ]
    (group,) = credit_groups([scored_group("g", rollouts)], {"a": 1.0}, CreditConfig())
    np.testing.assert_allclose(
        [rollout.advantages[0] for rollout in group.rollouts], [1.1547, -0.57735, 0.0], rtol=1e-4
    )
    np.testing.assert_allclose(group.rollouts[0].positive_weights, [1.1547 / 2, 0.0], rtol=1e-4)
    assert not group.rollouts[2].negative_weights.any()


def test_tokens_count_over_the_step_also_without_an_advantage() -> None:
    # g varies, h does not, both have the scope: N = 2 + 2 + 3 + 3 = 10
    groups = [simple_group("g", "a", [1.0, 0.0], [2, 2]), simple_group("h", "a", [1.0, 1.0], [3, 3])]
    first = credit_groups(groups, {"a": 1.0}, CreditConfig())[0].rollouts[0]
    np.testing.assert_allclose(first.positive_weights, 0.70711 / 10, rtol=1e-5)


def test_images_of_one_reward_are_compared_apart_and_counted_together() -> None:
    # image 0: 1 against 0; image 1: 0 against 1. Lines of 1 and 3 tokens, in both rollouts: N = 8
    def rewards(first: float, second: float) -> list[ScopedReward]:
        return [
            scoped_reward("line", first, (0, 1), image_index=0),
            scoped_reward("line", second, (1, 4), image_index=1),
        ]

    group = scored_group("g", [scored_rollout("g", 0, 4, rewards(1, 0)), scored_rollout("g", 1, 4, rewards(0, 1))])
    first_rollout, second_rollout = credit_groups([group], {"line": 2.0}, CreditConfig())[0].rollouts
    amount = 0.70711 / 8
    np.testing.assert_allclose(first_rollout.positive_weights, [amount, 0, 0, 0], rtol=1e-5)
    np.testing.assert_allclose(first_rollout.negative_weights, [0, amount, amount, amount], rtol=1e-5)
    np.testing.assert_array_equal(second_rollout.positive_weights, first_rollout.negative_weights)


@pytest.mark.parametrize(("normaliser", "total"), [("active", 3.0), ("all", 5.0)])
def test_the_normaliser_sums_active_or_all_weights(normaliser: Normaliser, total: float) -> None:
    # "a" (weight 3) varies, "b" (2) does not
    def rewards(value: float) -> list[ScopedReward]:
        return [scoped_reward("a", value, (0, 2)), scoped_reward("b", 1.0, (0, 2))]

    group = scored_group("g", [scored_rollout("g", i, 2, rewards(float(i))) for i in range(2)])
    _, win = credit_groups([group], {"a": 3.0, "b": 2.0}, CreditConfig(normaliser=normaliser))[0].rollouts
    np.testing.assert_allclose(win.positive_weights, 3.0 / total * 0.70711 / 4, rtol=1e-5)


def test_a_weight_of_zero_gives_nothing() -> None:
    (group,) = credit_groups([simple_group("g", "a", [1.0, 0.0], [2, 2])], {"a": 0.0}, CreditConfig())
    assert not any(rollout.positive_weights.any() or rollout.negative_weights.any() for rollout in group.rollouts)


def test_a_scope_that_is_empty_over_the_step_gives_nothing() -> None:
    rollouts = [scored_rollout("g", i, 2, [scoped_reward("a", float(i), (1, 1))]) for i in range(2)]
    (group,) = credit_groups([scored_group("g", rollouts)], {"a": 1.0}, CreditConfig(normaliser="all"))
    for rollout in group.rollouts:
        np.testing.assert_array_equal(rollout.positive_weights, [0.0, 0.0])
        np.testing.assert_array_equal(rollout.negative_weights, [0.0, 0.0])
    assert credit_groups([], {}, CreditConfig()) == []


def test_streams_are_aligned_single_precision_vectors() -> None:
    (group,) = credit_groups([simple_group("g", "a", [1.0, 0.0], [2, 0])], {"a": 1.0}, CreditConfig())
    assert [rollout.positive_weights.dtype for rollout in group.rollouts] == [np.float32, np.float32]
    assert [rollout.positive_weights.shape for rollout in group.rollouts] == [(2,), (0,)]


def test_equal_up_to_rounding_is_zero_variance() -> None:
    assert has_zero_variance(np.array([0.1 + 0.2, 0.3]))
    assert has_zero_variance(np.array([0.1 + 0.2 - 0.3, 0.0]))
    assert has_zero_variance(np.array([1e9, 1e9 + 1]))  # a relative difference of 1e-9
    assert has_zero_variance(np.array([5.0]))
    assert not has_zero_variance(np.array([0.0, 1.01 * ZERO_VARIANCE_SPREAD]))
    assert not has_zero_variance(np.array([1e9, 1e9 + 2e3]))


def test_spans_are_joined_where_they_overlap() -> None:
    spans = [(4, 6), (2, 5), (9, 9), (8, 9), (6, 7)]
    joined = merged(TokenSpan(start=start, stop=stop) for start, stop in spans)
    assert [(span.start, span.stop) for span in joined] == [(2, 7), (8, 9)]


@pytest.mark.parametrize(
    ("value", "advantage"),
    # Measured on the public code: eight equal rewards, float32 mean one rounding off (defect D5)
    [(2.1, -0.190), (3 * 4 / 5, 0.190), (3 * 2 / 5, 0.106), (0.3, 0.029), (0.1, -0.007)]
    + [(3 * part, 0.0) for part in (2 / 3, 4 / 7, 6 / 7, 10 / 13)],
)
def test_reference_mode_keeps_the_public_rounding(value: float, advantage: float) -> None:
    ours = normalise(np.full(8, value), REFERENCE)
    np.testing.assert_allclose(ours, advantage, atol=6e-4)
    public = reference_advantages(torch.full((8, 1), value), torch.zeros(8, dtype=torch.long))[:, 0]
    np.testing.assert_array_equal(ours, public.double().numpy())
    assert not normalise(np.full(8, value), CreditConfig()).any()


def test_reference_mode_ignores_weights_and_counts_rewards_with_loss_by_micro_batch() -> None:
    # "a": 1 and 0 over 2 and 4 tokens, "b": equal values. N_a = 6, A = ±0.7071, K = 1.
    def rewards(value: float, length: int) -> list[ScopedReward]:
        return [scoped_reward("a", value, (0, length)), scoped_reward("b", 1.0, (0, length))]

    group = scored_group("g", [scored_rollout("g", 0, 2, rewards(1, 2)), scored_rollout("g", 1, 4, rewards(0, 4))])
    weights = {"a": 3.0, "b": 1.0}
    win, lose = credit_groups([group], weights, REFERENCE)[0].rollouts
    np.testing.assert_allclose(win.positive_weights, 0.70711 / 6, rtol=1e-5)
    np.testing.assert_allclose(lose.negative_weights, 0.70711 / 6, rtol=1e-5)


def test_reference_mode_depends_on_the_cut_as_the_public_code_does() -> None:
    # "a" speaks only to rollout 0, "b" to both: cut apart, rollout 1's micro-batch has one active reward, K = 1
    rollouts = [
        scored_rollout("g", 0, 1, [scoped_reward("a", 1.0, (0, 1)), scoped_reward("b", 1.0, (0, 1))]),
        scored_rollout("g", 1, 2, [scoped_reward("a", 0.0), scoped_reward("b", 0.0, (0, 2))]),
    ]
    groups, weights = [scored_group("g", rollouts)], {"a": 1.0, "b": 1.0}
    together = credit_groups(groups, weights, REFERENCE)[0].rollouts[1]
    apart = credit_groups(groups, weights, REFERENCE, [[("g", 0)], [("g", 1)]])[0].rollouts[1]
    np.testing.assert_allclose(together.negative_weights, 0.70711 / 3 / 2, rtol=1e-5)
    np.testing.assert_allclose(apart.negative_weights, 0.70711 / 3, rtol=1e-5)


def test_reference_mode_loses_the_gradient_where_a_loss_cancels() -> None:
    # equal lengths: L = 0.7071·2 - 0.7071·2 = 0 exactly, K = 0; the public code divides 0 by 0
    (group,) = credit_groups([simple_group("g", "a", [1.0, 0.0], [2, 2])], {"a": 1.0}, REFERENCE)
    assert not any(rollout.positive_weights.any() or rollout.negative_weights.any() for rollout in group.rollouts)


@pytest.mark.parametrize(
    "batches",
    [[[("g", 0)]], [[("g", 0), ("g", 1)], [("g", 1)]], [[("g", 0)], [("h", 1)]]],
    ids=["missing", "twice", "unknown"],
)
def test_micro_batches_must_partition_the_step(batches: list[list[tuple[str, int]]]) -> None:
    with pytest.raises(ValueError, match="exactly one micro-batch"):
        credit_groups([simple_group("g", "a", [1.0, 0.0], [1, 2])], {"a": 1.0}, REFERENCE, batches)


def test_bad_input_is_named() -> None:
    group = simple_group("q7", "a", [1.0, 0.0], [2, 2])
    with pytest.raises(ValueError, match="no weight is given for the rewards a"):
        credit_groups([group], {"b": 1.0}, CreditConfig())
    with pytest.raises(ValueError, match=r"a=-1\.0"):
        credit_groups([group], {"a": -1.0}, CreditConfig())
    beyond = scored_group("q7", [scored_rollout("q7", 3, 2, [scoped_reward("a", 1.0, (1, 3))])])
    with pytest.raises(ValueError, match=r"\[1, 3\) in sample 'q7' rollout 3, whose response has 2 tokens"):
        credit_groups([beyond], {"a": 1.0}, CreditConfig())
    uneven = [
        scored_rollout("q7", 0, 2, [scoped_reward("a", 1.0, (0, 1)), scoped_reward("b", 1.0, (0, 1))]),
        scored_rollout("q7", 1, 2, [scoped_reward("a", 1.0, (0, 1))]),
    ]
    for rollouts in (uneven, uneven[::-1]):
        with pytest.raises(ValueError, match="siblings must carry the same rewards"):
            credit_groups([scored_group("q7", rollouts)], {"a": 1.0, "b": 1.0}, CreditConfig())
