"""The objective on flat vectors of response tokens: token weights with clipping, and supervised likelihood.

Every function takes ragged tokens laid end to end, [T], and returns a *sum*: the division by token counts
is already inside the token weights, so that micro-batches and ranks simply add up.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_MAX_LOG_RATIO = 20.0  # exp(20) is still a finite float32; beyond it a stale token would turn into inf and NaN


@dataclass(frozen=True, slots=True)
class PolicyLoss:
    """Result of :func:`clipped_policy_loss`.

    Attributes:
        loss: scalar float, the loss with its gradient.
        clipped: [T] bool, the credited tokens on which clipping was active.
    """

    loss: Tensor
    clipped: Tensor

    @property
    def num_clipped(self) -> int:
        """On how many tokens clipping was active."""
        return int(self.clipped.sum())


def clipped_policy_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    positive_weights: Tensor,
    negative_weights: Tensor,
    *,
    clip_low: float,
    clip_high: float,
    dual_clip: float,
    importance_weights: Tensor | None = None,
    clipping: str = "ppo",
    response_lengths: Sequence[int] | None = None,
) -> PolicyLoss:
    """Clipped policy objective of all rewards at once (RS-GRPO, arXiv 2510.09733).

    With ``rho = exp(logprobs - old_logprobs)`` and ``rhobar = clip(rho, 1 - clip_low, 1 + clip_high)``:

        ppo      sum_t -P_t min(rho_t, rhobar_t) + Q_t min(max(rho_t, rhobar_t), c)
        cispo    sum_t (Q_t - P_t) detach(rhobar_t) logprobs_t               (arXiv 2506.13585 eq. 4)

    Both per-reward losses are positively homogeneous in the advantage for each sign, so this equals the
    weighted sum over rewards exactly, however many there are.

    Args:
        logprobs: [T] float, of the sampled tokens under the policy in training, nats.
        old_logprobs: [T] float, under the policy of the batch; equal to ``logprobs`` on-policy. Detached here.
        positive_weights: [T] float, P, at least 0.
        negative_weights: [T] float, Q, at least 0.
        clip_low: the ratio is clipped below at ``1 - clip_low`` where credit is negative; 1: not at all.
        clip_high: the ratio is clipped above at ``1 + clip_high`` where credit is positive (``cispo``: both for either
            sign).
        dual_clip: c, the most that negative credit weighs; 0: no limit.
        importance_weights: [T] float, detached factors engine -> trainer; None: 1.
        clipping: ``ppo`` or ``cispo``.
        response_lengths: tokens of each response, in order: rho is then the geometric mean over the response
            with the gradient of the token's own log-probability (GSPO-token, arXiv 2507.18071 §4.3, which is
            GSPO where P and Q are the same all over a response); None: a ratio for each token.

    Returns:
        The loss, summed over tokens, and on which tokens it was clipped.

    Raises:
        ValueError: vectors of different length, which would otherwise broadcast into a wrong sum, or an unknown
            ``clipping``.

    Example:
        On-policy (ratio 1) with P = [0.5, 0] and Q = [0, 0.25]: loss = -0.5 + 0.25 = -0.25, and the
        gradient by ``logprobs`` is [-0.5, 0.25]. The gradient is the same for ``cispo``.
    """
    _check_lengths(
        logprobs=logprobs,
        old_logprobs=old_logprobs,
        positive_weights=positive_weights,
        negative_weights=negative_weights,
        importance_weights=importance_weights,
    )
    log_ratio = logprobs - old_logprobs.detach()
    if response_lengths is not None:
        log_ratio = _sequence_mean(log_ratio.detach(), response_lengths) + (logprobs - logprobs.detach())
    log_ratio = log_ratio.clamp(-_MAX_LOG_RATIO, _MAX_LOG_RATIO)
    ratio = log_ratio.exp()
    low = math.log(1.0 - clip_low) if clip_low < 1.0 else -math.inf
    clipped_ratio = log_ratio.clamp(low, math.log(1.0 + clip_high)).exp()
    limit = dual_clip or math.inf
    match clipping:
        case "ppo":
            penalty_side = torch.maximum(ratio, clipped_ratio).clamp(max=limit)
            per_token = negative_weights * penalty_side - positive_weights * torch.minimum(ratio, clipped_ratio)
            clipped = ((positive_weights > 0) & (ratio > clipped_ratio)) | (
                (negative_weights > 0) & ((ratio < clipped_ratio) | (ratio > limit))
            )
        case "cispo":
            per_token = (negative_weights - positive_weights) * clipped_ratio.detach() * logprobs
            clipped = ((positive_weights > 0) | (negative_weights > 0)) & (ratio != clipped_ratio)
        case _:
            raise ValueError(f"the clipping {clipping!r} is not known; choose ppo or cispo")
    if importance_weights is not None:
        per_token = per_token * importance_weights.detach()
    return PolicyLoss(loss=per_token.sum(), clipped=clipped)


def _sequence_mean(values: Tensor, lengths: Sequence[int]) -> Tensor:
    """[T], for every token the mean over its response; each response by itself, so that its row does not matter."""
    if sum(lengths) != len(values):
        raise ValueError(f"responses of {sum(lengths)} tokens in total were given for {len(values)} log-probabilities")
    return torch.cat([part.mean().expand(len(part)) for part in torch.split_with_sizes(values, list(lengths))])


def importance_weights(trainer_logprobs: Tensor, engine_logprobs: Tensor, cap: float) -> Tensor:
    """Truncated importance weights that correct for sampling with the engine's probabilities.

    Args:
        trainer_logprobs: [T] float, of the batch's policy as the trainer computes it.
        engine_logprobs: [T] float, as the engine sampled.
        cap: the largest weight that a token may get.

    Returns:
        [T] float, ``min(exp(trainer - engine), cap)``, detached.

    Example:
        Equal log-probabilities weigh 1; a token that the trainer finds e times likelier weighs
        ``min(2.718, cap)``.
    """
    _check_lengths(trainer_logprobs=trainer_logprobs, engine_logprobs=engine_logprobs)
    difference = (trainer_logprobs - engine_logprobs).detach().clamp(-_MAX_LOG_RATIO, _MAX_LOG_RATIO)
    return difference.exp().clamp(max=cap)


def response_mask(
    trainer_logprobs: Tensor, engine_logprobs: Tensor, response_lengths: Sequence[int], bound: float
) -> Tensor:
    """Which responses the trainer's policy still could have given: 1 for all of their tokens, 0 for those of others.

    A response is far off if the geometric mean of its tokens' ratios trainer/engine lies outside ``[1/bound, bound]``.
    The mean, and not the product, so that long responses are not judged by their length. (DeepSeek-V3.2, arXiv
    2512.02556 §3.1, masks by a like mean, but only responses with negative credit.)

    Args:
        trainer_logprobs: [T] float, nats. Detached here.
        engine_logprobs: [T] float, as the engine sampled.
        response_lengths: tokens of each response, in order.
        bound: how far off a response may be, above 1.

    Returns:
        [T] float, 0 or 1, detached.

    Raises:
        ValueError: the vectors differ in length, or the lengths of the responses do not add up to it.

    Example:
        Ratios [1.1, 1.1] and [4, 1] with ``bound=1.5``: geometric means 1.1 and 2, so the mask is [1, 1, 0, 0].
    """
    _check_lengths(trainer_logprobs=trainer_logprobs, engine_logprobs=engine_logprobs)
    mean = _sequence_mean((trainer_logprobs - engine_logprobs).detach(), response_lengths)
    return (mean.abs() <= math.log(bound)).to(mean.dtype)


def nll_loss(logprobs: Tensor, weights: Tensor) -> Tensor:
    """Weighted negative log-likelihood, ``-sum_t w_t logprob_t``.

    Args:
        logprobs: [T] float, of the target tokens, nats.
        weights: [T] float; 1/N each for a token mean over N tokens.

    Example:
        Log-probabilities [-1, -3] with weights [0.5, 0.5] give 2.
    """
    _check_lengths(logprobs=logprobs, weights=weights)
    return -(weights * logprobs).sum()


def kl_estimate(logprobs: Tensor, reference_logprobs: Tensor, estimator: str) -> Tensor:
    """Estimate KL(policy, reference) at each token that the policy sampled (J. Schulman, "Approximating KL").

    With ``d = logprobs - reference_logprobs``: ``k1 = d`` is unbiased but may be negative, ``k2 = d^2 / 2`` is
    biased and never negative, ``k3 = exp(-d) - 1 + d`` is unbiased and never negative. As a loss only k2 has
    the gradient of the KL on average; that of k1 averages to 0, that of k3 pulls towards KL(reference, policy).

    Args:
        logprobs: [T] float, of the sampled tokens, nats; carries the gradient.
        reference_logprobs: [T] float, under the frozen model. Detached here.
        estimator: ``k1``, ``k2`` or ``k3``.

    Returns:
        [T] float; weigh it by the coefficient and 1/N and add its sum to the loss.

    Raises:
        ValueError: the estimator is not known, or the vectors differ in length.

    Example:
        Probabilities 0.5 and 0.25 (d = 0.6931) give k1 = 0.6931, k2 = 0.2402, k3 = 0.5 - 1 + 0.6931 = 0.1931.
    """
    _check_lengths(logprobs=logprobs, reference_logprobs=reference_logprobs)
    difference = logprobs - reference_logprobs.detach()
    match estimator:
        case "k1":
            return difference
        case "k2":
            return 0.5 * difference.square()
        case "k3":
            return torch.expm1(-difference.clamp(-_MAX_LOG_RATIO, _MAX_LOG_RATIO)) + difference
        case _:
            raise ValueError(f"the KL estimator {estimator!r} is not known; choose k1, k2 or k3")


def adapted_kl_coefficient(coefficient: float, measured: float, target: float) -> float:
    """The KL coefficient of the next step, a proportional controller in log space (arXiv 1909.08593 §2.2).

    ``beta' = beta (1 + 0.1 clip((KL - target) / target, -0.2, 0.2))``, with the KL of a token where the paper
    has that of a response.

    Args:
        coefficient: beta of the step that was measured.
        measured: the mean KL(policy, reference) of that step, nats a token.
        target: where to steer it, above 0; 0: the coefficient stays.

    Example:
        0.05 at twice its target becomes 0.05 · 1.02 = 0.051; at no KL at all 0.05 · 0.98 = 0.049.
    """
    if not target or not math.isfinite(measured):
        return coefficient
    error = (measured - target) / target
    return coefficient * (1.0 + 0.1 * min(max(error, -0.2), 0.2))


def _check_lengths(**vectors: Tensor | None) -> None:
    shapes = {name: tuple(vector.shape) for name, vector in vectors.items() if vector is not None}
    if len(set(shapes.values())) > 1:
        raise ValueError(f"the vectors of a loss must have one entry per token, got the shapes {shapes}")
