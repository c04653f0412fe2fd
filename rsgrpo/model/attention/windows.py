"""Attention of the vision tower: windows (or whole pages) of any number of pages, all of a layer in few calls."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rsgrpo.model.attention.varlen import flash_sequences

# transformers hands window boundaries only to functions that have "flash" in their name.
VISION_ATTENTION_NAMES = {
    "varlen": "rsgrpo_flash_windows",
    "flex": "rsgrpo_flash_grouped_windows",
    "tiled": "rsgrpo_flash_grouped_windows",
}


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
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention within windows with FlashAttention; the vision tower calls this by name.

    Args:
        module: the layer that calls; not used.
        query: [1, heads, patches, D].
        key: [1, heads, patches, D].
        value: [1, heads, patches, D].
        attention_mask: must be None.
        scaling: the factor of the scores.
        cu_seq_lens_q: [windows + 1] int32, where each window starts.
        max_length_q: the length of the longest window, in patches.
        kwargs: whatever else transformers passes on (unused).

    Returns:
        The outputs [1, patches, heads, D], and None in place of the attention weights.
    """
    query, key, value = (tensor[0].transpose(0, 1).contiguous() for tensor in (query, key, value))
    out = flash_sequences(
        query, key, value, (cu_seq_lens_q, cu_seq_lens_q), (max_length_q, max_length_q), scaling, is_causal=False
    )
    return out[None], None


def grouped_window_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    cu_seq_lens_q: Tensor,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention within windows with torch's own, one call for all windows of a length, on any device.

    Takes and returns what :func:`window_attention` does. Windows at the edge of a page are smaller than those
    inside; a tower has few different lengths, but a call for each window would be hundreds a layer.
    """
    offsets = cu_seq_lens_q.cpu().numpy()
    lengths = np.diff(offsets)
    if len(lengths) == 1 or len(np.unique(lengths)) == 1:
        return _same_length(query, key, value, int(lengths[0]), scaling)[None], None
    parts: list[Tensor] = []
    orders: list[np.ndarray[Any, Any]] = []
    for length in np.unique(lengths):
        where = (offsets[:-1][lengths == length][:, None] + np.arange(length)).ravel()
        index = torch.from_numpy(where.astype(np.int64)).to(query.device)
        own_query, own_key, own_value = (tensor.index_select(2, index) for tensor in (query, key, value))
        parts.append(_same_length(own_query, own_key, own_value, int(length), scaling))
        orders.append(where)
    back = torch.from_numpy(np.argsort(np.concatenate(orders), kind="stable")).to(query.device)
    return torch.cat(parts).index_select(0, back)[None], None


def _same_length(query: Tensor, key: Tensor, value: Tensor, length: int, scaling: float) -> Tensor:
    """[1, heads, windows · length, D] three times -> [windows · length, heads, D]."""
    query, key, value = (
        tensor[0].reshape(tensor.shape[1], -1, length, tensor.shape[3]).transpose(0, 1).contiguous()
        for tensor in (query, key, value)
    )
    out = nn.functional.scaled_dot_product_attention(query, key, value, scale=scaling)
    return out.transpose(1, 2).flatten(0, 1)
