"""How vLLM divides an engine's cache: pages of keys and values, and of the states of gated delta nets.

A layer that attends holds a key and a value of each head a token; a gated delta net holds the last inputs of its
convolution and a state, both of fixed size, once a sequence. vLLM gives both kinds pages of the same size, out of one
pool: a page of keys and values gets as many tokens as make it as large as a state, and layers stand in groups, which
take pages together (``_align_hybrid_block_size`` and ``_get_kv_cache_groups_uniform_page_size`` of vLLM 0.32).
"""

from __future__ import annotations

from dataclasses import dataclass

from rsgrpo.model.memory_bounds import FP32
from rsgrpo.model.sizes import StackSizes

_LEAST_TOKENS = 16  # of a page; all pages have a multiple of them
# Prefixes are kept, so that a gated delta net has the state behind a sequence's last full page beside the current one.
_STATES_HELD = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class CachePages:
    """Pages of an engine's cache, on one of its GPUs.

    Attributes:
        page_tokens: for how many tokens a page holds keys and values.
        page_bytes: bytes of a page in all layers of a group.
        token_groups: how many groups there are of layers that attend; each takes a page of its own.
        state_pages: how many pages a running sequence takes for states, whatever its length.
    """

    page_tokens: int
    page_bytes: int
    token_groups: int
    state_pages: int

    def of_sequence(self, num_tokens: float) -> int:
        """Bytes that a sequence of so many tokens takes.

        Example:
            Pages of 16 tokens and 1,000 bytes, one group, no states: 17 tokens take two pages, 2,000 bytes.
        """
        pages = self.token_groups * -(-num_tokens // self.page_tokens) + self.state_pages
        return int(pages) * self.page_bytes


def cache_pages(language: StackSizes, *, weight_bytes: int, num_gpus: int) -> CachePages:
    """Pages of an engine that computes a language model.

    Args:
        language: the sizes of the language model's layers.
        weight_bytes: b, the bytes of a weight, of a key's and of a value's number.
        num_gpus: how many GPUs share an engine (``rollout.tensor_parallel_size``); each has a part of the heads.

    Example:
        Qwen3.5-9B in bfloat16 on one GPU: a token takes 2 · 4 · 256 · 2 = 4,096 bytes in each of 8 layers that attend;
        a state of 32 · 128 · 128 numbers in float32 with 3 · 8,192 inputs in bfloat16 takes 2,146,304 bytes in each of
        24. Pages have 528 tokens, the first multiple of 16 that is as large as a state; the 24 are three groups of 8.
    """
    token = 2 * -(-language.key_heads // num_gpus) * language.head_size * weight_bytes
    net, attending = language.delta_nets, language.attending_layers
    if net is None:
        return CachePages(
            page_tokens=_LEAST_TOKENS, page_bytes=_LEAST_TOKENS * token * attending, token_groups=1, state_pages=0
        )
    state = delta_state_bytes(language, weight_bytes) // (net.layers * num_gpus)
    tokens = _LEAST_TOKENS * -(-state // (_LEAST_TOKENS * token))
    fewer, more = sorted((attending, net.layers))
    group = more if more < 1.5 * fewer else max(1, fewer)
    return CachePages(
        page_tokens=tokens,
        page_bytes=group * tokens * token,
        token_groups=-(-attending // group),
        state_pages=_STATES_HELD * -(-net.layers // group),
    )


def delta_state_bytes(language: StackSizes, weight_bytes: int) -> int:
    """Bytes of a sequence's states and last inputs in all gated delta nets; 0 where there are none.

    Args:
        language: the sizes of the language model's layers.
        weight_bytes: the bytes of a weight.
    """
    net = language.delta_nets
    if net is None:
        return 0
    number = FP32 if net.has_float32_states else weight_bytes
    return net.layers * ((net.kernel - 1) * net.channels * weight_bytes + net.state_elements * number)
