"""The driver's loop on fakes: what is sampled when, under which weights, and what a checkpoint holds."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import cast

import pytest

from recipes.rs_grpo import RsGrpoState, StepReport
from recipes.stages import kept_steps, planned_steps, step_note
from rewards.scorer import Scorer
from rsgrpo.config import (
    Aggregation,
    CreditConfig,
    FilterConfig,
    KlConfig,
    LossConfig,
    RlConfig,
)
from rsgrpo.run.progress import MAX_COLUMNS
from rsgrpo.types import (
    RolloutGroup,
    ScoredGroup,
)
from tests.unit.recipes.rl_fakes import (
    FakeEngine,
    FakePolicy,
    FakeScorer,
    ages,
    new_training,
    restored,
    rl_config,
)


def test_synchronous_steps_train_on_their_own_weights() -> None:
    engine, policy = FakeEngine(), FakePolicy()
    training = new_training(rl_config(filter=FilterConfig(keep_leftover=False)), engine, policy)
    reports = [training.train_step(is_last=step == 3) for step in range(4)]
    assert ages(policy, reports) == [{0}, {0}, {0}, {0}]
    assert engine.policy_version == policy.version == 4
    assert {loss.old_logprobs for _, _, loss in policy.updates} == {"auto"}
    assert training.state.prefetched is None
    assert "time/wait_for_samples" not in reports[0].metrics


def _kl_sums(policy: FakePolicy) -> list[float]:
    """Coefficient of each update's KL term, which is what the weights of a token mean add up to."""
    return [
        sum(response.kl_weight * len(response.token_ids) for group in groups for response in group.responses)
        for _, groups, _ in policy.updates
    ]


def test_without_a_kl_term_no_response_weighs_in_it() -> None:
    policy = FakePolicy(kl_reference=1.0)
    report = new_training(rl_config(), FakeEngine(), policy).train_step(is_last=True)
    assert _kl_sums(policy) == [0.0]
    assert "policy/kl_coefficient" not in report.metrics


@pytest.mark.parametrize("aggregation", ["scope_tokens", "token_mean", "sequence_mean"])
def test_a_fixed_kl_coefficient_weighs_every_step_alike(aggregation: Aggregation) -> None:
    # the weights of a mean add up to 1, times 0.05; per response in sequence_mean: 0.05 / 12 / |o|
    policy = FakePolicy(kl_reference=9.0)
    config = rl_config(loss=LossConfig(kl=KlConfig(coefficient=0.05)), credit=CreditConfig(aggregation=aggregation))
    training = new_training(config, FakeEngine(), policy)
    reports = [training.train_step(), training.train_step(is_last=True)]
    assert _kl_sums(policy) == pytest.approx([0.05, 0.05])
    assert [report.metrics["policy/kl_coefficient"] for report in reports] == [0.05, 0.05]
    if aggregation == "sequence_mean":
        responses = [response for _, groups, _ in policy.updates for group in groups for response in group.responses]
        for response in responses:
            assert response.kl_weight == pytest.approx(0.05 / 12 / len(response.token_ids))


def test_a_kl_target_steers_the_coefficient_update_by_update() -> None:
    # measured 0.3 is three times the target: the error is cut at 0.2, so each update multiplies by 1 + 0.1 · 0.2
    policy = FakePolicy(kl_reference=0.3)
    config = rl_config(loss=LossConfig(kl=KlConfig(coefficient=0.05, target=0.1)), updates_per_batch=2)
    engine = FakeEngine()
    training = new_training(config, engine, policy)
    training.train_step()
    saved = restored(training.state)  # a checkpoint remembers where the controller stands
    report = new_training(config, engine, policy, saved).train_step(is_last=True)
    assert _kl_sums(policy) == pytest.approx([0.05, 0.05 * 1.02, 0.05 * 1.02**2, 0.05 * 1.02**3])
    assert report.metrics["policy/kl_coefficient"] == pytest.approx(0.05 * 1.02**3)


class RareScorer(FakeScorer):
    """Only every third group has nonzero variance."""

    def score(self, groups: Sequence[RolloutGroup]) -> list[ScoredGroup]:
        return [
            group if index % 3 == 0 else dataclasses.replace(group, rollouts=(group.rollouts[0],) * 3)
            for index, group in enumerate(super().score(groups))
        ]


@pytest.mark.parametrize("prompts_per_step", [24, 32, 64])
@pytest.mark.parametrize("carries_over", [True, False])
def test_a_small_data_set_is_asked_again_and_again_and_steps_train_on_what_there_is(
    prompts_per_step: int, carries_over: bool
) -> None:
    # 40 questions: with a third of the groups kept, a step of 24 soon wants 43 different ones, one of 64 always does
    settings = FilterConfig(max_refills=8, keep_leftover=carries_over)
    config = rl_config(prompts_per_step=prompts_per_step, filter=settings)
    engine, policy = FakeEngine(), FakePolicy()
    state = RsGrpoState()
    for _ in range(30):
        training = new_training(config, engine, policy, restored(state))  # each step of a new process
        training.scorer = cast(Scorer, RareScorer())
        report = training.train_step()
        state = training.state
        trained = [group.sample_id for group in report.credited]
        assert 0 < len(trained) == len(set(trained)) <= min(prompts_per_step, 40)
        assert report.metrics["selection/filled_frac"] == len(trained) / prompts_per_step
    assert all(len(set(asked)) == len(asked) <= 40 for _, asked in engine.calls)


def test_a_step_reports_clipping_by_scope_and_every_update_of_its_batch() -> None:
    policy = FakePolicy()
    engine = FakeEngine()
    config = rl_config(updates_per_batch=2, loss=LossConfig(clip_high=0.005, clip_low=0.005))
    metrics = new_training(config, engine, policy).train_step(is_last=True).metrics
    # FakePolicy says the same before and during the updates: no ratio differs from 1
    assert metrics["scope/length/clip_frac"] == 0.0
    assert metrics["policy/num_response_tokens"] == 2.0  # one an update
    assert {metrics[f"policy/update_{number}/grad_norm"] for number in (1, 2)} == {1.0}
    # Asynchronous steps compare with the engine, which FakePolicy is 0.01 above: the ratio is beyond 1.005, so that
    # every token with positive credit is clipped and none with negative.
    config = rl_config(max_staleness_steps=1, loss=LossConfig(clip_high=0.005, clip_low=0.005))
    report = new_training(config, FakeEngine(), FakePolicy()).train_step(is_last=True)
    rollouts = [rollout for group in report.credited for rollout in group.rollouts]
    up = sum(rollout.num_tokens for rollout in rollouts if rollout.advantages[0] > 0)
    credited = sum(rollout.num_tokens for rollout in rollouts if rollout.advantages[0])
    assert report.metrics["scope/length/clip_frac"] == pytest.approx(up / credited)
    assert "policy/update_1/grad_norm" not in report.metrics


@pytest.mark.parametrize(
    ("num_questions", "max_steps", "steps"),
    [
        (3, 0, 4),  # four passes over 3 questions, which one step holds
        (3, 2, 2),
        (8, 0, 4),
        (20, 0, 10),
        (1, 0, 4),
    ],
)
def test_epochs_are_passes_also_over_fewer_questions_than_a_step_wants(
    num_questions: int, max_steps: int, steps: int
) -> None:
    settings = RlConfig(num_epochs=4, prompts_per_step=8, max_steps=max_steps)
    assert planned_steps(settings, num_questions) == steps


def test_all_steps_may_be_recorded() -> None:
    some, every = RlConfig(save_every_steps=10), RlConfig(save_every_steps=10, record_every_steps=4)
    # of 21 steps: the checkpoints, the first and the last, and every fourth
    assert [step for step in range(1, 22) if kept_steps(some, step, 21)[1]] == [1, 10, 20, 21]
    assert [step for step in range(1, 22) if kept_steps(every, step, 21)[1]] == [1, 4, 8, 10, 12, 16, 20, 21]
    assert all(kept_steps(some, step, 21)[0] == kept_steps(every, step, 21)[0] for step in range(1, 22))


def test_a_step_that_lacks_most_of_its_groups_says_so_in_a_line_of_its_own() -> None:
    def note(num_groups: int, num_wanted: int) -> str:
        return step_note(StepReport(step=7, metrics={}, credited=[object()] * num_groups), num_wanted)  # type: ignore[list-item]

    assert note(3, 3) == note(2, 3) == note(16, 32) == ""
    assert note(1, 3).startswith("step 7: only 1 of 3 groups")
    assert note(0, 3).startswith("step 7: no reward varied")
    assert max(len(note(n, 3)) for n in range(3)) < MAX_COLUMNS - 4
