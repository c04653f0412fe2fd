"""Reward-Scoped GRPO (EVisRAG, arXiv 2510.09733): each reward trains the tokens of its own scope.

One step, every arrow a typed record of ``rsgrpo.types``:

    prompts ───engines.stream───► RolloutGroup ──scoring.add──► ScoredGroup ──select──► kept
         ▲                                                                                  │
    new weights ◄──engines.update_weights── policy.update(P, Q) ◄──credit_groups── CreditedGroup

Where a reward asks what the policy answers without single pages, the engines answer that too, before the groups are
scored (:mod:`recipes.counterfactuals`).

What differs from the public implementation (``rl.credit.compat: upstream`` gives its numbers back):

1. Scopes are found in the text and mapped through each sampled token's own characters, not by
   searching for re-encoded tags.
2. A scope that is absent gives no credit instead of widening to the whole response.
3. Weights act: they multiply the advantage after its normalisation.
4. A group whose values of a reward are all equal gives exactly zero advantage for it.
5. Token counts and the active weights are summed over the whole optimizer step, so that gradients do
   not depend on micro-batches, packing or ranks.
6. Groups are kept if any reward varies in them, not by the mean of the sum.
7. With ``rl.max_staleness_steps: 1`` the next batch is sampled while the policy is updated on the present
   one. Its weights are then one step old, so pi_old is what the engine said when it sampled, which the
   clipped ratio corrects for; groups that are older than the bound are dropped, and a batch that holds one
   stops the run. With ``rl.partial_rollouts`` the engines get the new weights as soon as they are there, and
   responses go on under them: each token keeps the version and the log-probability that it was sampled with.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial

from recipes.counterfactuals import CounterfactualAnswers
from recipes.prompt_stream import PromptStream, SearchAgain
from rewards.scopes import section_spans
from rewards.scorer import Scorer
from rollout.engine import RolloutEngine
from rsgrpo.algorithm.advantages import credit_groups
from rsgrpo.algorithm.aggregation import response_weights
from rsgrpo.algorithm.credit_signal import signal_metrics
from rsgrpo.algorithm.losses import adapted_kl_coefficient
from rsgrpo.algorithm.metrics import (
    check_logprob_gap,
    logprob_gap,
    newest_version,
    policy_metrics,
    step_telemetry,
)
from rsgrpo.algorithm.selection import select_groups
from rsgrpo.algorithm.staleness import check_staleness, sampled_version
from rsgrpo.algorithm.update_metrics import UpdateMetrics
from rsgrpo.config import Config
from rsgrpo.io.timers import Stopwatch
from rsgrpo.trainer.policy import Policy, unweighted
from rsgrpo.types import (
    ChatPrompt,
    CreditedGroup,
    PromptedSample,
    ResponseKey,
    ResponseStats,
    ScoredGroup,
    TrainingGroup,
    TrainingResponse,
)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Batch:
    """One step's groups, sampled, scored and selected.

    Attributes:
        groups: the groups to train on; they may be fewer than the step wants.
        metrics: the metrics ``engine/*`` and ``selection/*`` of the sampling.
        seconds: the seconds that each phase took.
    """

    groups: tuple[ScoredGroup, ...]
    metrics: Mapping[str, float]
    seconds: Mapping[str, float]


@dataclass(kw_only=True, slots=True)
class RsGrpoState:
    """What a checkpoint of the driver holds, beside the policy's own.

    Attributes:
        step: the number of rollout batches trained on so far.
        position: how many questions of the prompt stream were passed so far.
        leftover: groups with nonzero variance that did not fit into the last batch.
        acceptance_rate: running share of sampled groups that were kept; sizes the next request.
        prefetched: asynchronous mode: the next step's batch, sampled during the last update.
        kl_coefficient: the coefficient of the KL term, where ``rl.loss.kl.target`` steers it; 0: nothing was measured
            yet.
    """

    step: int = 0
    position: int = 0
    leftover: list[ScoredGroup] = field(default_factory=list)
    acceptance_rate: float = 1.0
    prefetched: Batch | None = None
    kl_coefficient: float = 0.0

    def find_images(self, prompts: Sequence[PromptedSample]) -> None:
        """Let groups of a checkpoint look for their pages where the data lie now: the run folder may have moved.

        Args:
            prompts: the prompts of this process, to which groups belong by sample id, words and pages.
        """

        def shown(prompt: ChatPrompt) -> tuple[str, str, tuple[str, ...]]:
            return prompt.sample_id, prompt.text, tuple(page.path for page in prompt.images)

        by_prompt = {shown(prompt.prompt): prompt for prompt in prompts}

        def found(scored: ScoredGroup) -> ScoredGroup:
            own = by_prompt.get(shown(scored.prompt))  # none where a retriever has found other pages since
            return scored if own is None else dataclasses.replace(scored, sample=own.sample, prompt=own.prompt)

        self.leftover = [found(group) for group in self.leftover]
        if self.prefetched is not None:
            self.prefetched = dataclasses.replace(
                self.prefetched, groups=tuple(found(group) for group in self.prefetched.groups)
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class StepReport:
    """One step for the people who watch: numbers, and the groups behind them."""

    step: int
    metrics: Mapping[str, float]
    credited: Sequence[CreditedGroup]


OldLogprobs = Mapping[ResponseKey, ResponseStats]


def training_groups(
    credited: Sequence[CreditedGroup], old: OldLogprobs, kl_weights: Mapping[ResponseKey, float] | None = None
) -> list[TrainingGroup]:
    """What the policy workers need of credited groups.

    Args:
        credited: ids, the token weights, the engine's log-probabilities.
        old: pi_old by :attr:`Rollout.key`; empty where it is the update's own forward pass.
        kl_weights: what a token weighs in the KL term, by the same key; None: there is no such term.
    """
    return [
        TrainingGroup(
            sample_id=group.sample_id,
            prompt=group.prompt,
            prompt_token_ids=group.prompt_token_ids,
            responses=tuple(
                TrainingResponse(
                    response_index=credited_rollout.rollout.response_index,
                    token_ids=credited_rollout.rollout.token_ids,
                    positive_weights=credited_rollout.positive_weights,
                    negative_weights=credited_rollout.negative_weights,
                    rollout_logprobs=credited_rollout.rollout.logprobs,
                    old_logprobs=old[credited_rollout.key].logprobs if credited_rollout.key in old else None,
                    kl_weight=0.0 if kl_weights is None else kl_weights[credited_rollout.key],
                    temperature=credited_rollout.rollout.temperature,
                )
                for credited_rollout in group.rollouts
            ),
        )
        for group in credited
    ]


def _request_size(missing: int, acceptance_rate: float, *, most: int) -> int:
    """How many questions to sample so that about ``missing`` of their groups are kept."""
    return min(most, max(1, math.ceil(missing / max(acceptance_rate, 0.1))))


class RsGrpo:
    """The algorithm: :meth:`train_step` is one step of it.

    Args:
        config: the run's settings.
        policy: the ranks that hold the weights.
        engine: the rollout workers.
        scorer: the rewards that score responses.
        prompts: what to train on.
        state: where to go on.
        search_again: finds pages for the questions anew every ``data.retrieve_refresh_steps``; None: they stay.
        counterfactuals: asks the policy again without single pages, for the rewards that want it; None: none does.

    Raises:
        ValueError: ``rl.max_staleness_steps`` is undecided (:func:`rsgrpo.cluster.topology.fit` decides it).
    """

    def __init__(
        self,
        *,
        config: Config,
        policy: Policy,
        engine: RolloutEngine,
        scorer: Scorer,
        prompts: Sequence[PromptedSample],
        state: RsGrpoState,
        search_again: SearchAgain | None = None,
        counterfactuals: CounterfactualAnswers | None = None,
    ) -> None:
        if config.rl.max_staleness_steps < 0:
            raise ValueError("rl.max_staleness_steps=-1 is to be decided before: take the settings that fit() gives")
        self.config = config
        self.policy = policy
        self.engine = engine
        self.scorer = scorer
        self.state = state
        self.counterfactuals = counterfactuals
        state.find_images(prompts)
        self.stream = PromptStream(prompts, seed=config.seed, shuffle=config.rl.shuffle, position=state.position)
        if search_again is not None:
            self.stream.search_every(config.data.retrieve_refresh_steps, search_again)
        self._unchecked_version: int | None = None  # whose responses no update of the batch held so far
        self.weights = {name: reward.weight for name, reward in config.rewards.items()}
        self.loss = config.rl.loss
        self._sampler: ThreadPoolExecutor | None = None
        if not config.rl.max_staleness_steps:
            state.prefetched = None  # of a run that sampled ahead, and now goes on where that is not possible
        else:
            self._sampler = ThreadPoolExecutor(max_workers=1, thread_name_prefix="prefetch")
            if self.loss.old_logprobs == "auto":
                self.loss = dataclasses.replace(self.loss, old_logprobs="engine")

    def train_step(self, *, is_last: bool = False) -> StepReport:
        """Sample, score, credit, update, and give the engines the new weights.

        Args:
            is_last: whether no step follows, so that nothing is to be sampled ahead.
        """
        clock = Stopwatch()
        batch = self.state.prefetched or self.collect(self.state.step, trained_version=self.policy.version)
        check_staleness(batch.groups, trained_version=self.policy.version, max_age=self._max_age(is_leftover=True))
        prefetching = None if is_last else self._prefetch()
        credited, metrics = self._train(batch, clock)
        self.state.prefetched = None
        if credited and self.config.rl.partial_rollouts:
            self._give_weights(clock)
        if prefetching is not None:
            with clock.phase("wait_for_samples"):
                self.state.prefetched = prefetching.result()
        if credited and not self.config.rl.partial_rollouts:
            self._give_weights(clock)
        self.state.step += 1
        self.state.position = self.stream.position
        seconds = {**batch.seconds, **clock.seconds, "step": clock.total_seconds}
        metrics = {**batch.metrics, **metrics, **{f"time/{phase}": value for phase, value in seconds.items()}}
        return StepReport(step=self.state.step, metrics=metrics, credited=credited)

    def _give_weights(self, clock: Stopwatch) -> None:
        with clock.phase("weights"):
            self.engine.update_weights(self.policy.weights())

    def _train(self, batch: Batch, clock: Stopwatch) -> tuple[list[CreditedGroup], dict[str, float]]:
        """Give credit to a batch and update the policy on it; a batch without groups changes nothing."""
        metrics: dict[str, float] = {}
        credited: list[CreditedGroup] = []
        seen: list[ResponseStats] = []
        updates: list[UpdateMetrics] = []
        self._unchecked_version = newest_version(batch.groups)
        is_on_policy = self._unchecked_version == self.policy.version
        old = self._old_logprobs(batch.groups, clock)
        for groups in self._updates(batch.groups):
            with clock.phase("credit"):
                part = credit_groups(groups, self.weights, self.config.rl.credit)
            with clock.phase("update"):
                result = self.policy.update(
                    training_groups(part, old, self._kl_weights(groups)),
                    "policy",
                    self.loss,
                    before_step=partial(self._check_gap, part),
                )
            updates.append(result.metrics)
            if self.loss.kl.coefficient:
                metrics["policy/kl_coefficient"] = self._kl_coefficient()
                self.state.kl_coefficient = adapted_kl_coefficient(
                    self._kl_coefficient(), result.metrics.kl_reference, self.loss.kl.target
                )
            credited.extend(part)
            seen.extend(result.responses)
        if credited:
            with clock.phase("telemetry"):
                metrics |= policy_metrics(updates)
                metrics |= step_telemetry(
                    credited,
                    list(old.values()) or seen,
                    self.weights,
                    updated=seen,
                    loss=self.loss,
                    # Without pi_old of its own, what a batch's later updates saw is their predecessors' doing.
                    is_on_policy=is_on_policy and (bool(old) or len(updates) == 1),
                )
                sections = section_spans(batch.groups, self.config.response.format)
                metrics |= signal_metrics(batch.groups, sections, self.config.rl.credit)
        return credited, metrics

    def _check_gap(self, part: Sequence[CreditedGroup], seen: Sequence[ResponseStats]) -> None:
        """Refuse a batch's first update, before its step, where engine and trainer cannot hold the same weights.

        First is the first with responses of the newest weights: others, carried over, differ because weights do.
        """
        if self._unchecked_version is None:
            return
        gap = logprob_gap(part, seen, self._unchecked_version)
        if gap is not None:
            check_logprob_gap(gap, self.config.rl.max_logprob_gap)
            self._unchecked_version = None

    def _kl_coefficient(self) -> float:
        """The present KL coefficient: the controller's once it has begun to steer, else that of the settings."""
        if self.loss.kl.target and self.state.kl_coefficient:
            return self.state.kl_coefficient
        return self.loss.kl.coefficient

    def _kl_weights(self, groups: Sequence[ScoredGroup]) -> dict[ResponseKey, float] | None:
        """What a token of each response weighs in the KL term; None where there is no such term."""
        if not self.loss.kl.coefficient:
            return None
        coefficient = self._kl_coefficient()
        shares = response_weights(groups, self.config.rl.credit)
        return {key: coefficient * share for key, share in shares.items()}

    def _old_logprobs(self, kept: Sequence[ScoredGroup], clock: Stopwatch) -> OldLogprobs:
        """Log-probabilities under pi_old where a pass before the first update has to compute them; else empty."""
        is_reused = self.config.rl.updates_per_batch > 1 and self.loss.old_logprobs == "auto"
        if not kept or not (is_reused or self.loss.old_logprobs == "recompute"):
            return {}
        with clock.phase("old_logprobs"):
            sampled = [group.with_rollouts(scored.rollout for scored in group.rollouts) for group in kept]
            found = self.policy.score([unweighted(group) for group in sampled], with_entropy=True)
        return {stats.key: stats for stats in found}

    def _updates(self, kept: Sequence[ScoredGroup]) -> list[Sequence[ScoredGroup]]:
        """The batch cut into the groups of each optimizer step."""
        settings = self.config.rl
        size = max(1, math.ceil(len(kept) / settings.updates_per_batch))
        return [kept[start : start + size] for start in range(0, len(kept), size)]

    def _max_age(self, *, is_leftover: bool) -> int:
        """How many updates older than the policy the weights that sampled a group may be when it is trained on."""
        settings = self.config.rl
        num_steps = settings.max_staleness_steps + (is_leftover and settings.filter.keep_leftover)
        return num_steps * settings.updates_per_batch

    def _prefetch(self) -> Future[Batch] | None:
        """Asynchronous mode: start sampling the next step's batch beside this step's updates."""
        if self._sampler is None:
            return None
        after_this_step = self.policy.version + self.config.rl.updates_per_batch
        return self._sampler.submit(self.collect, self.state.step + 1, trained_version=after_this_step)

    def _sample(
        self, prompted: Sequence[PromptedSample], seed: int, clock: Stopwatch
    ) -> tuple[list[ScoredGroup], Mapping[str, float]]:
        """The scored groups of these questions, in order, and metrics; each is scored while others are sampled."""
        asked: Mapping[str, float] = {}
        with closing(self.scorer.scoring()) as scoring:
            with (
                clock.phase("generate"),
                closing(
                    self.engine.stream(
                        prompted,
                        num_samples=self.config.rl.samples_per_prompt,
                        sampling=self.config.rollout.sampling,
                        seed=seed,
                    )
                ) as groups,
            ):
                for group in groups:
                    scoring.add(group)
            if self.counterfactuals is not None:
                with clock.phase("counterfactual"):
                    asked = self.counterfactuals.ask(self.engine, prompted, scoring, seed)
            with clock.phase("score"):
                scored = {group.sample_id: group for group in scoring.scored()}
        return [scored[prompt.sample.sample_id] for prompt in prompted], asked

    def collect(self, step: int, *, trained_version: int) -> Batch:
        """Sample and score until a step's worth of groups has nonzero variance, or the refills are used up.

        Surplus groups wait in ``state.leftover`` for the next step. With too few groups, or fewer questions than a
        step wants, the step is trained on what there is, and ``selection/filled_frac`` says so.

        Args:
            step: 0-based step that trains on the batch.
            trained_version: the policy's version then, or a later one if an update is skipped.
        """
        settings = self.config.rl
        clock = Stopwatch()
        found: Mapping[str, float] = {}
        if self.stream.is_search_due(step):
            with clock.phase("retrieve"):
                found = self.stream.find_pages(step)
        wanted = settings.prompts_per_step
        oldest = trained_version - self._max_age(is_leftover=True)
        kept = [group for group in self.state.leftover if sampled_version(group) >= oldest]
        num_leftover, num_dropped = len(kept), len(self.state.leftover) - len(kept)
        num_sampled, num_kept, num_tokens = 0, 0, 0
        asked: Counter[str] = Counter()
        for round_index in range(1 + settings.filter.max_refills):
            if len(kept) >= wanted:
                break
            held = {group.sample_id for group in kept}
            request = _request_size(wanted - len(kept), self.state.acceptance_rate, most=2 * wanted)
            # A small data set may hold fewer: then the step trains on what there is.
            request = min(request, self.stream.num_prompts - len(held))
            if not request:
                break
            prompted = self.stream.take(request, without=held)
            scored, asked_now = self._sample(prompted, self.config.seed * 1_000_003 + step * 101 + round_index, clock)
            asked.update(asked_now)
            fresh = select_groups(scored, settings.filter, self.weights, settings.credit)
            check_staleness(scored, trained_version=trained_version, max_age=self._max_age(is_leftover=False))
            num_tokens += sum(rollout.num_tokens for group in scored for rollout in group.rollouts)
            num_sampled += len(scored)
            num_kept += len(fresh)
            kept.extend(fresh)
        if num_sampled:
            self.state.acceptance_rate = 0.8 * self.state.acceptance_rate + 0.2 * num_kept / num_sampled
        self.state.leftover = kept[wanted:] if settings.filter.keep_leftover else []
        metrics = {
            "engine/sampled_tokens": float(num_tokens),
            "engine/staleness_updates": float(max((trained_version - sampled_version(g) for g in kept), default=0)),
            "selection/sampled_groups": float(num_sampled),
            "selection/kept_frac": num_kept / num_sampled if num_sampled else 1.0,
            "selection/leftover_groups": float(num_leftover),
            "selection/dropped_stale_groups": float(num_dropped),
            "selection/filled_frac": min(len(kept), wanted) / wanted,
            **asked,
            **found,
        }
        return Batch(groups=tuple(kept[:wanted]), metrics=metrics, seconds=clock.seconds)
