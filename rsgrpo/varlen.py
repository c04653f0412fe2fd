"""FlashAttention over ragged sequences, with torch's own ``varlen_attn`` (CUDA, bfloat16)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rsgrpo.batching import PackedRow

# transformers hands window boundaries only to functions that have "flash" in their name.
VISION_ATTENTION_NAME = "rsgrpo_flash_windows"


@dataclass(frozen=True, slots=True)
class VarlenPlan:
    """Index tensors of the FlashAttention door.

    Attributes:
        key_index: [K] int64, row position of every key: for a response, its prompt and then itself.
        query_offsets: [sequences + 1] int32, where each sequence's queries start in the row.
        key_offsets: [sequences + 1] int32, where each sequence's keys start in ``key_index``.
        max_queries: longest sequence of queries.
        max_keys: longest sequence of keys.
    """

    key_index: Tensor
    query_offsets: Tensor
    key_offsets: Tensor
    max_queries: int
    max_keys: int


def varlen_plan(row: PackedRow, *, device: torch.device) -> VarlenPlan:
    """Index tensors for a row, for FlashAttention over ragged sequences.

    Args:
        row: where everything stands.
        device: where the model is.
    """
    keys: list[np.ndarray[Any, Any]] = []
    query_lengths: list[int] = []
    response = 0
    for start, piece in zip(row.prompt_starts, row.pieces, strict=True):
        prompt = np.arange(start, start + piece.num_prompt_tokens)
        keys.append(prompt)
        query_lengths.append(len(prompt))
        for length in piece.response_lengths:
            first = row.response_starts[response]
            keys.append(np.concatenate([prompt, np.arange(first, first + length)]))
            query_lengths.append(length)
            response += 1
    key_lengths = [len(part) for part in keys]
    return VarlenPlan(
        key_index=torch.from_numpy(np.concatenate(keys)).to(device),
        query_offsets=torch.tensor([0, *np.cumsum(query_lengths)], dtype=torch.int32, device=device),
        key_offsets=torch.tensor([0, *np.cumsum(key_lengths)], dtype=torch.int32, device=device),
        max_queries=max(query_lengths),
        max_keys=max(key_lengths),
    )


def varlen_attention(query: Tensor, key: Tensor, value: Tensor, plan: VarlenPlan, scaling: float) -> Tensor:
    """Attention over a packed row; causal from the end, so that a response's queries see its whole prompt.

    Args:
        query: [T, query heads, D].
        key: [T, key heads, D].
        value: [T, key heads, D].
        plan: who attends to whom.
        scaling: factor of the scores.

    Returns:
        [T, query heads, D].
    """
    from torch.nn.attention.varlen import varlen_attn

    out = varlen_attn(
        query.contiguous(),
        key.index_select(0, plan.key_index),
        value.index_select(0, plan.key_index),
        plan.query_offsets,
        plan.key_offsets,
        plan.max_queries,
        plan.max_keys,
        scale=scaling,
        window_size=(-1, 0),
        enable_gqa=True,
    )
    assert isinstance(out, Tensor)
    return out


def window_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    cu_seq_lens_q: Tensor,
    max_length_q: int,
    **_unused: Any,
) -> tuple[Tensor, None]:
    """The vision tower's attention inside windows (or whole pages), as transformers calls it.

    Args:
        module: the layer; not used.
        query: [1, heads, patches, D].
        key: [1, heads, patches, D].
        value: [1, heads, patches, D].
        attention_mask: None.
        scaling: factor of the scores.
        cu_seq_lens_q: [windows + 1] int32, where each window starts.
        max_length_q: patches of the longest window.

    Returns:
        [1, patches, heads, D], and None for the weights.
    """
    from torch.nn.attention.varlen import varlen_attn

    query, key, value = (tensor[0].transpose(0, 1).contiguous() for tensor in (query, key, value))
    out = varlen_attn(query, key, value, cu_seq_lens_q, cu_seq_lens_q, max_length_q, max_length_q, scale=scaling)
    assert isinstance(out, Tensor)
    return out[None], None
