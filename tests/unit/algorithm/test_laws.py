"""The laws of rs_grpo against oracles that share no code with the library, on drawn steps.

The direct oracle computes advantages, token counts and the loss reward by reward in float64; the reference
oracle is the public formula on dense tensors.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rsgrpo.algorithm.advantages import credit_groups
from rsgrpo.algorithm.losses import clipped_policy_loss
from rsgrpo.config import EVISRAG, CreditConfig, Normaliser, ScopeConfig, Scoping
from rsgrpo.text.sections import parse_response
from rsgrpo.types import CreditedGroup
from tests.examples import examples
from tests.located import locate_scope
from tests.oracles.upstream_objective import ReferenceBatch, reference_loss, reference_scope
from tests.unit.strategies import (
    CLIP,
    VALUES,
    Step,
    partitions,
    scoped_reward,
    scored_group,
    scored_rollout,
    simple_group,
    steps,
    with_values,
)

LAWS = examples(80)


DRIFTS = st.sampled_from((0.0, 0.3, 1.5))
"""Spread of the log-ratio: on-policy, some tokens clipped, most clipped (also beyond the dual clip)."""
SEEDS = st.integers(0, 2**16)
# Cell of the direct oracle: weight / (N_k W), advantage, covered tokens
Cells = list[tuple[float, float, np.ndarray]]


def direct_cells(step: Step, normaliser: str = "active") -> list[list[Cells]]:
    """Per group, per rollout: every reward's factor w / (N W), advantage and token mask; plain float64 Python."""
    advantages: dict[tuple[int, int, int], float] = {}
    covered: dict[str, int] = defaultdict(int)
    active: set[str] = set()
    for g, group in enumerate(step.groups):
        names = [reward.name for reward in group.rollouts[0].rewards]
        for k, name in enumerate(names):
            values = [rollout.rewards[k].value for rollout in group.rollouts]
            given_values = [value for value in values if value is not None]
            is_varied = len(given_values) > 1 and max(given_values) - min(given_values) > 1e-6
            for i, rollout in enumerate(group.rollouts):
                value = rollout.rewards[k].value
                amount = 0.0
                if is_varied and value is not None:
                    amount = (value - statistics.fmean(given_values)) / (statistics.stdev(given_values) + 1e-6)
                advantages[g, i, k] = amount
                if amount and token_mask(rollout, [k]).any():
                    active.add(name)
        for rollout in group.rollouts:
            for name in set(names):
                judged = [
                    k for k, reward in enumerate(rollout.rewards) if reward.name == name and reward.value is not None
                ]
                covered[name] += int(token_mask(rollout, judged).sum())
    total = sum(weight for name, weight in step.weights.items() if normaliser == "all" or name in active)
    result = []
    for g, group in enumerate(step.groups):
        result.append(
            [
                [
                    (
                        step.weights[reward.name] / max(1, covered[reward.name]) / (total or 1.0),
                        advantages[g, i, k],
                        token_mask(rollout, [k]),
                    )
                    for k, reward in enumerate(rollout.rewards)
                ]
                for i, rollout in enumerate(group.rollouts)
            ]
        )
    return result


def token_mask(rollout, columns: list[int]) -> np.ndarray:
    mask = np.zeros(rollout.num_tokens, bool)
    for k in columns:
        for span in rollout.rewards[k].spans:
            mask[span.start : span.stop] = True
    return mask


def direct_loss(step: Step, logprobs: Tensor, old: Tensor, normaliser: str = "active") -> Tensor:
    """(1/W) sum_k (w_k / N_k) sum_it M_kit l(A_ik, rho_it), one reward at a time."""
    total = (logprobs * 0.0).sum()
    offset = 0
    for group in direct_cells(step, normaliser):
        for cells in group:
            for factor, advantage, mask in cells:
                part = slice(offset, offset + len(mask))
                ratio = (logprobs[part] - old[part]).exp()
                clipped = ratio.clamp(0.8, 1.28)
                if advantage >= 0:
                    per_token = -advantage * torch.minimum(ratio, clipped)
                else:
                    per_token = -advantage * torch.maximum(ratio, clipped).clamp(max=3.0)
                total = total + factor * (per_token * torch.from_numpy(mask)).sum()
            offset += len(cells[0][2])
    return total


def flat_token_weights(credited: list[CreditedGroup]) -> tuple[Tensor, Tensor]:
    rollouts = [rollout for group in credited for rollout in group.rollouts]
    return (
        torch.from_numpy(np.concatenate([rollout.positive_weights for rollout in rollouts])),
        torch.from_numpy(np.concatenate([rollout.negative_weights for rollout in rollouts])),
    )


def policies(num_tokens: int, seed: int, drift: float) -> tuple[Tensor, Tensor]:
    """Log-probabilities of the policy in training (a leaf) and of the old one, float64."""
    generator = torch.Generator().manual_seed(seed)
    old = -3.0 * torch.rand(num_tokens, generator=generator, dtype=torch.float64)
    noise = torch.randn(num_tokens, generator=generator, dtype=torch.float64)
    return (old + drift * noise).requires_grad_(), old


def gradient(loss: Tensor, logprobs: Tensor) -> Tensor:
    return torch.autograd.grad(loss, logprobs)[0]


def assert_close(actual: Tensor, expected: Tensor, relative: float, parts: Sequence[Tensor] = ()) -> None:
    """Largest difference relative to the largest entry, also of the parts that the entries are differences of."""
    largest = max(float(part.abs().max()) for part in (expected, *parts))
    assert float((actual.double() - expected.double()).abs().max()) <= relative * (largest or 1e-12)


@LAWS
@given(step=steps(), seed=SEEDS, drift=DRIFTS, normaliser=st.sampled_from(("active", "all")))
def test_law_1_two_streams_have_the_direct_formulas_gradient(
    step: Step, seed: int, drift: float, normaliser: Normaliser
):
    logprobs, old = policies(step.num_tokens, seed, drift)
    expected = gradient(direct_loss(step, logprobs, old, normaliser), logprobs)
    # The collapse into two streams, in float64: the identity itself.
    sides = []
    for sign in (1.0, -1.0):
        parts = [
            sum(factor * max(sign * advantage, 0.0) * mask for factor, advantage, mask in cells)
            for group in direct_cells(step, normaliser)
            for cells in group
        ]
        sides.append(torch.from_numpy(np.concatenate(parts)).double())
    exact = gradient(clipped_policy_loss(logprobs, old, sides[0], sides[1], **CLIP).loss, logprobs)
    assert_close(exact, expected, 1e-10, sides)
    # The library's streams are those, rounded to float32 once (half a unit in the last place: 6e-8).
    streams = flat_token_weights(credit_groups(step.groups, step.weights, CreditConfig(normaliser=normaliser)))
    # Where r is its group's mean, r - mean is 0 or a rounding of it, up to 2.2e-16 |r|, over a deviation of at least
    # 1e-6: below 1e-9 of the largest entry.
    for stream, side in zip(streams, sides, strict=True):
        largest = float(side.abs().max())
        np.testing.assert_allclose(stream.numpy(), side.numpy(), rtol=1.2e-7, atol=1e-9 * largest)
    whole = gradient(
        clipped_policy_loss(logprobs, old, streams[0].double(), streams[1].double(), **CLIP).loss, logprobs
    )
    assert_close(whole, expected, 1e-6, streams)


@LAWS
@given(step=steps(), seed=SEEDS, drift=DRIFTS)
def test_law_1_holds_in_single_precision(step: Step, seed: int, drift: float):
    check_law_1_in_single_precision(step, seed, drift)


def test_law_1_where_two_rewards_cancel_to_the_last_bits():
    # Token 0 of response 1: reward a gives 3 / (3 tokens) · 0.55 / (0.7778 + 1e-6), reward b 1 / (1 token) · -0.5 /
    # (0.7071 + 1e-6). Their difference, 9e-8, has one bit left in float32, where numbers near 0.7 are 6e-8 apart.
    first = [
        scored_rollout("g", 0, 1, [scoped_reward("a", -1.0), scoped_reward("b", 0.0)]),
        scored_rollout("g", 1, 1, [scoped_reward("a", 0.1, (0, 1)), scoped_reward("b", -1.0, (0, 1))]),
    ]
    second = [
        scored_rollout("h", 0, 2, [scoped_reward("a", 0.0, (0, 2)), scoped_reward("b", -1.0)]),
        scored_rollout("h", 1, 1, [scoped_reward("a", 0.0), scoped_reward("b", -1.0)]),
    ]
    groups = [scored_group("g", first), scored_group("h", second)]
    check_law_1_in_single_precision(Step(groups=groups, weights={"a": 3.0, "b": 1.0}), seed=0, drift=0.0)


def check_law_1_in_single_precision(step: Step, seed: int, drift: float) -> None:
    drawn, old = policies(step.num_tokens, seed, drift)
    logprobs, old = drawn.detach().float().requires_grad_(), old.float()
    streams = flat_token_weights(credit_groups(step.groups, step.weights, CreditConfig()))
    actual = gradient(clipped_policy_loss(logprobs, old, *streams, **CLIP).loss, logprobs)
    # The oracle takes the same rounded log-ratio, so that both clip the same tokens.
    leaf = (logprobs.detach() - old).double().requires_grad_()
    assert_close(actual, gradient(direct_loss(step, leaf, torch.zeros_like(leaf)), leaf), 1e-6, streams)


@LAWS
@given(data=st.data(), step=steps(), seed=SEEDS, drift=DRIFTS)
def test_law_2_gradients_do_not_depend_on_the_cut(data: st.DataObject, step: Step, seed: int, drift: float):
    logprobs, old = policies(step.num_tokens, seed, drift)
    positive_weights, negative_weights = flat_token_weights(credit_groups(step.groups, step.weights, CreditConfig()))
    whole = gradient(clipped_policy_loss(logprobs, old, positive_weights, negative_weights, **CLIP).loss, logprobs)
    places = step.places
    added = torch.zeros_like(whole)
    for batch in data.draw(partitions(step.members)):
        chosen = torch.cat([torch.arange(places[member].start, places[member].stop) for member in batch])
        part = clipped_policy_loss(
            logprobs[chosen], old[chosen], positive_weights[chosen], negative_weights[chosen], **CLIP
        )
        added += gradient(part.loss, logprobs)
    assert_close(added, whole, 1e-12)


@LAWS
@given(data=st.data(), step=steps())
def test_law_2_credit_does_not_depend_on_the_order_of_groups(data: st.DataObject, step: Step):
    expected = credit_groups(step.groups, step.weights, CreditConfig())
    by_id = {group.sample_id: group for group in expected}
    for group in credit_groups(data.draw(st.permutations(step.groups)), step.weights, CreditConfig()):
        for shuffled, ordered in zip(group.rollouts, by_id[group.sample_id].rollouts, strict=True):
            np.testing.assert_array_equal(shuffled.positive_weights, ordered.positive_weights)
            np.testing.assert_array_equal(shuffled.negative_weights, ordered.negative_weights)


@LAWS
@given(data=st.data(), seed=SEEDS, drift=DRIFTS, weight=st.sampled_from((0.5, 3.0)))
def test_law_3_one_reward_on_the_whole_response_is_grpo(data: st.DataObject, seed: int, drift: float, weight: float):
    groups, flat_advantages = [], []
    for index in range(data.draw(st.integers(1, 3))):
        values = data.draw(st.lists(st.sampled_from(VALUES), min_size=2, max_size=6))
        lengths = data.draw(st.lists(st.integers(1, 8), min_size=len(values), max_size=len(values)))
        groups.append(simple_group(f"g{index}", "all", values, lengths))
        for value, length in zip(values, lengths, strict=True):
            spread = statistics.stdev(values) + 1e-6
            flat_advantages += [(value - statistics.fmean(values)) / spread if len(set(values)) > 1 else 0.0] * length
    step = Step(groups=groups, weights={"all": weight})
    logprobs, old = policies(step.num_tokens, seed, drift)
    # GRPO with token-mean loss (DAPO), and the dual clip: the mean over all tokens of the step
    advantage = torch.tensor(flat_advantages, dtype=torch.float64)
    ratio = (logprobs - old).exp()
    surrogate = torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.28) * advantage)
    surrogate = torch.where(advantage < 0, torch.maximum(surrogate, 3.0 * advantage), surrogate)
    streams = flat_token_weights(credit_groups(groups, step.weights, CreditConfig()))
    actual = gradient(clipped_policy_loss(logprobs, old, *streams, **CLIP).loss, logprobs)
    assert_close(actual, gradient(-surrogate.mean(), logprobs), 1e-6)


@LAWS
@given(data=st.data())
def test_law_3_a_reward_split_over_sections_is_the_reward_on_the_whole(data: st.DataObject):
    # sum_s (N_s / N) A / N_s over sections s that partition each response = A / N: the weights N_s undo the means
    values = data.draw(st.lists(st.sampled_from(VALUES), min_size=2, max_size=5))
    edges = [
        sorted([0, 0, *data.draw(st.lists(st.integers(0, 9), min_size=2, max_size=2)), 9])[1:]
        for _ in values  # three sections of a response of nine tokens; some are empty
    ]
    lengths = [sum(edge[s + 1] - edge[s] for edge in edges) for s in range(3)]
    rollouts = [
        scored_rollout("g", i, 9, [scoped_reward(f"section{s}", value, (edge[s], edge[s + 1])) for s in range(3)])
        for i, (value, edge) in enumerate(zip(values, edges, strict=True))
    ]
    weights = {f"section{s}": float(length) for s, length in enumerate(lengths)}
    (split,) = credit_groups([scored_group("g", rollouts)], weights, CreditConfig(normaliser="all"))
    (whole,) = credit_groups([simple_group("g", "all", values, [9] * len(values))], {"all": 1.0}, CreditConfig())
    for of_split, of_whole in zip(split.rollouts, whole.rollouts, strict=True):
        np.testing.assert_allclose(of_split.positive_weights, of_whole.positive_weights, rtol=1e-6)
        np.testing.assert_allclose(of_split.negative_weights, of_whole.negative_weights, rtol=1e-6)


COMPARISONS = [
    {"baseline": baseline, "scale": scale}
    for baseline in ("group_mean", "leave_one_out", "batch_mean", "shrunk_mean")
    for scale in ("group_std", "batch_std", "none")
    # refused: one looks at the batch, the other at the group
    if scale != "group_std" or baseline not in ("batch_mean", "shrunk_mean")
]
CONFIGS = st.builds(
    lambda comparison, **others: CreditConfig(**comparison, **others),
    st.sampled_from(COMPARISONS),
    normaliser=st.sampled_from(("active", "all")),
    aggregation=st.sampled_from(("scope_tokens", "token_mean", "sequence_mean", "constant")),
    constant_tokens=st.just(7),
)


@LAWS
@given(data=st.data(), step=steps(), config=CONFIGS, scoping=st.sampled_from(("scoped", "whole")))
def test_law_4_permuting_a_group_permutes_its_credit(
    data: st.DataObject, step: Step, config: CreditConfig, scoping: Scoping
):
    config = dataclasses.replace(config, scoping=scoping)
    shuffled = [group.with_rollouts(data.draw(st.permutations(group.rollouts))) for group in step.groups]
    expected = {
        rollout.key: rollout for group in credit_groups(step.groups, step.weights, config) for rollout in group.rollouts
    }
    for group in credit_groups(shuffled, step.weights, config):
        for rollout in group.rollouts:
            other = expected[rollout.key]
            # the sums of a mean change their order
            np.testing.assert_allclose(rollout.advantages, other.advantages, rtol=1e-12, atol=1e-12)
            np.testing.assert_allclose(rollout.positive_weights, other.positive_weights, rtol=1e-6, atol=1e-13)
            np.testing.assert_allclose(rollout.negative_weights, other.negative_weights, rtol=1e-6, atol=1e-13)


@LAWS
@given(step=steps(), shift=st.sampled_from((-3.0, 0.1, 2.0, 100.0)), config=CONFIGS)
def test_law_4_adding_a_constant_to_a_reward_changes_nothing(step: Step, shift: float, config: CreditConfig):
    # 100 costs seven bits of the float64 values: 1e-14 absolute, over a std of at least 0.1
    moved = credit_groups([with_values(group, {"r0": shift}) for group in step.groups], step.weights, config)
    for group, other in zip(credit_groups(step.groups, step.weights, config), moved, strict=True):
        for unchanged, changed in zip(group.rollouts, other.rollouts, strict=True):
            np.testing.assert_allclose(changed.advantages, unchanged.advantages, rtol=1e-10, atol=1e-12)
            np.testing.assert_allclose(changed.positive_weights, unchanged.positive_weights, rtol=1e-6, atol=1e-12)
            np.testing.assert_allclose(changed.negative_weights, unchanged.negative_weights, rtol=1e-6, atol=1e-12)


@LAWS
@given(
    value=st.floats(-1e6, 1e6) | st.sampled_from((0.1, 0.3, 2.1, 3 * 4 / 5, 3 * 2 / 5, 1 / 3)),
    size=st.integers(2, 16),
    noise=st.sampled_from((0.0, 1e-16, -3e-16)),
    config=CONFIGS,
)
def test_law_4_a_constant_reward_gives_exactly_nothing(value: float, size: int, noise: float, config: CreditConfig):
    # also if rounding makes one of the equal values differ in its last place, and with an epsilon of 0
    values = [value] * (size - 1) + [value * (1 + noise)]
    config = dataclasses.replace(config, epsilon=0.0)
    (group,) = credit_groups([simple_group("g", "a", values, [3] * size)], {"a": 1.0}, config)
    for rollout in group.rollouts:
        assert rollout.advantages == (0.0,)
        np.testing.assert_array_equal(rollout.positive_weights, 0.0)
        np.testing.assert_array_equal(rollout.negative_weights, 0.0)


@LAWS
@given(step=steps(), seed=SEEDS, drift=DRIFTS)
def test_law_5_tokens_outside_every_scope_with_signal_have_no_gradient(step: Step, seed: int, drift: float):
    logprobs, old = policies(step.num_tokens, seed, drift)
    streams = flat_token_weights(credit_groups(step.groups, step.weights, CreditConfig()))
    actual = gradient(clipped_policy_loss(logprobs, old, *streams, **CLIP).loss, logprobs)
    inside = [
        sum((mask * bool(factor and advantage) for factor, advantage, mask in cells), np.zeros(len(cells[0][2]), bool))
        for group in direct_cells(step)
        for cells in group
    ]
    assert torch.isfinite(actual).all()
    assert not actual[~torch.from_numpy(np.concatenate(inside) > 0)].any()


PUBLIC_STEPS = steps(values=VALUES, sibling_counts=(2, 3, 4, 8), has_images=False, is_one_span=True)
"""What the public code knows: every reward has a value and one span. In groups of 2, 3, 4 and 8 its float32 mean
adds one value after the other on every CPU; in others the order depends on vector registers."""


@LAWS
@given(data=st.data(), step=PUBLIC_STEPS)
def test_law_6_reference_mode_has_the_public_gradient(data: st.DataObject, step: Step):
    batches = data.draw(partitions(step.members))
    credited = credit_groups(step.groups, step.weights, CreditConfig(compat="upstream"), batches)
    ours = {
        rollout.key: rollout.negative_weights.astype(float) - rollout.positive_weights
        for group in credited
        for rollout in group.rollouts
    }
    rollouts = [rollout for group in step.groups for rollout in group.rollouts]
    longest = max(rollout.num_tokens for rollout in rollouts)
    masks = torch.zeros(len(rollouts), len(rollouts[0].rewards), longest, dtype=torch.bool)
    for row, rollout in enumerate(rollouts):
        for column in range(len(rollout.rewards)):
            masks[row, column, : rollout.num_tokens] = torch.from_numpy(token_mask(rollout, [column]))
    # A scope without any token divides 0 by 0 in the public code; here such a reward is not there. One of weight 0 is 0
    # in every response of the public code, so that its z-scores are.
    weighs = torch.tensor([step.weights[reward.name] > 0 for reward in rollouts[0].rewards])
    present = masks.any(dim=2).any(dim=0) & weighs
    if not present.any():
        assert not any(gradients.any() for gradients in ours.values())
        return
    batch = ReferenceBatch(
        rewards=torch.tensor([[reward.value for reward in rollout.rewards] for rollout in rollouts])[:, present],
        group_ids=torch.tensor([index for index, group in enumerate(step.groups) for _ in group.rollouts]),
        scope_mask=masks[:, present],
        old_logprobs=torch.zeros(len(rollouts), longest, dtype=torch.float64),
    )
    logprobs = torch.zeros(len(rollouts), longest, dtype=torch.float64, requires_grad=True)
    rows = {member: row for row, member in enumerate(step.members)}
    cut = [[rows[member] for member in members] for members in batches]
    public = gradient(reference_loss(logprobs, batch, cut, **CLIP), logprobs)
    # A value next to its group's mean, and two rewards that nearly cancel, keep few bits of the float32 difference: the
    # rest is one rounding of values the size of the largest.
    finite = torch.cat([public[public.isfinite()], *flat_token_weights(credited)]).abs()
    rounding = 1e-12 + 2.0**-23 * float(finite.max())
    for member, row in rows.items():
        expected = public[row, : len(ours[member])].numpy()
        if np.isfinite(expected).all():
            np.testing.assert_allclose(ours[member], expected, rtol=2e-6, atol=rounding)
        else:
            np.testing.assert_array_equal(ours[member], 0.0)  # K_m = 0: the public gradient is NaN, ours nothing


@LAWS
@given(
    order=st.permutations(EVISRAG.tags),
    count=st.integers(0, len(EVISRAG.tags)),
    start=st.sampled_from(("begin", *EVISRAG.tags)),
    stop=st.sampled_from((*EVISRAG.tags, "end")),
)
def test_law_6_widening_is_the_public_fallback(order: list[str], count: int, start: str, stop: str):
    # one token a tag, one a word behind it, one for the end of sequence
    segments = [segment for tag in order[:count] for segment in (tag, "w")]
    text = "".join(segments)
    starts = np.array([len("".join(segments[:index])) for index in range(len(segments) + 1)], dtype=np.int32)
    place = {tag: 2 * index for index, tag in enumerate(order[:count])}
    located = locate_scope(ScopeConfig(start=start, stop=stop), parse_response(text), starts, "whole")
    first, end = reference_scope(place.get(start), place.get(stop), len(starts))
    assert [(span.start, span.stop) for span in located.spans] == ([(first, end)] if first < end else [])


@LAWS
@given(step=steps(), seed=SEEDS)
def test_nothing_is_ever_nan(step: Step, seed: int):
    comparisons = [
        CreditConfig(baseline=cast(Any, comparison["baseline"]), scale=cast(Any, comparison["scale"]), epsilon=0.0)
        for comparison in COMPARISONS
    ]
    whole = [dataclasses.replace(config, scoping="whole") for config in comparisons]
    for config in (*comparisons, *whole, CreditConfig(compat="upstream")):
        positive_weights, negative_weights = flat_token_weights(credit_groups(step.groups, step.weights, config))
        for stream in (positive_weights, negative_weights):
            assert torch.isfinite(stream).all()
            assert (stream >= 0).all()
        # a log-ratio of hundreds of nats must neither overflow nor make 0 * inf
        logprobs, old = policies(step.num_tokens, seed, 300.0)
        result = clipped_policy_loss(logprobs, old, positive_weights, negative_weights, **CLIP)
        assert math.isfinite(result.loss.item())
        assert torch.isfinite(gradient(result.loss, logprobs)).all()
