"""FlashAttention over ragged sequences (CUDA, bfloat16): flash-attn's kernel if it loads, else torch's own."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rsgrpo.model.micro_batches import PackedSequence


@dataclass(frozen=True, slots=True)
class VarlenPlan:
    """Index tensors of the FlashAttention backend.

    Attributes:
        key_index: [K] int64, packed position of every key: for a response, its prompt and then itself.
        own_index: [T] int64, where in ``key_index`` each packed position stands as part of its own segment.
        copies: for every response the first packed position of its prompt, the place in ``key_index`` at which the
            response's copy of it starts, and the prompt's length.
        query_offsets: [sequences + 1] int32, where each sequence's queries start in the packed sequence.
        key_offsets: [sequences + 1] int32, where each sequence's keys start in ``key_index``.
        max_queries: the length of the longest sequence of queries.
        max_keys: the length of the longest sequence of keys.
    """

    key_index: Tensor
    own_index: Tensor
    copies: tuple[tuple[int, int, int], ...]
    query_offsets: Tensor
    key_offsets: Tensor
    max_queries: int
    max_keys: int


def varlen_plan(packed: PackedSequence, *, device: torch.device) -> VarlenPlan:
    """Index tensors for a sequence, for FlashAttention over ragged sequences.

    Args:
        packed: the packed sequence, which says where everything stands.
        device: the device that the model is on.
    """
    keys: list[np.ndarray[Any, Any]] = []
    query_lengths: list[int] = []
    own: list[np.ndarray[Any, Any]] = []
    copies: list[tuple[int, int, int]] = []
    response, num_keys = 0, 0
    for start, segment in zip(packed.prompt_starts, packed.segments, strict=True):
        num_prompt = segment.num_prompt_tokens
        prompt = np.arange(start, start + num_prompt)
        keys.append(prompt)
        query_lengths.append(num_prompt)
        own.append(np.arange(num_keys, num_keys + num_prompt))
        num_keys += num_prompt
        for length in segment.response_lengths:
            first = packed.response_starts[response]
            keys.append(np.concatenate([prompt, np.arange(first, first + length)]))
            query_lengths.append(length)
            copies.append((start, num_keys, num_prompt))
            own.append(np.arange(num_keys + num_prompt, num_keys + num_prompt + length))
            num_keys += num_prompt + length
            response += 1
    key_lengths = [len(part) for part in keys]
    return VarlenPlan(
        key_index=torch.from_numpy(np.concatenate(keys)).to(device),
        own_index=torch.from_numpy(np.concatenate(own)).to(device),
        copies=tuple(copies),
        query_offsets=torch.tensor([0, *np.cumsum(query_lengths)], dtype=torch.int32, device=device),
        key_offsets=torch.tensor([0, *np.cumsum(key_lengths)], dtype=torch.int32, device=device),
        max_queries=max(query_lengths),
        max_keys=max(key_lengths),
    )


class _RepeatPrompts(torch.autograd.Function):
    """Repeat a sequence's prompts as keys of all sequences; a prompt's gradient is the sum over its copies.

    The backward pass of ``index_select`` would add the copies up in the keys' own precision and, on a GPU, in
    whatever order its threads come. Here they are added in float32, one after the other in the sequence's order, and
    the sum is rounded once.
    """

    @staticmethod
    def forward(ctx: Any, packed: Tensor, plan: VarlenPlan) -> Tensor:
        ctx.plan = plan
        return packed.index_select(0, plan.key_index)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        plan: VarlenPlan = ctx.plan
        grad = grads[0]
        total = grad.index_select(0, plan.own_index).to(torch.promote_types(grad.dtype, torch.float32))
        for start, copied, length in plan.copies:
            total[start : start + length] += grad[copied : copied + length]
        return total.to(grad.dtype), None


@functools.cache
def _flash_attn_kernel() -> Any:
    """The kernel of the package flash-attn; None where it is not installed, or was built for another torch."""
    try:
        from flash_attn import flash_attn_varlen_func
    except ImportError:
        return None
    return flash_attn_varlen_func


def flash_kernel_name() -> str:
    """Whose kernel computes FlashAttention here: ``flash-attn`` or ``torch``."""
    return "torch" if _flash_attn_kernel() is None else "flash-attn"


def flash_sequences(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    offsets: tuple[Tensor, Tensor],
    longest: tuple[int, int],
    scaling: float,
    *,
    is_causal: bool,
) -> Tensor:
    """FlashAttention over sequences that stand side by side.

    Args:
        query: [queries, heads, D].
        key: [keys, key heads, D].
        value: [keys, key heads, D].
        offsets: [sequences + 1] int32 each, where every sequence's queries and keys start.
        longest: the length of the longest sequence of queries, and of the longest of keys.
        scaling: the factor of the scores.
        is_causal: whether a sequence's last query sees all of its keys, the one before all but the last, and so on.

    Returns:
        [queries, heads, D] in the precision of ``query``.
    """
    kernel = _flash_attn_kernel()
    if kernel is not None:
        out = kernel(query, key, value, *offsets, *longest, softmax_scale=scaling, causal=is_causal)
    else:
        from torch.nn.attention.varlen import varlen_attn

        options: dict[str, Any] = {"window_size": (-1, 0), "enable_gqa": True} if is_causal else {}
        out = varlen_attn(query, key, value, *offsets, *longest, scale=scaling, **options)
    assert isinstance(out, Tensor)
    return out


def varlen_attention(query: Tensor, key: Tensor, value: Tensor, plan: VarlenPlan, scaling: float) -> Tensor:
    """Attention over a packed sequence; causal from the end, so that a response's queries see its whole prompt.

    Args:
        query: [T, query heads, D].
        key: [T, key heads, D].
        value: [T, key heads, D].
        plan: the plan, which says who attends to whom.
        scaling: the factor of the scores.

    Returns:
        [T, query heads, D] in the precision of ``query``.
    """
    keys: Tensor = _RepeatPrompts.apply(key, plan)  # type: ignore[no-untyped-call]
    values: Tensor = _RepeatPrompts.apply(value, plan)  # type: ignore[no-untyped-call]
    return flash_sequences(
        query.contiguous(),
        keys,
        values,
        (plan.query_offsets, plan.key_offsets),
        (plan.max_queries, plan.max_keys),
        scaling,
        is_causal=True,
    )
