"""The objectives of the papers, written out from their formulas, and responses to try them on.

They know nothing of streams, spans or rows: they take each response's scalar reward, in float64.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from rsgrpo.types import ScoredRollout
from tests.unit.strategies import Step

MAX_TOKENS = 96  # rollout.sampling.max_response_tokens of the quickstart


@dataclasses.dataclass(frozen=True)
class Tokens:
    """Log-probabilities of a step's tokens, response by response: in training (a leaf), old, reference."""

    new: Tensor
    old: Tensor
    reference: Tensor


def drawn_tokens(step: Step, seed: int, drift: float) -> Tokens:
    generator = torch.Generator().manual_seed(seed)
    old = -3.0 * torch.rand(step.num_tokens, generator=generator, dtype=torch.float64)
    new = old + drift * torch.randn(step.num_tokens, generator=generator, dtype=torch.float64)
    reference = old + 0.5 * torch.randn(step.num_tokens, generator=generator, dtype=torch.float64)
    return Tokens(new=new.requires_grad_(), old=old, reference=reference)


@dataclasses.dataclass(frozen=True)
class Response:
    """What an oracle sees of a response."""

    advantage: float
    new: Tensor
    old: Tensor
    reference: Tensor


def differ(values: Sequence[float]) -> bool:
    return max(values) - min(values) > 1e-6


def z_score(values: Sequence[float]) -> list[float]:
    """(r - mean) / std of one group."""
    return [(value - statistics.fmean(values)) / (statistics.stdev(values) + 1e-6) for value in values]


def against_mean(values: Sequence[float]) -> list[float]:
    return [value - statistics.fmean(values) for value in values]


def against_others(values: Sequence[float]) -> list[float]:
    """r_i - mean of the others."""
    return [value - (sum(values) - value) / (len(values) - 1) for value in values]


def ppo(ratio: Tensor, advantage: float, low: float = 0.2, high: float = 0.2) -> Tensor:
    return torch.minimum(ratio * advantage, ratio.clamp(1 - low, 1 + high) * advantage)


def kl(response: Response) -> Tensor:
    """k3, token by token: q/p - log q/p - 1."""
    log = response.reference - response.new
    return log.exp() - log - 1


def grpo(responses: list[Response], beta: float) -> Tensor:
    # 2402.03300 eq. 3: 1/G sum_i 1/|o_i| sum_t (min(...) - beta D_KL)
    return -torch.stack([(ppo((r.new - r.old).exp(), r.advantage) - beta * kl(r)).mean() for r in responses]).mean()


def dr_grpo(responses: list[Response], beta: float) -> Tensor:
    # 2503.20783: the same without 1/|o_i| and without the std; over a constant
    sums = [(ppo((r.new - r.old).exp(), r.advantage) - beta * kl(r)).sum() for r in responses]
    return -torch.stack(sums).mean() / MAX_TOKENS


def dapo(responses: list[Response], beta: float) -> Tensor:
    # 2503.14476 eq. 8: 1 / sum_i |o_i| sum_i sum_t min(rho A, clip(rho, 0.8, 1.28) A)
    return -torch.cat([ppo((r.new - r.old).exp(), r.advantage, 0.2, 0.28) - beta * kl(r) for r in responses]).mean()


def gspo(responses: list[Response], beta: float) -> Tensor:
    # 2507.18071 eq. 5-7: s_i = (pi(y_i) / pi_old(y_i))^(1/|y_i|), and the mean over responses of min(s A, clip(s) A)
    means = [ppo((r.new - r.old).mean().exp(), r.advantage, 3e-4, 4e-4) - beta * kl(r).mean() for r in responses]
    return -torch.stack(means).mean()


def cispo(responses: list[Response], beta: float) -> Tensor:
    # 2506.13585 eq. 4: 1 / sum_i |o_i| sum_i sum_t sg(clip(rho, ., 1 + eps)) A log pi
    terms = [(r.new - r.old).exp().clamp(max=5.0).detach() * r.advantage * r.new - beta * kl(r) for r in responses]
    return -torch.cat(terms).mean()


def rloo(responses: list[Response], beta: float) -> Tensor:
    # 2402.14740 eq. 8 on-policy, 1/k sum_i (R_i - mean of the others) grad log pi(y_i), in PPO's surrogate, whose
    # ratio is 1 there; over a constant
    sums = [(ppo((r.new - r.old).exp(), r.advantage) - beta * kl(r)).sum() for r in responses]
    return -torch.stack(sums).mean() / MAX_TOKENS


Objective = Callable[[list[Response], float], Tensor]
PAPERS: dict[str, tuple[str, Callable[[Sequence[float]], list[float]], Objective]] = {
    # name: (over what rewards are compared, how, the objective)
    "grpo": ("group", z_score, grpo),
    "dr_grpo": ("group", against_mean, dr_grpo),
    "dapo": ("group", z_score, dapo),
    "gspo": ("group", z_score, gspo),
    "cispo": ("group", z_score, cispo),
    "rloo": ("group", against_others, rloo),
    "reinforce_plus_plus": ("step", z_score, grpo),
}
SAMPLES_DYNAMICALLY = ("dapo", "cispo")


def _weighted_sum(step: Step, rollout: ScoredRollout) -> float:
    total = 0.0
    for reward in rollout.rewards:
        assert reward.value is not None, f"{reward.name} does not apply; the papers' single reward always does"
        total += step.weights[reward.name] * reward.value
    return total


def oracle(name: str, step: Step, tokens: Tokens, beta: float) -> Tensor:
    over, formula, objective = PAPERS[name]
    scalars = [[_weighted_sum(step, rollout) for rollout in group.rollouts] for group in step.groups]

    def compare(values: list[float]) -> list[float]:
        return formula(values) if differ(values) else [0.0] * len(values)

    if over == "step":
        advantages = compare([value for values in scalars for value in values])
    else:
        advantages = [advantage for values in scalars for advantage in compare(values)]
    responses = []
    offset = 0
    for index, group in enumerate(step.groups):
        for rollout in group.rollouts:
            part = slice(offset, offset + rollout.num_tokens)
            offset += rollout.num_tokens
            advantage = advantages.pop(0)
            if name in SAMPLES_DYNAMICALLY and not differ(scalars[index]):
                continue
            responses.append(Response(advantage, tokens.new[part], tokens.old[part], tokens.reference[part]))
    return objective(responses, beta) if responses else 0.0 * tokens.new.sum()
