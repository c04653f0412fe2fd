"""The gap between engine and trainer, compared before the step that it is to prevent."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest

from rsgrpo.algorithm.staleness import StaleWeightsError
from rsgrpo.config import LossConfig
from rsgrpo.types import ResponseStats, TrainingGroup
from tests.unit.recipes.rl_fakes import FakeEngine, FakePolicy, new_training, rl_config


@dataclass
class PolicyThatDisagrees(FakePolicy):
    """What it sees of a response lies that many nats above the engine's, from the given update on."""

    gaps: Sequence[float] = ()
    num_asked: int = 0

    def score(self, groups: Sequence[TrainingGroup], *, with_entropy: bool = False) -> tuple[ResponseStats, ...]:
        gap = self.gaps[min(self.num_asked, len(self.gaps) - 1)]
        self.num_asked += 1
        return tuple(
            dataclasses.replace(stats, logprobs=stats.logprobs + np.float32(gap - 0.01))
            for stats in super().score(groups, with_entropy=with_entropy)
        )


def test_a_gap_beyond_the_limit_is_refused_before_the_step() -> None:
    policy = PolicyThatDisagrees(gaps=[0.7])
    training = new_training(rl_config(), FakeEngine(), policy)
    with pytest.raises(StaleWeightsError, match=r"0\.7000 nats on average, more than rl\.max_logprob_gap=0\.5"):
        training.train_step(is_last=True)
    assert policy.updates == [] and policy.version == 0
    # a higher limit takes the same batch
    policy = PolicyThatDisagrees(gaps=[0.7])
    new_training(rl_config(max_logprob_gap=0.8), FakeEngine(), policy).train_step(is_last=True)
    assert policy.version == 1


def test_the_first_of_several_updates_decides_whether_engine_and_trainer_agree() -> None:
    # afterwards the trainer's weights are others than those that sampled
    config = rl_config(updates_per_batch=2, loss=LossConfig(old_logprobs="engine"))
    policy = PolicyThatDisagrees(gaps=[0.1, 0.7])
    new_training(config, FakeEngine(), policy).train_step(is_last=True)
    assert policy.version == 2
    policy = PolicyThatDisagrees(gaps=[0.7, 0.1])
    with pytest.raises(StaleWeightsError, match=r"0\.7000 nats"):
        new_training(config, FakeEngine(), policy).train_step(is_last=True)
    assert policy.version == 0
