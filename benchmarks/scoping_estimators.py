"""Which estimators of the policy gradient the scoping study compares, and how good a step of each is.

A pool holds, for every response, the gradient of the log-probability of each stretch of tokens that no scope cuts. All
estimators here give one weight to all tokens of such a stretch, so that the gradient of a step is a sum over stretches:
no estimator needs a backward pass of its own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from rsgrpo.algorithm.advantages import credit_groups
from rsgrpo.config import CreditConfig
from rsgrpo.types import ScopedReward, ScoredGroup, ScoredRollout, TokenSpan

Vector = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Stretch:
    """Neighbouring tokens of a response that every scope holds together or not at all.

    Attributes:
        start: the first token.
        stop: the token behind the last.
        section: the name of the section, or ``between``.
    """

    start: int
    stop: int
    section: str


@dataclass(frozen=True, kw_only=True, slots=True)
class PoolGroup:
    """One question with scored responses and their gradients.

    Attributes:
        scored: the responses with their rewards.
        stretches: for each response its stretches, in order, which cover it.
        gradients: for each response [stretches, D] the sketched gradient of each stretch's log-probability.
        num_pages: the number of pages of the question.
    """

    scored: ScoredGroup
    stretches: tuple[tuple[Stretch, ...], ...]
    gradients: tuple[NDArray[np.float32], ...]
    num_pages: int = 1

    def some(self, chosen: Sequence[int]) -> PoolGroup:
        """The group with some of its responses."""
        return replace(
            self,
            scored=self.scored.with_rollouts(self.scored.rollouts[index] for index in chosen),
            stretches=tuple(self.stretches[index] for index in chosen),
            gradients=tuple(self.gradients[index] for index in chosen),
        )


Change = Callable[[ScoredGroup], ScoredGroup]


def with_scopes_of(others: Mapping[str, str]) -> Change:
    """A change of groups after which some rewards have the scopes of other ones.

    Args:
        others: by the name of a reward the name of the one whose scope it gets.
    """

    def changed(rollout: ScoredRollout) -> ScoredRollout:
        spans: dict[str, tuple[TokenSpan, ...]] = {}
        for reward in rollout.rewards:
            spans[reward.name] = spans.get(reward.name, ()) + reward.spans
        rewards: list[ScopedReward] = []
        for reward in rollout.rewards:
            other = others.get(reward.name)
            rewards.append(replace(reward, spans=spans[other]) if other else reward)
        return replace(rollout, rewards=tuple(rewards))

    return lambda group: group.with_rollouts(map(changed, group.rollouts))


def with_noise(name: str, deviation: float, seed: int) -> Change:
    """A change of groups after which a reward has normal noise of mean 0.

    Args:
        name: the name of the reward.
        deviation: the standard deviation of the noise.
        seed: the seed; the noise of a response depends on it and on the response alone.
    """

    def noisy(group: ScoredGroup) -> ScoredGroup:
        digest = int.from_bytes(hashlib.blake2b(group.sample_id.encode(), digest_size=8).digest(), "big")

        def changed(rollout: ScoredRollout) -> ScoredRollout:
            rng = np.random.default_rng((seed, digest, rollout.rollout.response_index))
            return replace(
                rollout,
                rewards=tuple(
                    replace(reward, value=reward.value + deviation * float(rng.standard_normal()))
                    if reward.name == name and reward.value is not None
                    else reward
                    for reward in rollout.rewards
                ),
            )

        return group.with_rollouts(map(changed, group.rollouts))

    return noisy


EVIDENCE, LINES = "evidence", "evidence by line"
"""The reward for the evidence section, and the same judgement line by line, each credited on its own line."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimator:
    """One way to turn a step's rewards into a gradient.

    Attributes:
        credit: the settings of credit.
        change: what is changed in the groups before; None: nothing.
        by_line: the share of the weight of ``EVIDENCE`` that goes to ``LINES``.
    """

    credit: CreditConfig
    change: Change | None = None
    by_line: float = 0.0

    def weights(self, weights: Mapping[str, float]) -> Mapping[str, float]:
        """The weight of each reward, with the share of ``LINES``."""
        if not self.by_line:
            return weights
        weight = weights.get(EVIDENCE, 0.0)
        return {**weights, EVIDENCE: (1.0 - self.by_line) * weight, LINES: self.by_line * weight}


ESTIMATORS: Mapping[str, Estimator] = {
    "grpo": Estimator(credit=CreditConfig(scoping="whole")),
    "decoupled": Estimator(credit=CreditConfig(outside=1.0)),
    "rs_grpo": Estimator(credit=CreditConfig()),
    "causal": Estimator(credit=CreditConfig(reach="causal")),
    "causal, batch std": Estimator(credit=CreditConfig(reach="causal", scale="batch_std")),
    "causal, shrunk": Estimator(credit=CreditConfig(reach="causal", baseline="shrunk_mean", scale="batch_std")),
    "grpo, shrunk": Estimator(credit=CreditConfig(scoping="whole", baseline="shrunk_mean", scale="batch_std")),
    "soft 0.2": Estimator(credit=CreditConfig(outside=0.2)),
    "soft 0.5": Estimator(credit=CreditConfig(outside=0.5)),
    "by line": Estimator(credit=CreditConfig(), by_line=1.0),
    "causal, by line": Estimator(credit=CreditConfig(reach="causal"), by_line=1.0),
    "causal, half by line": Estimator(credit=CreditConfig(reach="causal"), by_line=0.5),
    "wrong scopes": Estimator(
        credit=CreditConfig(), change=with_scopes_of({"accuracy": "evidence", "evidence": "accuracy"})
    ),
}
"""All with the mean over the credited tokens of a step, so that they differ in the tokens alone."""


def step_gradients(
    groups: Sequence[PoolGroup], weights: Mapping[str, float], estimator: Estimator
) -> Mapping[str, Vector]:
    """The gradient of one optimizer step, by section of the response; their sum is the gradient of the step.

    Args:
        groups: the groups of the step.
        weights: the weight of each reward.
        estimator: how credit is given.

    Returns:
        [D] for each section that has a token.

    Raises:
        ValueError: a stretch has tokens of different weight: some scope cuts it.
    """
    scored = [estimator.change(group.scored) if estimator.change else group.scored for group in groups]
    credited = credit_groups(scored, estimator.weights(weights), estimator.credit)
    sums: dict[str, Vector] = {}
    for group, found in zip(groups, credited, strict=True):
        for stretches, gradients, rollout in zip(group.stretches, group.gradients, found.rollouts, strict=True):
            credit = rollout.positive_weights.astype(np.float64) - rollout.negative_weights
            for stretch, gradient in zip(stretches, gradients, strict=True):
                weight = credit[stretch.start]
                if np.ptp(credit[stretch.start : stretch.stop]) > 1e-6 * max(1e-12, abs(float(weight))):
                    raise ValueError(f"{group.scored.sample_id}: a scope cuts the stretch {stretch}")
                if weight:
                    total = sums.setdefault(stretch.section, np.zeros(gradients.shape[1]))
                    total += weight * gradient
    return sums


def yardstick(groups: Sequence[PoolGroup], weights: Mapping[str, float]) -> Mapping[str, Vector]:
    """The gradient of the expected weighted sum of rewards over a pool.

    Each reward's value against the mean of its siblings', on all tokens up to the last of its scope: tokens behind
    cannot have caused it. This has no bias.

    Args:
        groups: the pool.
        weights: the weight of each reward.

    Returns:
        [D] by section.
    """
    plain = CreditConfig(
        reach="causal",
        baseline="leave_one_out",
        scale="none",
        aggregation="constant",
        constant_tokens=1,
        normaliser="all",
    )
    estimator = Estimator(credit=plain)
    sums: dict[str, Vector] = {}
    for group in groups:
        for name, value in step_gradients([group], weights, estimator).items():
            sums[name] = sums.get(name, 0.0) + value
    return {name: value / len(groups) for name, value in sums.items()}


@dataclass(frozen=True, kw_only=True, slots=True)
class Quality:
    """How the steps of an estimator point, against a yardstick of other groups.

    Attributes:
        cosine: mean cosine of a step with the yardstick.
        limit: the cosine of an endless step: 1 without bias in direction.
        noise: v / |m|^2, the variance of a step of one group over the squared length of the mean step, in groups.
    """

    cosine: float
    limit: float
    noise: float

    def cosine_of(self, num_groups: int) -> float:
        """The cosine that ``limit`` and ``noise`` give a step: limit / sqrt(1 + noise / b)."""
        return self.limit / float(np.sqrt(1.0 + self.noise / num_groups))

    def groups_for(self, cosine: float) -> float:
        """How many groups a step needs to reach a cosine, by the same formula; infinite where none does."""
        share = (self.limit / cosine) ** 2 - 1.0
        return self.noise / share if self.limit > 0 and share > 0 else float("inf")


def quality(along: Vector, products: Vector, halves: NDArray[np.int64], num_groups: int) -> Quality:
    """Judge the steps of an estimator.

    Args:
        along: [N] how long each step is along its yardstick, which is from groups that are in none of these steps.
        products: [N, N] inner products of the steps with one another.
        halves: [N] the half of the pool that each step is from. Products of steps of one half are no estimate of the
            mean's length: they may be the same step, or hold responses to the same question.
        num_groups: b, how many groups a step has.

    Returns:
        The quality; the yardstick's own noise lowers ``cosine`` and ``limit`` of all estimators by one factor.
    """
    squares = np.diagonal(products)
    cosines = along / np.sqrt(np.where(squares > 0, squares, 1.0))
    is_other = halves[:, None] != halves[None, :]
    mean_square = max(float(products[is_other].mean()), 1e-12 * float(squares.mean()))
    variance = float(squares.mean()) - mean_square
    return Quality(
        cosine=float(cosines.mean()),
        limit=float(along.mean()) / float(np.sqrt(mean_square)),
        noise=max(variance, 0.0) * num_groups / mean_square,
    )
