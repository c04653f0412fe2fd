"""Packed rows without a model: what the loss needs of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from rsgrpo.model.attention.tiled_plan import tiled_plan
from rsgrpo.model.micro_batches import Segment, pack
from rsgrpo.model.policy_model import MicroBatch
from rsgrpo.types import CreditedRollout


def micro_batch(
    rollouts: Sequence[CreditedRollout],
    *,
    old_logprobs: Tensor | None = None,
    rollout_logprobs: Tensor | None = None,
    reference_logprobs: Tensor | None = None,
    kl_weights: Sequence[float] | None = None,
) -> MicroBatch:
    """A sequence of one prompt token and these responses, in float64; ``kl_weights``: one a response."""
    lengths = [rollout.num_tokens for rollout in rollouts]
    segment = Segment(
        group=0, responses=tuple(range(len(lengths))), num_prompt_tokens=1, response_lengths=tuple(lengths)
    )
    packed = pack([segment])
    positive_weights, negative_weights = (
        torch.from_numpy(np.concatenate(streams)).double()
        for streams in (
            [rollout.positive_weights for rollout in rollouts],
            [rollout.negative_weights for rollout in rollouts],
        )
    )
    empty = torch.zeros(0, dtype=torch.int64)
    return MicroBatch(
        packed=packed,
        token_ids=empty,
        positions=empty,
        plan=tiled_plan(packed, device=torch.device("cpu")),
        image_positions=empty,
        image_features=empty,
        pixel_values=None,
        image_grid_thw=None,
        predictors=empty,
        targets=empty,
        positive_weights=positive_weights,
        negative_weights=negative_weights,
        rollout_logprobs=rollout_logprobs,
        old_logprobs=old_logprobs,
        reference_logprobs=reference_logprobs,
        kl_weights=None
        if kl_weights is None
        else torch.repeat_interleave(torch.tensor(kl_weights, dtype=torch.float64), torch.tensor(lengths)),
    )
