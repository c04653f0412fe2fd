"""Gated delta nets of vLLM on a CPU in float32, for which its own kernel is not made ("requires BF16").

vLLM registers the core of such a layer (convolution and gated delta rule, between the projections) as an operation.
What is registered here computes the same with torch, in the same places of vLLM's cache; bfloat16 goes on to vLLM's
own kernel.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from vllm.forward_context import get_forward_context
from vllm.model_executor.layers.mamba.mamba_utils import is_conv_state_dim_first
from vllm.model_executor.layers.mamba.ops.cpu import gdn_attention
from vllm.utils.torch_utils import LayerNameType, _resolve_layer_name

from rsgrpo.model.attention.delta_rule import chunked_delta_rule

_kernel = gdn_attention.cpu_gdn_attention_core


def use_float32_core() -> None:
    """Let vLLM register the operation below; to be called before it builds a model, in the process that builds it."""
    gdn_attention.cpu_gdn_attention_core = cpu_gdn_attention_core


def cpu_gdn_attention_core(
    mixed_qkv: torch.Tensor, b: torch.Tensor, a: torch.Tensor, core_attn_out: torch.Tensor, layer_name: LayerNameType
) -> None:
    """The core of a layer for the tokens of a step; names and types are vLLM's.

    Args:
        mixed_qkv: [tokens, channels], queries, keys and values before the convolution.
        b: [tokens, value heads], from which a token's rate comes.
        a: [tokens, value heads], from which its decay comes.
        core_attn_out: [tokens, value heads, V], to be written.
        layer_name: the layer, as vLLM's context knows it.
    """
    if mixed_qkv.dtype == torch.bfloat16:
        _kernel(mixed_qkv, b, a, core_attn_out, layer_name)
        return
    context = get_forward_context()
    layer = context.no_compile_layers[_resolve_layer_name(layer_name)]
    if context.attn_metadata is None:
        return
    step = context.attn_metadata[layer.prefix]
    if not step.num_actual_tokens:
        return
    slots, starts = step.non_spec_state_indices_tensor, step.non_spec_query_start_loc.tolist()
    rates, decays = b.sigmoid(), -layer.A_log.float().exp() * functional.softplus(a.float() + layer.dt_bias)
    parts = (mixed_qkv, decays, rates)
    if step.num_decodes:  # a token each, all in one call
        rows = [part[: step.num_decode_tokens, None] for part in parts]
        own = slots[: step.num_decodes].long()
        core_attn_out[: step.num_decode_tokens] = _run(layer, rows, own, None)[:, 0]
    for number in range(step.num_decodes, step.num_decodes + step.num_prefills):
        first, stop = starts[number], starts[number + 1]
        rows = [part[None, first:stop] for part in parts]
        own = slots[number : number + 1].long()
        core_attn_out[first:stop] = _run(layer, rows, own, bool(step.has_initial_state[number]))[0]


def _run(layer: Any, rows: list[Tensor], slots: Tensor, goes_on: bool | None) -> Tensor:
    """Outputs [N, W, value heads, V] of rows of tokens, whose places in the cache are read and written.

    Args:
        layer: vLLM's layer.
        rows: [N, W, channels], [N, W, value heads] twice: inputs, decays and rates.
        slots: [N], where in the cache each row's state lies.
        goes_on: whether the rows go on from it; False: they begin.
    """
    inputs, decays, rates = rows
    count = inputs.shape[1]
    windows = layer.kv_cache[0] if is_conv_state_dim_first() else layer.kv_cache[0].transpose(1, 2)
    states = layer.kv_cache[1].view(len(layer.kv_cache[1]), decays.shape[2], layer.head_k_dim, layer.head_v_dim)
    is_new = goes_on is False
    before = torch.zeros_like(windows[slots]) if is_new else windows[slots]
    whole = torch.cat([before, inputs.transpose(1, 2)], dim=-1)
    windows[slots] = whole[..., count:]
    mixed = functional.silu(functional.conv1d(whole, layer.conv1d.weight, groups=whole.shape[1])).transpose(1, 2)
    key_width = decays.shape[2] * layer.num_k_heads // layer.num_v_heads * layer.head_k_dim
    query, key, value = mixed.split([key_width, key_width, mixed.shape[-1] - 2 * key_width], dim=-1)
    out, last = chunked_delta_rule(
        query.unflatten(-1, (-1, layer.head_k_dim)),
        key.unflatten(-1, (-1, layer.head_k_dim)),
        value.unflatten(-1, (-1, layer.head_v_dim)),
        decays,
        rates,
        None if is_new else states[slots],
    )
    states[slots] = last.to(states.dtype)
    return out
