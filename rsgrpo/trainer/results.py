"""What the ranks report of an update, put together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from rsgrpo.algorithm.update_metrics import UpdateMetrics
from rsgrpo.model.micro_batches import Segment
from rsgrpo.trainer.objective import RankTotals
from rsgrpo.types import FloatArray, ResponseStats, TrainingGroup


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class UpdateResult:
    """What an update returns: numbers, and per-token statistics for telemetry."""

    metrics: UpdateMetrics
    responses: tuple[ResponseStats, ...]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class RankPass:
    """What one rank reports of the forward and backward passes of an update.

    Attributes:
        totals: the sums over the rank's sequences.
        responses: the statistics of its responses.
        forward_backward_seconds: the seconds of its forward and backward passes.
        process_seconds: the seconds that it spent on encoding, planning and waiting for pages.
        num_cached_images: how many pages' features were read from the cache.
    """

    totals: RankTotals
    responses: tuple[ResponseStats, ...]
    forward_backward_seconds: float
    process_seconds: float
    num_cached_images: int


@dataclass(frozen=True, kw_only=True, slots=True)
class RankStep:
    """What one rank reports of the optimizer step that follows.

    Attributes:
        grad_norm: the norm of the gradient over all ranks, before clipping.
        learning_rate: the learning rate that the step used.
        is_skipped: whether the step was skipped.
        num_skipped_in_row: how many steps in a row were skipped up to now.
        optimizer_seconds: the seconds that the rank's step took.
    """

    grad_norm: float
    learning_rate: float
    is_skipped: bool
    num_skipped_in_row: int
    optimizer_seconds: float


def response_stats(
    segments: Sequence[Segment], groups: Sequence[TrainingGroup], logprobs: Tensor, entropy: Tensor | None
) -> list[ResponseStats]:
    """A sequence's log-probabilities and, where computed, entropies, response by response.

    Args:
        segments: the segments of the sequence.
        groups: the groups that the segments number.
        logprobs: [R] float, of the sequence's response tokens, nats.
        entropy: [R] float, the entropy before each response token, nats; None where it was not computed.
    """
    lengths = [length for segment in segments for length in segment.response_lengths]
    ends = np.cumsum(lengths)[:-1]

    def parts(values: Tensor) -> list[FloatArray]:
        return [part.copy() for part in np.split(values.detach().float().cpu().numpy(), ends)]

    owners = [(groups[segment.group], i) for segment in segments for i in segment.responses]
    return [
        ResponseStats(
            sample_id=group.sample_id,
            response_index=group.responses[i].response_index,
            logprobs=own_logprobs,
            entropy=own_entropy,
        )
        for (group, i), own_logprobs, own_entropy in zip(
            owners,
            parts(logprobs),
            [None] * len(lengths) if entropy is None else parts(entropy),
            strict=True,
        )
    ]


def in_order(groups: Sequence[TrainingGroup], stats: Sequence[ResponseStats]) -> tuple[ResponseStats, ...]:
    """Statistics in the order in which the responses were given.

    Args:
        groups: the groups of the whole step.
        stats: the records of all ranks, in any order.

    Raises:
        ValueError: a response stands twice in the step.
    """
    found = {stat.key: stat for stat in stats}
    keys = [key for group in groups for key in group.keys]
    if len(found) != len(keys):
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"sample {twice[0]!r} response {twice[1]} stands twice in one step; give every response once")
    return tuple(found[key] for key in keys)


def update_metrics(passes: Sequence[RankPass], steps: Sequence[RankStep], num_micro_batches: int) -> UpdateMetrics:
    """Numbers of a step from those of its ranks.

    Args:
        passes: what each rank reports of its passes, in order of the ranks.
        steps: what each rank reports of its step, in order of the ranks.
        num_micro_batches: how many micro-batches all ranks planned together.
    """
    totals = [rank.totals for rank in passes]
    num_tokens = sum(total.num_response_tokens for total in totals)
    num_credited = sum(total.num_credited for total in totals)
    return UpdateMetrics(
        loss=sum(total.loss for total in totals),
        grad_norm=steps[0].grad_norm,
        learning_rate=steps[0].learning_rate,
        num_response_tokens=num_tokens,
        num_forward_tokens=sum(total.num_forward_tokens for total in totals),
        num_images=sum(total.num_images for total in totals),
        num_micro_batches=num_micro_batches,
        clip_fraction=sum(total.num_clipped for total in totals) / max(1, num_credited),
        kl_old=sum(total.kl_old_sum for total in totals) / max(1, num_tokens),
        importance_weight_mean=sum(total.importance_weight_sum for total in totals) / max(1, num_tokens),
        masked_fraction=sum(total.num_masked for total in totals) / max(1, num_tokens),
        kl_reference=sum(total.kl_reference_sum for total in totals) / max(1, num_tokens),
        is_skipped=steps[0].is_skipped,
        forward_backward_seconds=max(rank.forward_backward_seconds for rank in passes),
        optimizer_seconds=max(rank.optimizer_seconds for rank in steps),
        process_seconds=max(rank.process_seconds for rank in passes),
        num_cached_images=sum(rank.num_cached_images for rank in passes),
    )
