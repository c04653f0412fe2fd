"""Reward-Scoped GRPO (EVisRAG, arXiv 2510.09733): each reward trains the tokens of its own scope.

One step, every arrow a typed record of ``rsgrpo.types``:

    questions ──engines.generate──► RolloutGroup ──scorer.score──► ScoredGroup ──select──► kept
         ▲                                                                                  │
    new weights ◄──engines.update_weights── policy.update(P, Q) ◄──credit_groups── CreditedGroup

What differs from the public implementation (``rl.credit.compat: reference`` gives its numbers back):

1. Scopes are found in the text and mapped through each sampled token's own characters, not by
   searching for re-encoded tags.
2. A scope that is absent gives no credit instead of widening to the whole response.
3. Weights act: they multiply the advantage after its normalisation.
4. A group whose values of a reward are all equal gives exactly zero advantage for it.
5. Token counts and the active weights are summed over the whole optimizer step, so that gradients do
   not depend on micro-batches, packing or ranks.
6. Groups are kept if any reward varies in them, not by the mean of the sum.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from recipes.prompt_stream import PromptStream
from rewards.scorer import Scorer
from rollout.engine import RolloutEngine
from rsgrpo.advantages import credit_groups
from rsgrpo.config import Config
from rsgrpo.policy import Policy
from rsgrpo.selection import select_groups
from rsgrpo.stopwatch import Stopwatch
from rsgrpo.telemetry import check_logprob_gap, step_telemetry
from rsgrpo.types import (
    CreditedGroup,
    PromptedSample,
    ResponseStats,
    ScoredGroup,
    TrainingGroup,
    TrainingResponse,
)


@dataclass(kw_only=True, slots=True)
class RsGrpoState:
    """What a checkpoint of the driver holds, beside the policy's own.

    Attributes:
        step: rollout batches trained on so far.
        position: of the prompt stream.
        carried: groups with signal that did not fit into the last step.
        keep_rate: running share of sampled groups that had signal; sizes the next request.
    """

    step: int = 0
    position: int = 0
    carried: list[ScoredGroup] = field(default_factory=list)
    keep_rate: float = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class StepReport:
    """One step for the people who watch: numbers, and the groups behind them."""

    step: int
    metrics: Mapping[str, float]
    credited: Sequence[CreditedGroup]


OldLogprobs = Mapping[tuple[str, int], ResponseStats]


def training_groups(credited: Sequence[CreditedGroup], old: OldLogprobs) -> list[TrainingGroup]:
    """What the policy workers need of credited groups.

    Args:
        credited: ids, the two streams, the engine's log-probabilities.
        old: pi_old by (sample id, response index); empty where it is the update's own forward pass.
    """
    return [
        TrainingGroup(
            sample_id=group.scored.sample_id,
            prompt=group.scored.group.prompt,
            prompt_token_ids=group.scored.group.prompt_token_ids,
            responses=tuple(
                TrainingResponse(
                    response_index=one.scored.rollout.rollout_index,
                    token_ids=one.scored.rollout.token_ids,
                    positive=one.positive,
                    negative=one.negative,
                    rollout_logprobs=one.scored.rollout.logprobs,
                    old_logprobs=old[key].logprobs
                    if (key := (group.scored.sample_id, one.scored.rollout.rollout_index)) in old
                    else None,
                )
                for one in group.rollouts
            ),
        )
        for group in credited
    ]


def _request_size(missing: int, keep_rate: float, *, most: int) -> int:
    """How many questions to sample so that about ``missing`` of their groups have signal."""
    return min(most, max(1, math.ceil(missing / max(keep_rate, 0.1))))


class RsGrpo:
    """The algorithm: :meth:`train_step` is one step of it.

    Args:
        config: the run's settings.
        policy: the ranks that hold the weights.
        engine: the rollout workers.
        scorer: the rewards.
        questions: what to train on.
        state: where to go on.
    """

    def __init__(
        self,
        *,
        config: Config,
        policy: Policy,
        engine: RolloutEngine,
        scorer: Scorer,
        questions: Sequence[PromptedSample],
        state: RsGrpoState,
    ) -> None:
        self.config = config
        self.policy = policy
        self.engine = engine
        self.scorer = scorer
        self.state = state
        self.stream = PromptStream(questions, seed=config.seed, shuffle=config.rl.shuffle, position=state.position)
        self._old: OldLogprobs = {}
        self.weights = {name: reward.weight for name, reward in config.rewards.items()}

    def train_step(self) -> StepReport:
        """Sample, score, credit, update, and give the engines the new weights."""
        clock = Stopwatch()
        kept, metrics = self.collect(clock)
        credited: list[CreditedGroup] = []
        seen: list[ResponseStats] = []
        for groups in self._updates(kept, clock):
            with clock.phase("credit"):
                part = credit_groups(groups, self.weights, self.config.rl.credit)
            with clock.phase("update"):
                result = self.policy.update(training_groups(part, self._old), "policy", self.config.rl.loss)
            metrics |= {f"policy/{key}": float(value) for key, value in dataclasses.asdict(result.metrics).items()}
            credited.extend(part)
            seen.extend(result.responses)
        if credited:
            with clock.phase("weights"):
                self.engine.update_weights(self.policy.weights())
            with clock.phase("telemetry"):
                metrics |= step_telemetry(credited, list(self._old.values()) or seen, self.weights)
            check_logprob_gap(metrics["engine/logprob_gap_mean"], self.config.rl.max_logprob_gap)
        self.state.step += 1
        self.state.position = self.stream.position
        metrics |= {f"time/{phase}": seconds for phase, seconds in clock.seconds.items()}
        metrics["time/step"] = clock.total_seconds
        return StepReport(step=self.state.step, metrics=metrics, credited=credited)

    def _updates(self, kept: Sequence[ScoredGroup], clock: Stopwatch) -> list[Sequence[ScoredGroup]]:
        """The batch, cut into its optimizer steps; pi_old is computed once where there are several."""
        settings = self.config.rl
        self._old = {}
        is_stale = settings.updates_per_batch > 1 and settings.loss.old_logprobs == "auto"
        if kept and (is_stale or settings.loss.old_logprobs == "recompute"):
            with clock.phase("old_logprobs"):
                unweighted = credit_groups(kept, self.weights, settings.credit)
                scored = self.policy.score(training_groups(unweighted, {}))
            self._old = {(one.sample_id, one.response_index): one for one in scored}
        size = max(1, math.ceil(len(kept) / settings.updates_per_batch))
        return [kept[start : start + size] for start in range(0, len(kept), size)]

    def collect(self, clock: Stopwatch) -> tuple[list[ScoredGroup], dict[str, float]]:
        """Sample and score until a step's worth of groups has signal, or the refills are used up.

        Surplus groups wait in ``state.carried`` for the next step. With too few groups the step is
        trained on what there is, and ``selection/filled_frac`` says so.
        """
        settings = self.config.rl
        wanted = settings.prompts_per_step
        kept, self.state.carried = list(self.state.carried), []
        num_carried, num_sampled, num_kept, num_tokens = len(kept), 0, 0, 0
        for round_index in range(1 + settings.filter.max_refills):
            if len(kept) >= wanted:
                break
            request = _request_size(wanted - len(kept), self.state.keep_rate, most=2 * wanted)
            prompted = self.stream.take(request, without={group.sample_id for group in kept})
            with clock.phase("generate"):
                groups = self.engine.generate(
                    prompted,
                    num_samples=settings.samples_per_prompt,
                    sampling=self.config.rollout.sampling,
                    seed=self.config.seed * 1_000_003 + self.state.step * 101 + round_index,
                )
            with clock.phase("score"):
                scored = self.scorer.score(groups)
                selection = select_groups(scored, settings.filter, self.weights)
            num_tokens += sum(len(rollout.token_ids) for group in groups for rollout in group.rollouts)
            num_sampled += len(scored)
            num_kept += len(selection.kept)
            kept.extend(selection.kept)
        if num_sampled:
            self.state.keep_rate = 0.8 * self.state.keep_rate + 0.2 * num_kept / num_sampled
        if settings.filter.carry_over:
            self.state.carried = kept[wanted:]
        metrics = {
            "engine/sampled_tokens": float(num_tokens),
            "selection/sampled_groups": float(num_sampled),
            "selection/kept_frac": num_kept / num_sampled if num_sampled else 1.0,
            "selection/carried_groups": float(num_carried),
            "selection/filled_frac": min(len(kept), wanted) / wanted,
        }
        return kept[:wanted], metrics
