"""The driver's loop on fakes: what is sampled when, under which weights, and what a checkpoint holds."""

from __future__ import annotations

import dataclasses
import json
import threading
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import pytest

from recipes.rs_grpo import RsGrpo, RsGrpoState, StepReport, check_staleness
from recipes.stages import planned_steps, step_note
from rewards.scorer import Scorer
from rollout.engine import RolloutError
from rsgrpo.config import (
    Config,
    ConfigError,
    CreditConfig,
    FilterConfig,
    KlConfig,
    LossConfig,
    RewardConfig,
    RlConfig,
    RolloutConfig,
    SamplingConfig,
    ScopeConfig,
)
from rsgrpo.policy import Policy, WeightUpdate
from rsgrpo.progress import MAX_COLUMNS
from rsgrpo.record_codec import Arrays, from_plain, to_plain
from rsgrpo.telemetry import StaleWeightsError
from rsgrpo.types import (
    ChatPrompt,
    PromptedSample,
    ResponseStats,
    Rollout,
    RolloutGroup,
    Sample,
    ScoredGroup,
    ScoredRollout,
    TrainingGroup,
    UpdateMetrics,
    UpdateResult,
    WeightVersion,
)
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
        self.calls.append((self.policy_version, tuple(one.sample.sample_id for one in prompted)))
        if len(self.calls) == self.fails_at_call:
            raise RolloutError("the engine fell over")
        return [self._group(one.sample.sample_id, num_samples, seed) for one in prompted]

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
            one = scored_rollout(
                sample_id, index, length, (), logprobs=rng.normal(-1, 0.1, length), policy_version=self.policy_version
            )
            rollouts.append(one)
        return scored_group(sample_id, rollouts).group

    def update_weights(self, update: WeightUpdate) -> None:
        if not self.misses_updates:
            self.policy_version = update.version.version


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
        stats = self.score(groups)
        before_step(stats)
        self.updates.append((self.version, tuple(groups), loss))
        self.version += 1
        if self.has_updated is not None:
            self.has_updated.set()
        return UpdateResult(metrics=_metrics(self.kl_reference), responses=stats)

    def score(self, groups: Sequence[TrainingGroup]) -> tuple[ResponseStats, ...]:
        return tuple(
            ResponseStats(
                sample_id=group.sample_id,
                response_index=one.response_index,
                logprobs=cast(Any, one.rollout_logprobs) + np.float32(0.01),
                entropy=np.zeros(len(one.token_ids), np.float32),
            )
            for group in groups
            for one in group.responses
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
    """A reward that is the response's length; groups of equal lengths have no signal."""

    def scoring(self) -> FakeScoring:
        return FakeScoring(self.score)

    def score(self, groups: Sequence[RolloutGroup]) -> list[ScoredGroup]:
        return [
            ScoredGroup(
                group=group,
                rollouts=tuple(
                    ScoredRollout(
                        rollout=one,
                        rewards=(scoped_reward("length", float(len(one.token_ids)), (0, len(one.token_ids))),),
                    )
                    for one in group.rollouts
                ),
            )
            for group in groups
        ]


def _restored(state: RsGrpoState) -> RsGrpoState:
    """As a checkpoint gives it back."""
    arrays: Arrays = {}
    return from_plain(RsGrpoState, json.loads(json.dumps(to_plain(state, arrays))), arrays)


def _metrics(kl_reference: float) -> UpdateMetrics:
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


def _config(**rl: Any) -> Config:
    values: dict[str, Any] = {"prompts_per_step": 4, "samples_per_prompt": 3, **rl}
    reward = RewardConfig(function="a:b", scope=ScopeConfig(start="begin", stop="end"))
    return Config(stage="rl", rl=RlConfig(**values), rewards={"length": reward})


def _training(config: Config, engine: FakeEngine, policy: FakePolicy, state: RsGrpoState | None = None) -> RsGrpo:
    return RsGrpo(
        config=config,
        policy=cast(Policy, policy),
        engine=engine,
        scorer=cast(Scorer, FakeScorer()),
        questions=QUESTIONS,
        state=state or RsGrpoState(),
    )


def _ages(policy: FakePolicy, reports: Sequence[StepReport]) -> list[set[int]]:
    """How many updates older than the policy the rollouts of each step were."""
    versions = [version for version, _, _ in policy.updates]
    return [
        {versions[step] - one.scored.rollout.policy_version for group in report.credited for one in group.rollouts}
        for step, report in enumerate(reports)
    ]


def test_synchronous_steps_train_on_their_own_weights() -> None:
    engine, policy = FakeEngine(), FakePolicy()
    training = _training(_config(filter=FilterConfig(carry_over=False)), engine, policy)
    reports = [training.train_step(is_last=step == 3) for step in range(4)]
    assert _ages(policy, reports) == [{0}, {0}, {0}, {0}]
    assert engine.policy_version == policy.version == 4
    assert {loss.old_logprobs for _, _, loss in policy.updates} == {"auto"}
    assert training.state.ahead is None
    assert "time/wait_for_samples" not in reports[0].metrics


def test_asynchronous_sampling_overlaps_the_update_and_is_one_step_old() -> None:
    # Each sampling after the first waits for an update to begin, which a driver that samples before it
    # updates would never reach; and each update of a later step needs the batch sampled beside the last one.
    begun = threading.Event()
    engine, policy = FakeEngine(may_sample=begun), FakePolicy(has_updated=begun)
    config = _config(max_staleness_steps=1, filter=FilterConfig(carry_over=False, max_refills=0))
    training = _training(config, engine, policy)
    reports = [training.train_step(is_last=step == 3) for step in range(4)]
    assert _ages(policy, reports) == [{0}, {1}, {1}, {1}]
    # One sampling a step, the last step samples nothing ahead.
    assert [version for version, _ in engine.calls] == [0, 0, 1, 2]
    assert {loss.old_logprobs for _, _, loss in policy.updates} == {"engine"}
    assert training.state.ahead is None
    assert reports[0].metrics["time/wait_for_samples"] >= 0.0
    assert [report.metrics["engine/staleness_updates"] for report in reports] == [0.0, 1.0, 1.0, 1.0]


def test_engines_get_new_weights_in_the_middle_of_the_batch_that_is_sampled_ahead() -> None:
    engine = InterruptedEngine()
    policy = FakePolicy(may_update=engine.has_begun)
    config = _config(max_staleness_steps=1, partial_rollouts=True, filter=FilterConfig(carry_over=False, max_refills=0))
    training = _training(config, engine, policy)
    reports = [training.train_step() for _ in range(4)]
    # A response is as old as its first token; its last one is of the weights that it is trained on.
    assert _ages(policy, reports) == [{0}, {1}, {1}, {1}]
    assert [report.metrics["engine/mixed_versions_frac"] for report in reports] == [0.0, 1.0, 1.0, 1.0]
    assert engine.policy_version == policy.version == 4
    for _, groups, loss in policy.updates[1:]:
        # The importance weight goes by what each token was sampled with, whichever weights did it.
        assert loss.old_logprobs == "engine"
        assert all(float(cast(Any, one.rollout_logprobs)[-1]) == -1.0 for group in groups for one in group.responses)


def test_a_batch_of_two_versions_comes_back_from_a_checkpoint() -> None:
    engine = InterruptedEngine()
    policy = FakePolicy(may_update=engine.has_begun)
    training = _training(_config(max_staleness_steps=1, partial_rollouts=True), engine, policy)
    training.train_step()
    ahead, restored = training.state.ahead, _restored(training.state).ahead
    assert ahead is not None
    assert restored is not None
    rollouts = [[rollout for group in batch.groups for rollout in group.group.rollouts] for batch in (ahead, restored)]
    for saved, read in zip(*rollouts, strict=True):
        assert saved.token_versions is not None
        assert read.token_versions is not None
        np.testing.assert_array_equal(read.token_versions, saved.token_versions)
        assert read.newest_version == saved.policy_version + 1
        assert read.is_of_version(saved.policy_version).sum() == len(saved.token_ids) - 1


def test_partial_rollouts_without_sampling_ahead_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"set rl\.max_staleness_steps=1"):
        RlConfig(partial_rollouts=True)


def test_pi_old_may_be_recomputed_from_the_trainer_although_samples_are_old() -> None:
    policy = FakePolicy()
    config = _config(max_staleness_steps=1, loss=LossConfig(old_logprobs="recompute"))
    training = _training(config, FakeEngine(), policy)
    training.train_step()
    training.train_step(is_last=True)
    for _, groups, loss in policy.updates:
        assert loss.old_logprobs == "recompute"
        for response in (one for group in groups for one in group.responses):
            # What FakePolicy.score says: 0.01 above the engine.
            assert response.old_logprobs is not None and response.rollout_logprobs is not None
            np.testing.assert_allclose(response.old_logprobs - response.rollout_logprobs, 0.01, atol=1e-6)


@dataclass
class PolicyThatDisagrees(FakePolicy):
    """What it sees of a response lies that many nats above the engine's, from the given update on."""

    gaps: Sequence[float] = ()
    num_asked: int = 0

    def score(self, groups: Sequence[TrainingGroup]) -> tuple[ResponseStats, ...]:
        gap = self.gaps[min(self.num_asked, len(self.gaps) - 1)]
        self.num_asked += 1
        return tuple(
            dataclasses.replace(one, logprobs=one.logprobs + np.float32(gap - 0.01)) for one in super().score(groups)
        )


def test_a_gap_beyond_the_limit_is_refused_before_the_step() -> None:
    policy = PolicyThatDisagrees(gaps=[0.7])
    training = _training(_config(), FakeEngine(), policy)
    with pytest.raises(StaleWeightsError, match=r"0\.7000 nats on average, more than rl\.max_logprob_gap=0\.5"):
        training.train_step(is_last=True)
    assert policy.updates == [] and policy.version == 0
    # a higher limit takes the same batch
    policy = PolicyThatDisagrees(gaps=[0.7])
    _training(_config(max_logprob_gap=0.8), FakeEngine(), policy).train_step(is_last=True)
    assert policy.version == 1


def test_the_first_of_several_updates_decides_whether_engine_and_trainer_agree() -> None:
    # afterwards the trainer's weights are others than those that sampled
    config = _config(updates_per_batch=2, loss=LossConfig(old_logprobs="engine"))
    policy = PolicyThatDisagrees(gaps=[0.1, 0.7])
    _training(config, FakeEngine(), policy).train_step(is_last=True)
    assert policy.version == 2
    policy = PolicyThatDisagrees(gaps=[0.7, 0.1])
    with pytest.raises(StaleWeightsError, match=r"0\.7000 nats"):
        _training(config, FakeEngine(), policy).train_step(is_last=True)
    assert policy.version == 0


def _kl_sums(policy: FakePolicy) -> list[float]:
    """Coefficient of each update's KL term, which is what the weights of a token mean add up to."""
    return [
        sum(one.kl_weight * len(one.token_ids) for group in groups for one in group.responses)
        for _, groups, _ in policy.updates
    ]


def test_without_a_kl_term_no_response_weighs_in_it() -> None:
    policy = FakePolicy(kl_reference=1.0)
    report = _training(_config(), FakeEngine(), policy).train_step(is_last=True)
    assert _kl_sums(policy) == [0.0]
    assert "policy/kl_coefficient" not in report.metrics


@pytest.mark.parametrize("aggregation", ["scope_tokens", "token_mean", "sequence_mean"])
def test_a_fixed_kl_coefficient_weighs_every_step_alike(aggregation: str) -> None:
    # the weights of a mean add up to 1, times 0.05; per response in sequence_mean: 0.05 / 12 / |o|
    policy = FakePolicy(kl_reference=9.0)
    config = _config(loss=LossConfig(kl=KlConfig(coefficient=0.05)), credit=CreditConfig(aggregation=aggregation))
    training = _training(config, FakeEngine(), policy)
    reports = [training.train_step(), training.train_step(is_last=True)]
    assert _kl_sums(policy) == pytest.approx([0.05, 0.05])
    assert [report.metrics["policy/kl_coefficient"] for report in reports] == [0.05, 0.05]
    if aggregation == "sequence_mean":
        for response in (one for _, groups, _ in policy.updates for group in groups for one in group.responses):
            assert response.kl_weight == pytest.approx(0.05 / 12 / len(response.token_ids))


def test_a_kl_target_steers_the_coefficient_update_by_update() -> None:
    # measured 0.3 is three times the target: the error is cut at 0.2, so each update multiplies by 1 + 0.1 · 0.2
    policy = FakePolicy(kl_reference=0.3)
    config = _config(loss=LossConfig(kl=KlConfig(coefficient=0.05, target=0.1)), updates_per_batch=2)
    engine = FakeEngine()
    training = _training(config, engine, policy)
    training.train_step()
    restored = _restored(training.state)  # a checkpoint remembers where the controller stands
    report = _training(config, engine, policy, restored).train_step(is_last=True)
    assert _kl_sums(policy) == pytest.approx([0.05, 0.05 * 1.02, 0.05 * 1.02**2, 0.05 * 1.02**3])
    assert report.metrics["policy/kl_coefficient"] == pytest.approx(0.05 * 1.02**3)


class RareScorer(FakeScorer):
    """Only every third group has signal."""

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
    settings = FilterConfig(max_refills=8, carry_over=carries_over)
    config = _config(prompts_per_step=prompts_per_step, filter=settings)
    engine, policy = FakeEngine(), FakePolicy()
    state = RsGrpoState()
    for _ in range(30):
        training = _training(config, engine, policy, _restored(state))  # each step of a new process
        training.scorer = cast(Scorer, RareScorer())
        report = training.train_step()
        state = training.state
        trained = [group.scored.sample_id for group in report.credited]
        assert 0 < len(trained) == len(set(trained)) <= min(prompts_per_step, 40)
        assert report.metrics["selection/filled_frac"] == len(trained) / prompts_per_step
    assert all(len(set(asked)) == len(asked) <= 40 for _, asked in engine.calls)


def test_a_step_reports_clipping_by_scope_and_every_update_of_its_batch() -> None:
    policy = FakePolicy()
    engine = FakeEngine()
    config = _config(updates_per_batch=2, loss=LossConfig(clip_high=0.005, clip_low=0.005))
    metrics = _training(config, engine, policy).train_step(is_last=True).metrics
    # FakePolicy says the same before and during the updates: no ratio differs from 1
    assert metrics["scope/length/clip_frac"] == 0.0
    assert metrics["policy/num_response_tokens"] == 2.0  # one an update
    assert {metrics[f"policy/update_{number}/grad_norm"] for number in (1, 2)} == {1.0}
    # Asynchronous steps compare with the engine, which FakePolicy is 0.01 above: the ratio is beyond 1.005, so that
    # every token with positive credit is clipped and none with negative.
    config = _config(max_staleness_steps=1, loss=LossConfig(clip_high=0.005, clip_low=0.005))
    report = _training(config, FakeEngine(), FakePolicy()).train_step(is_last=True)
    rollouts = [one for group in report.credited for one in group.rollouts]
    up = sum(one.scored.num_tokens for one in rollouts if one.advantages[0] > 0)
    credited = sum(one.scored.num_tokens for one in rollouts if one.advantages[0])
    assert report.metrics["scope/length/clip_frac"] == pytest.approx(up / credited)
    assert "policy/update_1/grad_norm" not in report.metrics


@pytest.mark.parametrize("staleness", [0, 1])
@pytest.mark.parametrize("updates", [1, 2])
def test_going_on_from_a_checkpoint_equals_never_stopping(staleness: int, updates: int) -> None:
    config = _config(max_staleness_steps=staleness, updates_per_batch=updates)

    def run(interrupted_after: int) -> tuple[list[Any], list[Any]]:
        engine, policy = FakeEngine(), FakePolicy()
        training = _training(config, engine, policy)
        for step in range(6):
            if step == interrupted_after:
                state = _restored(training.state)
                # A new process: an engine with the policy's weights, as run_rl makes it.
                calls, engine = engine.calls, FakeEngine(policy_version=policy.version)
                engine.calls = calls
                training = _training(config, engine, policy, state)
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
    training = _training(_config(max_staleness_steps=staleness, filter=FilterConfig(mode="none")), engine, policy)
    for step in range(6):
        training.train_step(is_last=step == 5)
    # 24 groups of the 40 questions: no question twice, in the order in which they were sampled.
    trained = [group.sample_id for _, groups, _ in policy.updates for group in groups]
    assert trained == [sample_id for _, ids in engine.calls for sample_id in ids]
    assert len(set(trained)) == 24


def test_groups_older_than_the_bound_are_dropped_and_counted() -> None:
    policy = FakePolicy(version=5)
    training = _training(_config(), FakeEngine(policy_version=5), policy)
    old, fresh = (
        FakeScorer().score(
            FakeEngine(policy_version=version).generate(
                [QUESTIONS[index]], num_samples=3, sampling=SamplingConfig(), seed=1
            )
        )[0]
        for index, version in ((30, 3), (31, 4))
    )
    training.state.carried = [old, fresh]
    # Carried over once is one update old at most: version 4 of 5 stays, version 3 goes.
    report = training.train_step()
    assert report.metrics["selection/dropped_stale_groups"] == 1.0
    assert report.metrics["selection/carried_groups"] == 1.0
    ids = [group.scored.sample_id for group in report.credited]
    assert "q31" in ids
    assert "q30" not in ids


@pytest.mark.parametrize("staleness", [0, 1])
def test_an_engine_that_misses_weight_updates_stops_the_run(staleness: int) -> None:
    engine = FakeEngine(misses_updates=True)
    training = _training(_config(max_staleness_steps=staleness), engine, FakePolicy())
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


def test_what_goes_wrong_in_sampling_ahead_is_raised_in_the_step() -> None:
    training = _training(_config(max_staleness_steps=1), FakeEngine(fails_at_call=2), FakePolicy())
    with pytest.raises(RolloutError, match="fell over"):
        training.train_step()


@pytest.mark.parametrize("value", [-1, 2])
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


def test_a_step_that_lacks_most_of_its_groups_says_so_in_a_line_of_its_own() -> None:
    def note(num_groups: int, num_wanted: int) -> str:
        return step_note(StepReport(step=7, metrics={}, credited=[object()] * num_groups), num_wanted)  # type: ignore[list-item]

    assert note(3, 3) == note(2, 3) == note(16, 32) == ""
    assert note(1, 3).startswith("step 7: only 1 of 3 groups")
    assert note(0, 3).startswith("step 7: no reward varied")
    assert max(len(note(n, 3)) for n in range(3)) < MAX_COLUMNS - 4
