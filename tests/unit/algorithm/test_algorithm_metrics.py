"""Metrics by hand: scopes, clipping, sign conflicts, and the gap between engine and trainer."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rsgrpo.algorithm.advantages import credit_groups
from rsgrpo.algorithm.losses import clipped_policy_loss
from rsgrpo.algorithm.metrics import check_logprob_gap, logprob_gap, newest_version, step_telemetry
from rsgrpo.algorithm.staleness import StaleWeightsError
from rsgrpo.config import CreditConfig, LossConfig
from rsgrpo.errors import RsgrpoError
from rsgrpo.types import CreditedGroup, ResponseStats, ScopedReward
from tests.examples import examples
from tests.unit.strategies import Step, scoped_reward, scored_group, scored_rollout, simple_group, steps

LOSS = LossConfig()


def stats(
    index: int, logprobs: Sequence[float], entropy: Sequence[float] | None = None, sample_id: str = "g"
) -> ResponseStats:
    return ResponseStats(
        sample_id=sample_id,
        response_index=index,
        logprobs=np.array(logprobs, np.float32),
        entropy=np.array(entropy if entropy is not None else np.zeros(len(logprobs)), np.float32),
    )


def credit(*rewards: list[ScopedReward], num_tokens: int = 4, **weights: float) -> list[CreditedGroup]:
    """One group; a list of rewards a sibling."""
    rollouts = [scored_rollout("g", index, num_tokens, row) for index, row in enumerate(rewards)]
    return credit_groups([scored_group("g", rollouts)], weights, CreditConfig())


def test_a_step_without_groups_has_numbers_and_no_nan() -> None:
    values = step_telemetry([], [], {"a": 1.0}, loss=LOSS)
    assert values["response/mean_tokens"] == 0.0
    assert values["engine/logprob_gap_mean"] == 0.0
    assert all(math.isfinite(value) for value in values.values())


def test_every_image_of_a_per_image_reward_counts() -> None:
    # image 0's line stands in both responses (1 token each), image 1's in the second only (2 tokens): 3 of 4 found
    credited = credit(
        [scoped_reward("line", 1.0, (0, 1), image_index=0), scoped_reward("line", 0.0, image_index=1)],
        [scoped_reward("line", 0.0, (0, 1), image_index=0), scoped_reward("line", 0.0, (1, 3), image_index=1)],
        line=2.0,
    )
    values = step_telemetry(credited, [stats(0, [0] * 4), stats(1, [0] * 4, [1, 2, 3, 9])], {"line": 2.0})
    assert values["scope/line/found_frac"] == 0.75
    assert values["scope/line/mean_tokens"] == 2.0  # 4 tokens over 2 responses
    assert values["scope/line/zero_variance_groups_frac"] == 0.5  # image 1 says 0 twice
    assert values["scope/line/entropy"] == 1.5  # (0 + 1 + 2 + 3) / 4 tokens
    assert values["reward/line/mean"] == 0.25
    assert values["reward/line/std"] == pytest.approx(math.sqrt(3) / 4)  # of 1, 0, 0, 0
    assert values["reward/total"] == 0.5


def test_a_reward_that_does_not_apply_leaves_its_mean_alone() -> None:
    credited = credit([scoped_reward("a", 1.0, (0, 2))], [scoped_reward("a", None)], a=1.0)
    values = step_telemetry(credited, [stats(0, [0] * 4), stats(1, [0] * 4)], {"a": 1.0})
    assert (values["reward/a/mean"], values["reward/a/std"]) == (1.0, 0.0)
    assert values["scope/a/found_frac"] == 0.5
    assert values["scope/a/zero_variance_groups_frac"] == 1.0


def test_clipping_is_counted_by_scope_and_by_the_sign_of_credit() -> None:
    # "a" credits tokens 0-1, "b" all four, both up in the first response and down in the second
    rows = [[scoped_reward("a", value, (0, 2)), scoped_reward("b", value, (0, 4))] for value in (1.0, 0.0)]
    credited = credit(*rows, a=1.0, b=1.0)
    before = [stats(0, [-1] * 4), stats(1, [-1] * 4)]
    # ratios up: 1.35, 0.5, 1, 1.35 → tokens 0 and 3 clipped; down: 0.5, 1.35, 4, 1 → 0 (below) and 2 (dual clip)
    ratios = [[1.35, 0.5, 1.0, 1.35], [0.5, 1.35, 4.0, 1.0]]
    after = [stats(index, [-1 + math.log(ratio) for ratio in row]) for index, row in enumerate(ratios)]
    weights = {"a": 1.0, "b": 1.0}
    values = step_telemetry(credited, before, weights, updated=after, loss=LOSS)
    assert values["scope/a/clip_frac"] == 2 / 4
    assert values["scope/b/clip_frac"] == 4 / 8
    on_policy = step_telemetry(credited, before, weights, loss=LOSS)
    assert (on_policy["scope/a/clip_frac"], on_policy["scope/b/clip_frac"]) == (0.0, 0.0)
    assert "scope/a/clip_frac" not in step_telemetry(credited, before, weights)


def test_clipping_compares_with_the_engine_where_that_is_the_old_policy() -> None:
    # the engine says 0 (ratio exp(-1) = 0.37): everything pushed down is clipped, nothing pulled up
    credited = credit([scoped_reward("a", 1.0, (0, 4))], [scoped_reward("a", 0.0, (0, 4))], a=1.0)
    seen = [stats(0, [-1] * 4), stats(1, [-1] * 4)]
    values = step_telemetry(credited, seen, {"a": 1.0}, loss=LossConfig(old_logprobs="engine"))
    assert values["scope/a/clip_frac"] == 0.5


@examples(60)
@given(step=steps(weights=(1.0,), has_images=False, is_one_span=True), seed=st.integers(0, 999))
def test_one_rewards_clipping_is_that_of_the_loss(step: Step, seed: int) -> None:
    names = sorted(step.weights)
    groups = [
        scored_group(
            group.sample_id,
            [
                scored_rollout(group.sample_id, rollout.rollout.response_index, rollout.num_tokens, rollout.rewards[:1])
                for rollout in group.rollouts
            ],
        )
        for group in step.groups
    ]
    weights = {names[0]: 1.0}
    credited = credit_groups(groups, weights, CreditConfig())
    generator = np.random.default_rng(seed)
    before, after, num_clipped, num_credited = [], [], 0, 0
    for group in credited:
        for rollout in group.rollouts:
            index, length = rollout.rollout.response_index, rollout.num_tokens
            before.append(stats(index, [0.0] * length, sample_id=group.sample_id))
            after.append(stats(index, generator.normal(size=length).tolist(), sample_id=group.sample_id))
            result = clipped_policy_loss(
                torch.from_numpy(after[-1].logprobs),
                torch.zeros(length),
                torch.from_numpy(rollout.positive_weights),
                torch.from_numpy(rollout.negative_weights),
                clip_low=LOSS.clip_low,
                clip_high=LOSS.clip_high,
                dual_clip=LOSS.dual_clip,
            )
            num_clipped += result.num_clipped
            num_credited += int(((rollout.positive_weights > 0) | (rollout.negative_weights > 0)).sum())
    values = step_telemetry(credited, before, weights, updated=after, loss=LOSS)
    assert values[f"scope/{names[0]}/clip_frac"] == pytest.approx(num_clipped / max(1, num_credited))


def test_sign_conflicts_are_tokens_pulled_both_ways() -> None:
    # first response: "a" up on 0-2, "b" down on 2-4; second the other way round: token 2 of each
    rows = [
        [scoped_reward("a", first, (0, 3)), scoped_reward("b", second, (2, 4))]
        for first, second in ((1.0, 0.0), (0.0, 1.0))
    ]
    values = step_telemetry(credit(*rows, a=1.0, b=1.0), [stats(0, [0] * 4), stats(1, [0] * 4)], {"a": 1.0, "b": 1.0})
    assert values["scope/sign_conflict_frac"] == 2 / 8


def test_the_gap_is_taken_over_tokens_of_the_newest_weights() -> None:
    rollouts = [
        scored_rollout("g", 0, 2, [scoped_reward("a", 1.0, (0, 2))], logprobs=[-1.0, -2.0], policy_version=7),
        scored_rollout("g", 1, 2, [scoped_reward("a", 0.0, (0, 2))], logprobs=[-9.0, -9.0], policy_version=6),
    ]
    credited = credit_groups([scored_group("g", rollouts)], {"a": 1.0}, CreditConfig())
    values = step_telemetry(credited, [stats(0, [-1.25, -1.5]), stats(1, [0.0, 0.0])], {"a": 1.0})
    # differences trainer - engine: -0.25 and 0.5; k3 = exp(d) - 1 - d
    assert values["engine/logprob_gap_mean"] == 0.375
    assert values["engine/logprob_gap_max"] == 0.5
    k3 = (math.exp(-0.25) - 1 + 0.25 + math.exp(0.5) - 1 - 0.5) / 2
    assert values["engine/kl"] == pytest.approx(k3)
    assert values["engine/stale_frac"] == 0.5
    # Off policy they differ because the policy learned: no gap, while the divergence stands.
    seen = [stats(0, [-1.25, -1.5]), stats(1, [0.0, 0.0])]
    later = step_telemetry(credited, seen, {"a": 1.0}, is_on_policy=False)
    assert values.keys() - later.keys() == {"engine/logprob_gap_mean", "engine/logprob_gap_max"}
    assert later["engine/kl"] == values["engine/kl"]
    # and so before the step: (0.25 + 0.5) / 2 by itself
    assert newest_version(credited) == 7
    assert logprob_gap(credited, seen, 7) == 0.375
    assert logprob_gap(credited, seen, 6) == 9.0
    assert logprob_gap(credited, seen, 5) is None


def test_of_a_response_that_went_on_under_new_weights_only_the_tokens_of_these_count() -> None:
    rollout = scored_rollout(
        "g", 0, 3, [scoped_reward("a", 1.0, (0, 3))], logprobs=[-9.0, -1.0, -2.0], policy_version=6
    )
    mixed = dataclasses.replace(rollout.rollout, token_versions=np.array([6, 7, 7], np.int32))
    older = scored_rollout("g", 1, 1, [scoped_reward("a", 0.0, (0, 1))], logprobs=[-9.0], policy_version=6)
    scored = scored_group("g", [dataclasses.replace(rollout, rollout=mixed), older])
    credited = credit_groups([scored], {"a": 1.0}, CreditConfig())
    values = step_telemetry(credited, [stats(0, [0.0, -1.25, -1.5]), stats(1, [0.0])], {"a": 1.0})
    assert values["engine/logprob_gap_mean"] == 0.375  # of 0.25 and 0.5
    assert values["engine/stale_frac"] == 0.5  # two of four tokens
    assert values["engine/mixed_versions_frac"] == 0.5  # one of two responses


def test_lengths_truncation_and_entropy_by_response() -> None:
    rollouts = [
        scored_rollout("g", 0, 1, [scoped_reward("a", 1.0, (0, 1))]),
        scored_rollout("g", 1, 3, [scoped_reward("a", 0.0, (0, 3))], finish_reason="length"),
    ]
    credited = credit_groups([scored_group("g", rollouts)], {"a": 1.0}, CreditConfig())
    seen = [stats(1, [0] * 3, [1, 2, 3]), stats(0, [0], [6])]  # in any order
    values = step_telemetry(credited, seen, {"a": 1.0})
    assert (values["response/mean_tokens"], values["response/max_tokens"]) == (2.0, 3.0)
    assert values["response/truncated_frac"] == 0.5
    assert values["policy/entropy"] == 3.0  # by token: (6 + 1 + 2 + 3) / 4


def test_missing_statistics_are_named() -> None:
    credited = credit_groups([simple_group("q9", "a", [1.0, 0.0], [2, 2])], {"a": 1.0}, CreditConfig())
    without = [dataclasses.replace(stats(index, [0, 0], sample_id="q9"), entropy=None) for index in range(2)]
    with pytest.raises(ValueError, match=r"no entropy for sample 'q9' rollout 0; ask for it with .*with_entropy=True"):
        step_telemetry(credited, without, {"a": 1.0})
    with pytest.raises(ValueError, match="nothing for sample 'q9' rollout 1"):
        step_telemetry(credited, [stats(0, [0, 0], sample_id="q9")], {"a": 1.0})
    with pytest.raises(ValueError, match="3 tokens for sample 'q9' rollout 0, which has 2 tokens"):
        step_telemetry(credited, [stats(index, [0] * 3, sample_id="q9") for index in range(2)], {"a": 1.0})


def test_a_stale_engine_is_an_error_that_says_where_to_look() -> None:
    check_logprob_gap(0.5, 0.5)
    with pytest.raises(StaleWeightsError, match=r"0\.7000 nats .*max_logprob_gap=0\.5.*weight update.*sampling"):
        check_logprob_gap(0.7, 0.5)
    assert issubclass(StaleWeightsError, RsgrpoError)
