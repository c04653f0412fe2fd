"""New weights in the middle of responses: what the driver does, and what its records say."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import pytest

from rsgrpo.config import ConfigError, FilterConfig, RlConfig, SamplingConfig
from rsgrpo.types import PromptedSample, Rollout, RolloutGroup
from rsgrpo.weights.update import WeightUpdate
from tests.unit.recipes.rl_fakes import WAIT_SECONDS, FakeEngine, FakePolicy, ages, new_training, restored, rl_config


@dataclass
class InterruptedEngine(FakeEngine):
    """Every call after the first is in the middle of its responses when new weights come, and waits for them."""

    has_begun: threading.Event = field(default_factory=threading.Event)
    is_updated: threading.Event = field(default_factory=threading.Event)

    def stream(
        self, prompted: Sequence[PromptedSample], *, num_samples: int, sampling: SamplingConfig, seed: int
    ) -> Generator[RolloutGroup, None, None]:
        groups = self.generate(prompted, num_samples=num_samples, sampling=sampling, seed=seed)
        if len(self.calls) > 1:
            self.is_updated.clear()
            self.has_begun.set()
            assert self.is_updated.wait(WAIT_SECONDS), "weights come only after the samples"
            groups = [
                dataclasses.replace(group, rollouts=tuple(map(self._with_a_token, group.rollouts))) for group in groups
            ]
        yield from groups

    def _with_a_token(self, rollout: Rollout) -> Rollout:
        """One more, of the weights that came."""
        return dataclasses.replace(
            rollout,
            token_ids=np.append(rollout.token_ids, np.int32(1)),
            logprobs=np.append(rollout.logprobs, np.float32(-1.0)),
            token_char_starts=np.append(rollout.token_char_starts, np.int32(0)),
            token_versions=np.array(
                [rollout.policy_version] * len(rollout.token_ids) + [self.policy_version], dtype=np.int32
            ),
        )

    def update_weights(self, update: WeightUpdate) -> None:
        super().update_weights(update)
        self.has_begun.clear()
        self.is_updated.set()


def test_engines_get_new_weights_in_the_middle_of_the_batch_that_is_sampled_ahead() -> None:
    engine = InterruptedEngine()
    policy = FakePolicy(may_update=engine.has_begun)
    config = rl_config(
        max_staleness_steps=1, partial_rollouts=True, filter=FilterConfig(keep_leftover=False, max_refills=0)
    )
    training = new_training(config, engine, policy)
    reports = [training.train_step() for _ in range(4)]
    # A response is as old as its first token; its last one is of the weights that it is trained on.
    assert ages(policy, reports) == [{0}, {1}, {1}, {1}]
    assert [report.metrics["engine/mixed_versions_frac"] for report in reports] == [0.0, 1.0, 1.0, 1.0]
    assert engine.policy_version == policy.version == 4
    for _, groups, loss in policy.updates[1:]:
        # The importance weight goes by what each token was sampled with, whichever weights did it.
        assert loss.old_logprobs == "engine"
        assert all(
            float(cast(Any, response.rollout_logprobs)[-1]) == -1.0 for group in groups for response in group.responses
        )


def test_a_batch_of_two_versions_comes_back_from_a_checkpoint() -> None:
    engine = InterruptedEngine()
    policy = FakePolicy(may_update=engine.has_begun)
    training = new_training(rl_config(max_staleness_steps=1, partial_rollouts=True), engine, policy)
    training.train_step()
    ahead, read_back = training.state.prefetched, restored(training.state).prefetched
    assert ahead is not None
    assert read_back is not None
    rollouts = [
        [rollout.rollout for group in batch.groups for rollout in group.rollouts] for batch in (ahead, read_back)
    ]
    for saved, read in zip(*rollouts, strict=True):
        assert saved.token_versions is not None
        assert read.token_versions is not None
        np.testing.assert_array_equal(read.token_versions, saved.token_versions)
        assert read.newest_version == saved.policy_version + 1
        assert read.is_of_version(saved.policy_version).sum() == len(saved.token_ids) - 1


def test_partial_rollouts_without_sampling_ahead_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"set rl\.max_staleness_steps=1"):
        RlConfig(partial_rollouts=True)
