"""Every algorithm's config against its paper's formula, written out here by itself, on drawn steps.

The oracles know nothing of streams: they take each response's scalar reward, and differentiate the paper's
objective token by token in float64.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rsgrpo.advantages import credit_groups
from rsgrpo.config import Config, load_config, register_schema
from rsgrpo.losses import two_stream_loss
from rsgrpo.types import CreditedGroup, ScoredGroup
from tests.unit.strategies import Step, scoped_reward, scored_group, scored_rollout, steps

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
LAWS = settings(max_examples=60, deadline=None)
MAX_TOKENS = 96  # rollout.sampling.max_response_tokens of the quickstart


def algorithm(name: str) -> Config:
    GlobalHydra.instance().clear()
    register_schema()
    with initialize_config_dir(str(CONFIGS), version_base=None):
        return load_config(compose("config", overrides=[f"algorithm={name}"]))


@dataclass(frozen=True)
class Policies:
    """Log-probabilities of a step's tokens, response by response: in training (a leaf), old, reference."""

    new: Tensor
    old: Tensor
    reference: Tensor
    lengths: list[int]

    def each(self, vector: Tensor) -> list[Tensor]:
        return list(vector.split(self.lengths))


def policies(step: Step, seed: int, drift: float) -> Policies:
    generator = torch.Generator().manual_seed(seed)
    old = -3.0 * torch.rand(step.num_tokens, generator=generator, dtype=torch.float64)
    new = old + drift * torch.randn(step.num_tokens, generator=generator, dtype=torch.float64)
    reference = old + 0.5 * torch.randn(step.num_tokens, generator=generator, dtype=torch.float64)
    lengths = [one.num_tokens for group in step.groups for one in group.rollouts]
    return Policies(new=new.requires_grad_(), old=old, reference=reference, lengths=lengths)


def totals(step: Step) -> list[list[float]]:
    """The scalar reward of every response: the weighted sum."""
    return [
        [sum(step.weights[one.name] * one.value for one in rollout.rewards) for rollout in group.rollouts]
        for group in step.groups
    ]


def z_scores(step: Step) -> list[float]:
    """(r - mean) / std in the group; 0 where the group is flat."""
    return [
        (value - statistics.fmean(values)) / (statistics.stdev(values) + 1e-6)
        if max(values) - min(values) > 1e-6
        else 0
        for values in totals(step)
        for value in values
    ]


def ppo(ratio: Tensor, advantage: float, low: float, high: float) -> Tensor:
    return torch.minimum(ratio * advantage, ratio.clamp(1 - low, 1 + high) * advantage)


def grpo(step: Step, given_policies: Policies) -> Tensor:
    """DeepSeekMath eq. 3 without its KL term: the mean over responses of the mean over tokens."""
    p = given_policies
    means = [
        ppo((new - old).exp(), advantage, 0.2, 0.2).mean()
        for new, old, advantage in zip(p.each(p.new), p.each(p.old), z_scores(step), strict=True)
    ]
    return -torch.stack(means).mean()


ORACLES: dict[str, Callable[[Step, Policies], Tensor]] = {"grpo": grpo}


def library_loss(config: Config, credited: list[CreditedGroup], p: Policies) -> Tensor:
    rollouts = [one for group in credited for one in group.rollouts]
    positive, negative = (
        torch.from_numpy(np.concatenate(stream)).double()
        for stream in ([one.positive for one in rollouts], [one.negative for one in rollouts])
    )
    loss = config.rl.loss
    return two_stream_loss(
        p.new,
        p.old,
        positive,
        negative,
        clip_low=loss.clip_low,
        clip_high=loss.clip_high,
        dual_clip=loss.dual_clip,
        clipping=loss.clipping,
        response_lengths=p.lengths if loss.ratio == "sequence" else None,
    ).loss


STEPS = steps(values=(-1.0, 0.0, 0.1, 0.4, 1.0, 2.1), weights=(0.5, 1.0, 3.0), has_images=False)
DRIFTS = st.sampled_from((0.0, 3e-4, 0.3, 1.5))
"""Spread of the log-ratio: on-policy, about GSPO's bounds, some tokens clipped, most of them."""


@pytest.mark.parametrize("name", list(ORACLES))
def test_the_config_is_the_papers_objective(name: str) -> None:
    config = algorithm(name)

    @LAWS
    @given(step=STEPS, seed=st.integers(0, 2**16), drift=DRIFTS)
    def holds(step: Step, seed: int, drift: float) -> None:
        p = policies(step, seed, drift)
        actual = library_loss(config, credit_groups(step.groups, step.weights, config.rl.credit), p)
        expected = ORACLES[name](step, p)
        gradients = [torch.autograd.grad(loss, p.new, retain_graph=True)[0] for loss in (actual, expected)]
        # the streams are float32: 6e-8 of each token's share, which may cancel in the sum
        scale = max(1e-9, float(gradients[1].abs().max()))
        assert float((gradients[0] - gradients[1]).abs().max()) <= 1e-6 * scale
        values = actual.item(), expected.item()
        assert abs(values[0] - values[1]) <= 1e-6 * max(scale * step.num_tokens, abs(values[1]))

    holds()


def test_credit_of_the_whole_response_ignores_scopes() -> None:
    # totals 3 · 1 + 0 = 3 and 0 + 1 = 1: mean 2, std 1.4142, A = ±0.7071, on 2 and on 4 tokens, R = 2
    group: ScoredGroup = scored_group(
        "g",
        [
            scored_rollout("g", 0, 2, [scoped_reward("a", 1.0, (0, 1)), scoped_reward("b", 0.0)]),
            scored_rollout("g", 1, 4, [scoped_reward("a", 0.0), scoped_reward("b", 1.0, (2, 3))]),
        ],
    )
    config = algorithm("grpo").rl.credit
    (credited,) = credit_groups([group], {"a": 3.0, "b": 1.0}, config)
    first, second = credited.rollouts
    np.testing.assert_allclose(first.positive, [0.70711 / 4] * 2, rtol=1e-5)
    np.testing.assert_allclose(second.negative, [0.70711 / 8] * 4, rtol=1e-5)
    np.testing.assert_allclose(first.advantages, [0.70711, 0.70711], rtol=1e-5)
    np.testing.assert_allclose(second.advantages, [-0.70711, -0.70711], rtol=1e-5)
