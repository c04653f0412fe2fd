"""What one packed row contributes to the step's objective, and to its metrics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from rsgrpo.config import LossConfig
from rsgrpo.losses import importance_weights, nll_loss, two_stream_loss
from rsgrpo.policy_model import MicroBatch


@dataclass(frozen=True, kw_only=True, slots=True)
class RankTotals:
    """Sums over one rank's rows of an update.

    Attributes:
        loss: this rank's share of the objective.
        num_response_tokens: trained tokens.
        num_forward_tokens: tokens of all rows.
        num_images: pages through the vision tower.
        num_clipped: credited tokens where clipping was active.
        num_credited: tokens with credit.
        kl_old_sum: sum of old minus new log-probabilities.
        importance_weight_sum: over response tokens.
    """

    loss: float = 0.0
    num_response_tokens: int = 0
    num_forward_tokens: int = 0
    num_images: int = 0
    num_clipped: int = 0
    num_credited: int = 0
    kl_old_sum: float = 0.0
    importance_weight_sum: float = 0.0


def row_loss(batch: MicroBatch, logprobs: Tensor, objective: str, loss: LossConfig | None) -> tuple[Tensor, RankTotals]:
    """A row's share of the step's objective; rows and ranks add up because the streams carry 1/N.

    Args:
        batch: the row.
        logprobs: [R], of the row's response tokens.
        objective: ``policy`` (rs_grpo's clipped two-stream loss) or ``nll`` (weights in ``positive``).
        loss: for ``policy``.

    Returns:
        The differentiable scalar, and sums for the metrics.
    """
    num_images = 0 if batch.image_grid_thw is None else len(batch.image_grid_thw)
    if objective == "nll":
        value = nll_loss(logprobs, batch.positive)
        return value, RankTotals(
            loss=float(value.detach()),
            num_response_tokens=len(logprobs),
            num_forward_tokens=batch.row.num_tokens,
            num_images=num_images,
            num_credited=int((batch.positive > 0).sum()),
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
    result = two_stream_loss(
        logprobs,
        old,
        batch.positive,
        batch.negative,
        clip_low=loss.clip_low,
        clip_high=loss.clip_high,
        dual_clip=loss.dual_clip,
        importance_weights=weights,
        clipping="cispo" if loss.clipping == "cispo" else "ppo",
        response_lengths=batch.row.response_lengths if loss.ratio == "sequence" else None,
    )
    return result.loss, RankTotals(
        loss=float(result.loss.detach()),
        num_response_tokens=len(logprobs),
        num_forward_tokens=batch.row.num_tokens,
        num_images=num_images,
        num_clipped=int(result.num_clipped),
        num_credited=int(((batch.positive > 0) | (batch.negative > 0)).sum()),
        kl_old_sum=float((old - detached).sum()),
        importance_weight_sum=float(len(logprobs) if weights is None else weights.sum()),
    )


def sum_totals(totals: Sequence[RankTotals]) -> RankTotals:
    """Field by field."""
    return RankTotals(
        loss=sum(one.loss for one in totals),
        num_response_tokens=sum(one.num_response_tokens for one in totals),
        num_forward_tokens=sum(one.num_forward_tokens for one in totals),
        num_images=sum(one.num_images for one in totals),
        num_clipped=sum(one.num_clipped for one in totals),
        num_credited=sum(one.num_credited for one in totals),
        kl_old_sum=sum(one.kl_old_sum for one in totals),
        importance_weight_sum=sum(one.importance_weight_sum for one in totals),
    )
