"""The public EVisRAG implementation's objective, written out: what ``compat: upstream`` must agree with.

Rewards are columns of one dense matrix, scopes dense masks, and every formula keeps the public code's order
of operations, because its defects live there. Nothing of the training uses this module; it is the oracle for
law 6 of rs_grpo, and lets a reader compare the two objectives on their own batch.

Its known defects, kept: no test for groups without variance (D5); K_m depends on how the step is cut into micro-batches
(D2); a micro-batch without any loss divides 0 by 0 (D3), and so does a scope that is empty in the whole batch
(D6); reward weights cancel in the z-scores (D4).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class ReferenceBatch:
    """One mini-batch of B rollouts, T padded tokens and J rewards.

    Attributes:
        rewards: [B, J] float.
        group_ids: [B] int, which prompt a rollout answers.
        scope_mask: [B, J, T] bool, the tokens of each reward's scope; False on padding.
        old_logprobs: [B, T] float, nats.
    """

    rewards: Tensor
    group_ids: Tensor
    scope_mask: Tensor
    old_logprobs: Tensor


def reference_scope(start: int | None, stop: int | None, num_tokens: int) -> tuple[int, int]:
    """The public fallback: an absent start tag means the beginning, an absent stop tag the end.

    Args:
        start: the first token of the start tag; None if it was not found.
        stop: the first token of the stop tag; None if it was not found.
        num_tokens: length of the response, end of sequence included.

    Returns:
        Half-open range; empty where the tags stand in reversed order.

    Example:
        Start tag at 12, no stop tag, 40 tokens: ``(12, 40)``. Neither tag: ``(0, 40)``.
    """
    first = 0 if start is None else start
    end = num_tokens if stop is None else stop
    return first, max(first, end)


def reference_keeps_group(totals: Sequence[float], low: float = 0.01, high: float = 6.9) -> bool:
    """The public filter: the mean of the siblings' summed rewards lies strictly inside (low, high).

    Example:
        Sums 0 and 7 have mean 3.5 and stay; eight times 7 have mean 7 and go.
    """
    return low < sum(totals) / len(totals) < high


def reference_advantages(rewards: Tensor, group_ids: Tensor, epsilon: float = 1.0e-6) -> Tensor:
    """Z-scores by reward and group, in float32: ``A_ij = (r_ij - mean) / (std + eps)``, unbiased std.

    Args:
        rewards: [B, J] float.
        group_ids: [B] int; every group has at least two members.
        epsilon: added to the std.

    Returns:
        [B, J] float32.

    Example:
        Rewards 1 and 0 of one group give +0.7071 and -0.7071; eight times 2.1 give -0.19 each, because the
        float32 mean is one rounding off.
    """
    rewards = rewards.float()
    result = torch.zeros_like(rewards)
    for group in sorted(set(group_ids.tolist())):
        members = (group_ids == group).nonzero().flatten()
        for reward in range(rewards.shape[1]):
            values = rewards[members, reward].contiguous()
            result[members, reward] = (values - values.mean()) / (values.std() + epsilon)
    return result


def reference_token_losses(
    log_ratio: Tensor, advantage: Tensor, *, clip_low: float, clip_high: float, dual_clip: float
) -> Tensor:
    """The public per-token loss of one reward: PPO's clip, and the dual clip for negative advantages.

    Args:
        log_ratio: [..., T] float, new minus old log-probability.
        advantage: [..., 1] float.
        clip_low: lower clip, as ``1 - clip_low``.
        clip_high: upper clip, as ``1 + clip_high``.
        dual_clip: cap of the ratio for negative advantages.

    Returns:
        [..., T]: ``max(-A rho, -A rhobar)`` for ``A >= 0``, else ``min(max(-A rho, -A rhobar), -c A)``.

    Example:
        A = -1 at ratio 4: max(4, 1.28) = 4, capped at 3.
    """
    log_ratio = log_ratio.clamp(-20.0, 20.0)
    ratio = log_ratio.exp()
    clipped = log_ratio.clamp(math.log(1.0 - clip_low), math.log(1.0 + clip_high)).exp()
    upper = torch.maximum(-advantage * ratio, -advantage * clipped)
    capped = torch.minimum(upper, -advantage * dual_clip)
    return torch.where(advantage < 0, capped, upper)


def reference_loss(
    logprobs: Tensor,
    batch: ReferenceBatch,
    micro_batches: Sequence[Sequence[int]],
    *,
    clip_low: float,
    clip_high: float,
    dual_clip: float,
    epsilon: float = 1.0e-6,
) -> Tensor:
    """The scalar whose gradient the public implementation takes, over all ranks and micro-batches.

    ``sum_m (1/K_m) sum_j L_mj n_mj / N_j`` with L_mj the token mean of reward j in micro-batch m over its
    n_mj tokens, N_j these tokens over the mini-batch, and ``K_m = #{j: L_mj != 0}``, an exact test. (Each
    rank multiplies by the number of ranks and the gradient average divides by it: they cancel.)

    Args:
        logprobs: [B, T] float, of the policy in training.
        batch: rewards, groups, scopes, and the old policy.
        micro_batches: indexes into the batch; ranks and micro-batches alike.
        clip_low: see :func:`reference_token_losses`.
        clip_high: see there.
        dual_clip: see there.
        epsilon: see :func:`reference_advantages`.

    Returns:
        A scalar; NaN where the public code makes NaN (a scope without any token, a micro-batch without loss).

    Example:
        Two rollouts of 4 tokens in one micro-batch, one reward 1 and 0 on all tokens, ratio 1: L = 0 by
        symmetry, so K = 0 and the public code yields NaN although a gradient exists.
    """
    advantages = reference_advantages(batch.rewards, batch.group_ids, epsilon).to(logprobs.dtype)
    losses = reference_token_losses(
        (logprobs - batch.old_logprobs.detach())[:, None, :],
        advantages[:, :, None],
        clip_low=clip_low,
        clip_high=clip_high,
        dual_clip=dual_clip,
    )
    mask = batch.scope_mask.to(logprobs.dtype)
    num_tokens = mask.sum(dim=(0, 2))  # [J], N_j
    total = logprobs.new_zeros(())
    for members in micro_batches:
        inside = mask[list(members)]
        inside_tokens = inside.sum(dim=(0, 2))  # [J], n_mj
        means = (inside * losses[list(members)]).sum(dim=(0, 2)) / (inside_tokens + 1.0e-8)
        num_active = (means.detach() != 0.0).sum()
        total = total + (means * inside_tokens / num_tokens).sum() / num_active
    return total
