"""Engine, policy and scorer that answer at once, for tests of the reinforcement recipe."""

from __future__ import annotations

import dataclasses
import json
import threading
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np

from recipes.rs_grpo import RsGrpo, RsGrpoState, StepReport
from rewards.scorer import Scorer
from rollout.engine import RolloutError
from rsgrpo.algorithm.update_metrics import UpdateMetrics
from rsgrpo.config import (
    Config,
    LossConfig,
    RewardConfig,
    RlConfig,
    SamplingConfig,
    ScopeConfig,
)
from rsgrpo.io.record_codec import Arrays, from_plain, to_plain
from rsgrpo.trainer.policy import Policy
from rsgrpo.trainer.results import UpdateResult
from rsgrpo.types import (
    ChatPrompt,
    PromptedSample,
    ResponseStats,
    RolloutGroup,
    Sample,
    ScoredGroup,
    ScoredRollout,
    TrainingGroup,
)
from rsgrpo.weights.buckets import WeightVersion
from rsgrpo.weights.update import WeightUpdate
from tests.unit.strategies import scoped_reward, scored_group, scored_rollout

WAIT_SECONDS = 20.0


QUESTIONS = [
    PromptedSample(sample=Sample(sample_id=f"q{index}"), prompt=ChatPrompt(sample_id=f"q{index}", text=""))
    for index in range(40)
]


@dataclass
class FakeEngine:
    """Rollouts whose token ids are drawn from seed, question and weights alone."""

    policy_version: int = 0
    calls: list[tuple[int, tuple[str, ...]]] = field(default_factory=list)
    may_sample: threading.Event | None = None
    misses_updates: bool = False
    fails_at_call: int = -1

    def generate(
        self, prompted: Sequence[PromptedSample], *, num_samples: int, sampling: SamplingConfig, seed: int
    ) -> list[RolloutGroup]:
        if self.calls and self.may_sample is not None:
            assert self.may_sample.wait(WAIT_SECONDS)
            self.may_sample.clear()
        self.calls.append((self.policy_version, tuple(asked.sample.sample_id for asked in prompted)))
        if len(self.calls) == self.fails_at_call:
            raise RolloutError("the engine fell over")
        return [self._group(asked.sample.sample_id, num_samples, seed) for asked in prompted]

    def stream(
        self, prompted: Sequence[PromptedSample], *, num_samples: int, sampling: SamplingConfig, seed: int
    ) -> Generator[RolloutGroup, None, None]:
        # The last question's answers come first.
        yield from reversed(self.generate(prompted, num_samples=num_samples, sampling=sampling, seed=seed))

    def _group(self, sample_id: str, num_samples: int, seed: int) -> RolloutGroup:
        rng = np.random.default_rng((seed, int(sample_id[1:]), self.policy_version))
        rollouts = []
        for index in range(num_samples):
            length = int(rng.integers(1, 5))
            scored = scored_rollout(
                sample_id, index, length, (), logprobs=rng.normal(-1, 0.1, length), policy_version=self.policy_version
            )
            ids = rng.integers(0, 50, length).astype(np.int32)
            rollouts.append(dataclasses.replace(scored.rollout, token_ids=ids, text="<answer>7</answer>"))
        return scored_group(sample_id, ()).with_rollouts(rollouts)

    def update_weights(self, update: WeightUpdate) -> None:
        if not self.misses_updates:
            self.policy_version = update.version.version


@dataclass
class FakePolicy:
    """Counts updates and remembers what each was given."""

    version: int = 0
    updates: list[tuple[int, tuple[TrainingGroup, ...], LossConfig]] = field(default_factory=list)
    has_updated: threading.Event | None = None
    kl_reference: float = 0.0
    may_update: threading.Event | None = None

    def update(
        self,
        groups: Sequence[TrainingGroup],
        objective: str,
        loss: LossConfig,
        *,
        before_step: Callable[[Sequence[ResponseStats]], None],
    ) -> UpdateResult:
        if self.may_update is not None:
            assert self.may_update.wait(WAIT_SECONDS)
        stats = self.score(groups, with_entropy=True)
        before_step(stats)
        self.updates.append((self.version, tuple(groups), loss))
        self.version += 1
        if self.has_updated is not None:
            self.has_updated.set()
        return UpdateResult(metrics=update_metrics(self.kl_reference), responses=stats)

    def score(self, groups: Sequence[TrainingGroup], *, with_entropy: bool = False) -> tuple[ResponseStats, ...]:
        return tuple(
            ResponseStats(
                sample_id=group.sample_id,
                response_index=response.response_index,
                logprobs=cast(Any, response.rollout_logprobs) + np.float32(0.01),
                entropy=np.zeros(len(response.token_ids), np.float32) if with_entropy else None,
            )
            for group in groups
            for response in group.responses
        )

    def weights(self) -> WeightUpdate:
        stamp = WeightVersion(version=self.version, checksum="00000000")
        return WeightUpdate(version=stamp, buckets=(), is_complete=True, whole=self.weights)


class FakeScoring:
    """Judges all groups at the end."""

    def __init__(self, score: Callable[[Sequence[RolloutGroup]], list[ScoredGroup]]) -> None:
        self._score = score
        self._groups: list[RolloutGroup] = []

    def add(self, group: RolloutGroup) -> None:
        self._groups.append(group)

    def scored(self) -> list[ScoredGroup]:
        return self._score(self._groups)

    def close(self) -> None:
        self._groups.clear()


class FakeScorer:
    """A reward that is the response's length; groups of equal lengths have zero variance."""

    def scoring(self) -> FakeScoring:
        return FakeScoring(self.score)

    def score(self, groups: Sequence[RolloutGroup]) -> list[ScoredGroup]:
        return [
            group.with_rollouts(
                ScoredRollout(
                    rollout=rollout,
                    rewards=(scoped_reward("length", float(len(rollout.token_ids)), (0, len(rollout.token_ids))),),
                )
                for rollout in group.rollouts
            )
            for group in groups
        ]


def restored(state: RsGrpoState) -> RsGrpoState:
    """As a checkpoint gives it back."""
    arrays: Arrays = {}
    return from_plain(RsGrpoState, json.loads(json.dumps(to_plain(state, arrays))), arrays)


def update_metrics(kl_reference: float) -> UpdateMetrics:
    return UpdateMetrics(
        loss=0.0,
        grad_norm=1.0,
        learning_rate=1.0,
        num_response_tokens=1,
        num_forward_tokens=1,
        num_images=0,
        num_micro_batches=1,
        clip_fraction=0.0,
        kl_old=0.0,
        importance_weight_mean=1.0,
        is_skipped=False,
        forward_backward_seconds=0.0,
        optimizer_seconds=0.0,
        process_seconds=0.0,
        kl_reference=kl_reference,
    )


def rl_config(**rl: Any) -> Config:
    values: dict[str, Any] = {"prompts_per_step": 4, "samples_per_prompt": 3, **rl}
    reward = RewardConfig(function="a:b", scope=ScopeConfig(start="begin", stop="end"))
    return Config(stage="rl", rl=RlConfig(**values), rewards={"length": reward})


def new_training(config: Config, engine: FakeEngine, policy: FakePolicy, state: RsGrpoState | None = None) -> RsGrpo:
    return RsGrpo(
        config=config,
        policy=cast(Policy, policy),
        engine=engine,
        scorer=cast(Scorer, FakeScorer()),
        prompts=QUESTIONS,
        state=state or RsGrpoState(),
    )


def ages(policy: FakePolicy, reports: Sequence[StepReport]) -> list[set[int]]:
    """How many updates older than the policy the rollouts of each step were."""
    versions = [version for version, _, _ in policy.updates]
    return [
        {versions[step] - rollout.rollout.policy_version for group in report.credited for rollout in group.rollouts}
        for step, report in enumerate(reports)
    ]
