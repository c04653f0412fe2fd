"""What one packed sequence contributes to the step's objective, and to its metrics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from rsgrpo.algorithm.losses import clipped_policy_loss, importance_weights, kl_estimate, nll_loss, response_mask
from rsgrpo.config import KlConfig, LossConfig
from rsgrpo.model.policy_model import MicroBatch


@dataclass(frozen=True, kw_only=True, slots=True)
class RankTotals:
    """Sums over one rank's sequences of an update.

    Attributes:
        loss: the sequences' share of the objective.
        num_response_tokens: how many response tokens were trained.
        num_forward_tokens: how many tokens all sequences have.
        num_images: how many pages the sequences show.
        num_clipped: on how many credited tokens clipping was active.
        num_credited: how many tokens have credit.
        kl_old_sum: the sum of old minus new log-probabilities over response tokens, in nats.
        importance_weight_sum: the sum of the truncated importance weights over response tokens.
        num_masked: how many response tokens have no gradient because their response is too far off.
        kl_reference_sum: the sum of the k3 estimates of KL(policy, reference) over response tokens with a KL term, in
            nats.
    """

    loss: float = 0.0
    num_response_tokens: int = 0
    num_forward_tokens: int = 0
    num_images: int = 0
    num_clipped: int = 0
    num_credited: int = 0
    kl_old_sum: float = 0.0
    importance_weight_sum: float = 0.0
    num_masked: int = 0
    kl_reference_sum: float = 0.0


def row_loss(batch: MicroBatch, logprobs: Tensor, objective: str, loss: LossConfig | None) -> tuple[Tensor, RankTotals]:
    """A sequence's share of the step's objective; sequences and ranks add up because the token weights carry 1/N.

    Args:
        batch: the sequence that was computed.
        logprobs: [R] float, of the sequence's response tokens, nats.
        objective: ``policy`` (rs_grpo's clipped loss) or ``nll`` (weights in ``positive_weights``).
        loss: the loss settings, for the objective ``policy``.

    Returns:
        The differentiable scalar, and the sums that metrics are made of.

    Raises:
        ValueError: the sequence has a KL term but was not scored under the reference model.
    """
    num_images = 0 if batch.image_grid_thw is None else len(batch.image_grid_thw)
    if objective == "nll":
        value = nll_loss(logprobs, batch.positive_weights)
        return value, RankTotals(
            loss=float(value.detach()),
            num_response_tokens=len(logprobs),
            num_forward_tokens=batch.packed.num_tokens,
            num_images=num_images,
            num_credited=int((batch.positive_weights > 0).sum()),
            importance_weight_sum=float(len(logprobs)),
        )
    assert loss is not None
    detached = logprobs.detach()
    uses_engine = loss.old_logprobs == "engine" and batch.rollout_logprobs is not None
    old = batch.rollout_logprobs if uses_engine else batch.old_logprobs
    old = detached if old is None else old
    weights: Tensor | None = None
    if loss.importance_cap > 0 and batch.rollout_logprobs is not None and not uses_engine:
        weights = importance_weights(old, batch.rollout_logprobs, loss.importance_cap)
    num_masked = 0
    if loss.response_ratio_bound > 0 and batch.rollout_logprobs is not None:
        own = detached if uses_engine else old
        kept = response_mask(own, batch.rollout_logprobs, batch.packed.response_lengths, loss.response_ratio_bound)
        weights = kept if weights is None else weights * kept
        num_masked = int((kept == 0).sum())
    result = clipped_policy_loss(
        logprobs,
        old,
        batch.positive_weights,
        batch.negative_weights,
        clip_low=loss.clip_low,
        clip_high=loss.clip_high,
        dual_clip=loss.dual_clip,
        importance_weights=weights,
        clipping=loss.clipping,
        response_lengths=batch.packed.response_lengths if loss.ratio == "sequence" else None,
    )
    kl_term, kl_sum = _kl_term(batch, logprobs, loss.kl)
    value = result.loss if kl_term is None else result.loss + kl_term
    return value, RankTotals(
        loss=float(value.detach()),
        num_response_tokens=len(logprobs),
        num_forward_tokens=batch.packed.num_tokens,
        num_images=num_images,
        num_clipped=int(result.num_clipped),
        num_credited=int(((batch.positive_weights > 0) | (batch.negative_weights > 0)).sum()),
        kl_old_sum=float((old - detached).sum()),
        importance_weight_sum=float(len(logprobs) if weights is None else weights.sum()),
        num_masked=num_masked,
        kl_reference_sum=kl_sum,
    )


def _kl_term(batch: MicroBatch, logprobs: Tensor, config: KlConfig) -> tuple[Tensor | None, float]:
    """The weighted KL estimates of a sequence, and the sum of their k3 values; None and 0 where it has no KL term."""
    if batch.kl_weights is None:
        return None, 0.0
    reference = batch.reference_logprobs
    if reference is None:
        raise ValueError(
            "a row has weights of the KL term but no reference_logprobs; the worker must score it under the "
            "reference model first, or set rl.loss.kl.coefficient=0"
        )
    term = (batch.kl_weights * kl_estimate(logprobs, reference, config.estimator)).sum()
    return term, float(kl_estimate(logprobs.detach(), reference, "k3").sum())


def sum_totals(totals: Sequence[RankTotals]) -> RankTotals:
    """Add up the totals of several ranks or sequences, field by field."""
    return RankTotals(
        loss=sum(total.loss for total in totals),
        num_response_tokens=sum(total.num_response_tokens for total in totals),
        num_forward_tokens=sum(total.num_forward_tokens for total in totals),
        num_images=sum(total.num_images for total in totals),
        num_clipped=sum(total.num_clipped for total in totals),
        num_credited=sum(total.num_credited for total in totals),
        kl_old_sum=sum(total.kl_old_sum for total in totals),
        importance_weight_sum=sum(total.importance_weight_sum for total in totals),
        num_masked=sum(total.num_masked for total in totals),
        kl_reference_sum=sum(total.kl_reference_sum for total in totals),
    )
