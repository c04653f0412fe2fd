"""Sampling ahead of the weights: how old groups may be, and what happens to those that are older."""

from __future__ import annotations

import dataclasses
import threading
from typing import Any, cast

import numpy as np
import pytest

from recipes.evaluation.evaluate import compare_engine
from recipes.rs_grpo import Batch, RsGrpoState
from rollout.engine import RolloutError
from rsgrpo.algorithm.staleness import StaleWeightsError, check_staleness
from rsgrpo.config import (
    Config,
    ConfigError,
    FilterConfig,
    LossConfig,
    RewardConfig,
    RlConfig,
    RolloutConfig,
    SamplingConfig,
    ScopeConfig,
)
from rsgrpo.trainer.policy import Policy
from rsgrpo.types import ImageRef, PromptedSample
from tests.unit.recipes.rl_fakes import (
    QUESTIONS,
    FakeEngine,
    FakePolicy,
    FakeScorer,
    ages,
    new_training,
    restored,
    rl_config,
)
from tests.unit.strategies import scored_group, scored_rollout


def test_asynchronous_sampling_overlaps_the_update_and_is_one_step_old() -> None:
    # Each sampling after the first waits for an update to begin, which a driver that samples before it
    # updates would never reach; and each update of a later step needs the batch sampled beside the last one.
    begun = threading.Event()
    engine, policy = FakeEngine(may_sample=begun), FakePolicy(has_updated=begun)
    config = rl_config(max_staleness_steps=1, filter=FilterConfig(keep_leftover=False, max_refills=0))
    training = new_training(config, engine, policy)
    reports = [training.train_step(is_last=step == 3) for step in range(4)]
    assert ages(policy, reports) == [{0}, {1}, {1}, {1}]
    # One sampling per step, the last step samples nothing ahead.
    assert [version for version, _ in engine.calls] == [0, 0, 1, 2]
    assert {loss.old_logprobs for _, _, loss in policy.updates} == {"engine"}
    assert training.state.prefetched is None
    assert reports[0].metrics["time/wait_for_samples"] >= 0.0
    assert [report.metrics["engine/staleness_updates"] for report in reports] == [0.0, 1.0, 1.0, 1.0]


def test_pi_old_may_be_recomputed_from_the_trainer_although_samples_are_old() -> None:
    policy = FakePolicy()
    config = rl_config(max_staleness_steps=1, loss=LossConfig(old_logprobs="recompute"))
    training = new_training(config, FakeEngine(), policy)
    training.train_step()
    training.train_step(is_last=True)
    for _, groups, loss in policy.updates:
        assert loss.old_logprobs == "recompute"
        for response in (response for group in groups for response in group.responses):
            # What FakePolicy.score says: 0.01 above the engine.
            assert response.old_logprobs is not None and response.rollout_logprobs is not None
            np.testing.assert_allclose(response.old_logprobs - response.rollout_logprobs, 0.01, atol=1e-6)


@pytest.mark.parametrize("staleness", [0, 1])
@pytest.mark.parametrize("updates", [1, 2])
def test_going_on_from_a_checkpoint_equals_never_stopping(staleness: int, updates: int) -> None:
    config = rl_config(max_staleness_steps=staleness, updates_per_batch=updates)

    def run(interrupted_after: int) -> tuple[list[Any], list[Any]]:
        engine, policy = FakeEngine(), FakePolicy()
        training = new_training(config, engine, policy)
        for step in range(6):
            if step == interrupted_after:
                state = restored(training.state)
                # A new process: an engine with the policy's weights, as run_rl makes it.
                calls, engine = engine.calls, FakeEngine(policy_version=policy.version)
                engine.calls = calls
                training = new_training(config, engine, policy, state)
            training.train_step(is_last=step == 5)
        trained = [
            (version, [(g.sample_id, [r.token_ids.tolist() for r in g.responses]) for g in groups])
            for version, groups, _ in policy.updates
        ]
        return trained, engine.calls

    whole = run(-1)
    assert [run(step) for step in range(1, 6)] == [whole] * 5


@pytest.mark.parametrize("staleness", [0, 1])
def test_no_group_is_lost_or_trained_on_twice(staleness: int) -> None:
    engine, policy = FakeEngine(), FakePolicy()
    training = new_training(rl_config(max_staleness_steps=staleness, filter=FilterConfig(mode="none")), engine, policy)
    for step in range(6):
        training.train_step(is_last=step == 5)
    # 24 groups of the 40 questions: no question twice, in the order in which they were sampled.
    trained = [group.sample_id for _, groups, _ in policy.updates for group in groups]
    assert trained == [sample_id for _, ids in engine.calls for sample_id in ids]
    assert len(set(trained)) == 24


def test_groups_older_than_the_bound_are_dropped_and_counted() -> None:
    policy = FakePolicy(version=5)
    training = new_training(rl_config(), FakeEngine(policy_version=5), policy)
    old, fresh = (
        FakeScorer().score(
            FakeEngine(policy_version=version).generate(
                [QUESTIONS[index]], num_samples=3, sampling=SamplingConfig(), seed=1
            )
        )[0]
        for index, version in ((30, 3), (31, 4))
    )
    training.state.leftover = [old, fresh]
    # Carried over once is one update old at most: version 4 of 5 stays, version 3 goes.
    report = training.train_step()
    assert report.metrics["selection/dropped_stale_groups"] == 1.0
    assert report.metrics["selection/leftover_groups"] == 1.0
    ids = [group.sample_id for group in report.credited]
    assert "q31" in ids
    assert "q30" not in ids


@pytest.mark.parametrize("staleness", [0, 1])
def test_an_engine_that_misses_weight_updates_stops_the_run(staleness: int) -> None:
    engine = FakeEngine(misses_updates=True)
    training = new_training(rl_config(max_staleness_steps=staleness), engine, FakePolicy())
    with pytest.raises(StaleWeightsError, match=r"sampled under weights of version 0.*engines missed a weight update"):
        for _ in range(3):
            training.train_step()


def test_staleness_is_bounded_on_both_sides() -> None:
    group = scored_group("q0", [scored_rollout("q0", index, 2, (), policy_version=6) for index in range(2)])
    check_staleness([group], trained_version=7, max_age=1)
    check_staleness([group], trained_version=6, max_age=0)
    for version, age in ((8, 1), (5, 1), (7, 0)):
        with pytest.raises(StaleWeightsError, match="'q0' was sampled under weights of version 6"):
            check_staleness([group], trained_version=version, max_age=age)


def test_groups_of_a_checkpoint_look_for_their_pages_where_the_data_lie_now() -> None:
    engine = FakeEngine()
    old = [_over_pages(prompted, "/old", "a", "b") for prompted in QUESTIONS[:5]]
    carried, ahead, unknown, other = (
        dataclasses.replace(
            FakeScorer().score(engine.generate([prompted], num_samples=2, sampling=SamplingConfig(), seed=1))[0],
            prompt=prompted.prompt,
        )
        for prompted in old[1:]
    )
    state = RsGrpoState(leftover=[carried], prefetched=Batch(groups=(ahead, unknown, other), metrics={}, seconds={}))
    # The data lie elsewhere; of the last question a retriever has found other pages since.
    moved = [_over_pages(prompted, "/new", "a", "b") for prompted in QUESTIONS[:3]]
    state.find_images([*moved, _over_pages(QUESTIONS[4], "/new", "a", "c")])
    assert state.prefetched is not None
    found = [*state.leftover, *state.prefetched.groups]
    assert [group.prompt for group in found] == [moved[1].prompt, moved[2].prompt, old[3].prompt, old[4].prompt]
    # Nothing else of them changes.
    for group, before in zip(found, (carried, ahead, unknown, other), strict=True):
        assert group.rollouts == before.rollouts and group.prompt_token_ids is before.prompt_token_ids


def _over_pages(prompted: PromptedSample, folder: str, *pages: str) -> PromptedSample:
    images = tuple(ImageRef(path=page, file=f"{folder}/{page}") for page in pages)
    return dataclasses.replace(prompted, prompt=dataclasses.replace(prompted.prompt, images=images))


def test_a_batch_sampled_ahead_is_left_where_the_run_goes_on_without_sampling_ahead() -> None:
    engine = FakeEngine()
    ahead = new_training(rl_config(max_staleness_steps=1), engine, FakePolicy())
    ahead.train_step()
    assert ahead.state.prefetched is not None
    fresh = FakeEngine(policy_version=1)
    training = new_training(rl_config(), fresh, FakePolicy(version=1), ahead.state)
    report = training.train_step()
    # Its two batches of questions, the one trained on and the one left out, are not asked again.
    asked = {sample_id for _, ids in engine.calls for sample_id in ids}
    assert len(asked) == 8
    assert [group.sample_id for group in report.credited] == [sample_id for _, ids in fresh.calls for sample_id in ids]
    assert not asked & {group.sample_id for group in report.credited}


def test_steps_that_sample_ahead_show_no_gap_but_the_first_and_a_comparison_between_steps_does() -> None:
    engine, policy = FakeEngine(), FakePolicy()
    config = rl_config(max_staleness_steps=1)
    training = new_training(config, engine, policy)
    shown = ["engine/logprob_gap_max" in training.train_step().metrics for _ in range(3)]
    assert shown == [True, False, False]
    # Of two updates the second sees what the first has done, unless log-probabilities were taken before.
    for settings in ({"max_staleness_steps": 1}, {}):
        several = new_training(rl_config(updates_per_batch=2, **settings), FakeEngine(), FakePolicy())
        assert ("engine/logprob_gap_max" in several.train_step().metrics) == (not settings)
    # The policy of this test says 0.01 nats more of every token than the engine.
    found = compare_engine(cast(Policy, policy), engine, QUESTIONS[:5], config)
    assert found == pytest.approx({"engine/logprob_gap_mean": 0.01, "engine/logprob_gap_max": 0.01}, rel=1e-4)
    assert engine.calls[-1] == (policy.version, ("q0", "q1", "q2", "q3", "q4"))


def test_what_goes_wrong_in_sampling_ahead_is_raised_in_the_step() -> None:
    training = new_training(rl_config(max_staleness_steps=1), FakeEngine(fails_at_call=2), FakePolicy())
    with pytest.raises(RolloutError, match="fell over"):
        training.train_step()


@pytest.mark.parametrize("value", [-2, 2])
def test_other_bounds_of_staleness_are_refused(value: int) -> None:
    with pytest.raises(ConfigError, match=f"max_staleness_steps={value} is not known; choose 0"):
        RlConfig(max_staleness_steps=value)


def test_colocated_refuses_what_it_cannot_do() -> None:
    reward = {"length": RewardConfig(function="a:b", scope=ScopeConfig(start="begin", stop="end"))}
    base = Config(stage="rl", rewards=reward)
    cluster = type(base.cluster)(topology="colocated")
    with pytest.raises(ConfigError, match="take turns on the same GPUs"):
        Config(stage="rl", rewards=reward, cluster=cluster, rl=RlConfig(max_staleness_steps=1))
    with pytest.raises(ConfigError, match=r"num_ranks=1 must equal rollout.num_workers=2 × .*=2 = 4"):
        Config(
            stage="rl", rewards=reward, cluster=cluster, rollout=RolloutConfig(num_workers=2, tensor_parallel_size=2)
        )
