"""What an optimizer step measured, over all ranks."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class UpdateMetrics:
    """Numbers of one optimizer step, over all ranks.

    Attributes:
        loss: the value of the objective that was differentiated.
        grad_norm: the norm of the gradient before clipping.
        learning_rate: the learning rate that the step used.
        num_response_tokens: how many response tokens were trained.
        num_forward_tokens: how many tokens went through the language model (padding excluded).
        num_images: how many images the sequences show.
        num_micro_batches: how many micro-batches all ranks had together.
        clip_fraction: the share of credited tokens where clipping was active.
        kl_old: the mean of logprob_old - logprob_new over response tokens (0 on-policy).
        importance_weight_mean: mean truncated importance weight engine -> trainer, counted as 0 in masked responses.
        is_skipped: whether the step was not taken (non-finite gradient).
        forward_backward_seconds: seconds of the forward and backward passes on the slowest rank.
        optimizer_seconds: seconds of the optimizer step on the slowest rank.
        process_seconds: seconds of encoding prompts and waiting for the pixels of pages, on the slowest rank.
        kl_reference: the mean k3 estimate of KL(policy, reference) over response tokens, nats; 0 without a KL term.
        num_cached_images: how many of ``num_images`` had their features read instead of computed.
        masked_fraction: the share of response tokens without gradient because their response is too far off.
    """

    loss: float
    grad_norm: float
    learning_rate: float
    num_response_tokens: int
    num_forward_tokens: int
    num_images: int
    num_micro_batches: int
    clip_fraction: float
    kl_old: float
    importance_weight_mean: float
    is_skipped: bool
    forward_backward_seconds: float
    optimizer_seconds: float
    process_seconds: float
    kl_reference: float = 0.0
    num_cached_images: int = 0
    masked_fraction: float = 0.0
