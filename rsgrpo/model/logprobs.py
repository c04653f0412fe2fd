"""Log-probabilities and entropy of response tokens, without ever holding all logits.

The shift between a position and the token that it predicts is made once, by
``batching.predictor_index``: row ``t`` here is the hidden state that predicts target ``t``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rsgrpo.model.memory_bounds import BLOCK_WEIGHTS, CHUNK_LOGITS
from rsgrpo.model.suppressed_tokens import SUPPRESSION_BIAS


def _kind(tensor: Tensor) -> str:
    return "cpu" if tensor.device.type == "cpu" else "gpu"


def _blocks(weight: Tensor) -> Iterator[slice]:
    """Give the words of the vocabulary, so many at a time that float32 copies of their weights stay small."""
    size = max(1, BLOCK_WEIGHTS[_kind(weight)] // weight.shape[1])
    return (slice(start, start + size) for start in range(0, len(weight), size))


def _product(left: Tensor, right: Tensor) -> Tensor:
    """``left @ right`` of two matrices in float32: bfloat16 operands are multiplied exactly, and no sum is rounded."""
    if left.dtype != torch.bfloat16:
        return (left @ right).float()
    if _kind(left) == "gpu":
        return torch.mm(left, right, out_dtype=torch.float32)
    return left.float() @ right.float()


def _logits(hidden: Tensor, weight: Tensor) -> Tensor:
    """[T, V] float32: a GPU's product reads bfloat16 as it is, a CPU's needs float32 copies, block by block."""
    if hidden.dtype != torch.bfloat16 or _kind(hidden) == "gpu":
        return _product(hidden, weight.T)
    logits = hidden.new_empty(len(hidden), len(weight), dtype=torch.float32)
    for block in _blocks(weight):
        logits[:, block] = _product(hidden, weight[block].T)
    return logits


def _grad_states(grad_logits: Tensor, weight: Tensor) -> Tensor:
    """[T, H] of the weight's precision, summed over the vocabulary in float32 and rounded once."""
    if grad_logits.dtype != torch.bfloat16 or _kind(weight) == "gpu":
        return grad_logits @ weight  # a GPU sums bfloat16 products in float32
    total = grad_logits.new_zeros(len(grad_logits), weight.shape[1], dtype=torch.float32)
    for block in _blocks(weight):
        total += _product(grad_logits[:, block], weight[block])
    return total.to(weight.dtype)


def _chunk_logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, temperatures: Tensor | None) -> Tensor:
    """[T, V] float32 of one chunk, in memory of its own.

    Engines keep the head's product in float32 as well: rounded to bfloat16, logits of size 16 are 0.06 apart.
    """
    logits = _logits(hidden, weight)
    if temperatures is not None:
        # In float32, as engines do: in bfloat16 a temperature of 0.6 is 0.6016, and the states would be rounded again.
        logits /= temperatures[:, None]
    if bias is not None:
        logits += bias
    return logits


class _ResponseLogprobs(torch.autograd.Function):
    """Chunked forward; the backward pass computes each chunk's logits once more, but not their normaliser."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        temperatures: Tensor | None,
        targets: Tensor,
        chunk_tokens: int,
        with_entropy: bool,
    ) -> tuple[Tensor, Tensor | None]:
        logprobs = hidden.new_empty(len(hidden), dtype=torch.float32)
        normaliser = torch.empty_like(logprobs)
        entropy = torch.empty_like(logprobs) if with_entropy else None
        for start in range(0, len(hidden), chunk_tokens):
            part = slice(start, start + chunk_tokens)
            logits = _chunk_logits(hidden[part], weight, bias, None if temperatures is None else temperatures[part])
            normaliser[part] = torch.logsumexp(logits, dim=-1)
            logprobs[part] = logits.gather(-1, targets[part, None])[:, 0] - normaliser[part]
            if entropy is not None:
                logits.sub_(normaliser[part, None])
                # H = -sum p log p
                entropy[part] = -torch.einsum("tv,tv->t", torch.exp(logits), logits)
        ctx.save_for_backward(hidden, weight, bias, temperatures, targets, normaliser)
        ctx.chunk_tokens = chunk_tokens
        if entropy is not None:
            ctx.mark_non_differentiable(entropy)
        return logprobs, entropy

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, temperatures, targets, normaliser = ctx.saved_tensors
        upstream = grads[0]
        grad_hidden = torch.empty_like(hidden)
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        for start in range(0, len(hidden), ctx.chunk_tokens):
            part = slice(start, start + ctx.chunk_tokens)
            logits = _chunk_logits(hidden[part], weight, bias, None if temperatures is None else temperatures[part])
            # d logprob / d logits = onehot(target) - p
            grad_logits = logits.sub_(normaliser[part, None]).exp_().mul_(-upstream[part, None])
            grad_logits.scatter_add_(-1, targets[part, None], upstream[part, None])
            if temperatures is not None:
                grad_logits /= temperatures[part, None]
            grad_logits = grad_logits.to(hidden.dtype)
            grad_hidden[part] = _grad_states(grad_logits, weight)
            if grad_weight is None:
                continue
            if grad_weight.dtype == hidden.dtype:
                grad_weight.addmm_(grad_logits.T, hidden[part])
                continue
            for block in _blocks(weight):
                grad_weight[block] += _product(grad_logits[:, block].T, hidden[part])
        whole = None if grad_weight is None else grad_weight.to(weight.dtype)
        return grad_hidden, whole, None, None, None, None, None


class LogprobHead(nn.Linear):
    """The language-model head, with a second way to call it that returns log-probabilities of targets.

    It takes the place of ``model.lm_head`` and keeps its parameter, so checkpoints and tied embeddings
    are as before, and ZeRO 3 gathers the weight for the length of the call.

    Args:
        head: the head that it replaces.
        suppressed_ids: tokens that no response contains; see :mod:`rsgrpo.model.suppressed_tokens`.
    """

    suppressed_bias: Tensor | None

    def __init__(self, head: nn.Linear, suppressed_ids: Sequence[int] = ()) -> None:
        super().__init__(head.in_features, head.out_features, bias=False, device="meta")
        self.weight = head.weight
        bias = None
        if suppressed_ids:
            bias = torch.zeros(head.out_features)
            bias[list(suppressed_ids)] = SUPPRESSION_BIAS
        self.register_buffer("suppressed_bias", bias, persistent=False)

    def forward(
        self,
        hidden: Tensor,
        targets: Tensor | None = None,
        temperatures: Tensor | None = None,
        *,
        with_entropy: bool = False,
    ) -> Any:
        """Logits as usual, or what :func:`response_logprobs` gives where there are targets."""
        if targets is None:
            return super().forward(hidden)
        return response_logprobs(
            hidden,
            self.weight,
            targets,
            bias=self.suppressed_bias,
            temperatures=temperatures,
            with_entropy=with_entropy,
        )


def response_logprobs(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    temperatures: Tensor | None = None,
    chunk_tokens: int = 0,
    with_entropy: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """``log softmax(hidden @ weight.T / temperature + bias)[target]``, and the distribution's entropy if asked for.

    Args:
        hidden: [T, H], of which row t predicts target t.
        weight: [V, H] of the language-model head, in the precision of ``hidden``; products are summed and kept in
            float32.
        targets: [T] int64 token ids.
        bias: [V] float32, constant; None: 0.
        temperatures: [T] float32, above 0, constant; None: 1.
        chunk_tokens: rows computed at a time; 0: as many as keep the logits below 256 MiB (GPU) or 64 MiB (CPU).
        with_entropy: whether the entropy is computed too: three more passes over the logits.

    Returns:
        Log-probabilities [T] float32 in nats, differentiable, and entropy [T] float32 in nats, for
        telemetry only (no gradient), or None.

    Example:
        Zero hidden states over a vocabulary of 4: every log-probability is ``-log 4 = -1.386``,
        every entropy ``1.386``.
    """
    chunk = chunk_tokens or max(1, CHUNK_LOGITS[_kind(hidden)] // len(weight))
    apply: Any = _ResponseLogprobs.apply
    logprobs, entropy = apply(hidden, weight, bias, temperatures, targets, chunk, with_entropy)
    return logprobs, entropy
