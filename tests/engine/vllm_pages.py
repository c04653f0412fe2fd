"""What a sequence takes of an engine's cache by vLLM's own functions; imported where vLLM is there already."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from vllm.v1.core.kv_cache_utils import get_kv_cache_groups
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheSpec, MambaSpec

from rsgrpo.model.sizes import StackSizes

_LEAST_TOKENS = 16


def sequence_bytes(language: StackSizes, *, num_gpus: int, num_tokens: int) -> int:
    """Bytes of a sequence in bfloat16, states in float32, on one of an engine's GPUs.

    Args:
        language: the sizes of the language model.
        num_gpus: how many GPUs share the engine.
        num_tokens: the length of the sequence.
    """

    def attention(block_size: int) -> FullAttentionSpec:
        heads = -(-language.key_heads // num_gpus)
        return FullAttentionSpec(
            block_size=block_size, num_kv_heads=heads, head_size=language.head_size, dtype=torch.bfloat16
        )

    net, block_size = language.delta_nets, _LEAST_TOKENS
    specs: dict[str, KVCacheSpec] = {}
    if net is not None:
        shapes = (
            (net.channels // num_gpus, net.kernel - 1),
            (net.value_heads // num_gpus, net.value_width, net.key_width),
        )
        dtypes = (torch.bfloat16, torch.float32)
        # As vLLM's platform aligns pages, which it does where a whole engine is configured.
        state = MambaSpec(block_size=1, shapes=shapes, dtypes=dtypes).page_size_bytes
        block_size *= -(-state // attention(_LEAST_TOKENS).page_size_bytes)
        padded = attention(block_size).page_size_bytes
        states = MambaSpec(
            block_size=block_size, shapes=shapes, dtypes=dtypes, page_size_padded=padded, mamba_cache_mode="align"
        )
        specs = {f"state {number}": states for number in range(net.layers)}
    specs |= {f"attention {number}": attention(block_size) for number in range(language.attending_layers)}
    layout = SimpleNamespace(is_block_outermost=True)
    config: Any = SimpleNamespace(
        cache_config=SimpleNamespace(mamba_cache_mode="align", get_resolved_kv_cache_layout=lambda: layout),
        model_config=SimpleNamespace(max_model_len=num_tokens),
        parallel_config=SimpleNamespace(decode_context_parallel_size=1, prefill_context_parallel_size=1),
        scheduler_config=SimpleNamespace(disable_hybrid_kv_cache_manager=False),
        speculative_config=None,
    )
    groups = get_kv_cache_groups(config, specs)
    widest = max(len(group.layer_names) for group in groups)
    total = 0
    for group in groups:
        page_bytes = group.kv_cache_spec.page_size_bytes
        total += -(-group.kv_cache_spec.max_memory_usage_bytes(config) // page_bytes) * page_bytes * widest
    return total
