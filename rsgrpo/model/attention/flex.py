"""Attention over a packed sequence with torch's ``flex_attention``: one kernel, skipping blocks that nobody sees.

CUDA only: torch's flex_attention has no backward pass on a CPU, where the forward pass runs as plain products
(for tests).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from rsgrpo.model.micro_batches import IndexArray, PackedSequence

_BLOCK = 128
# Every length is compiled anew, for minutes over a run, and under ZeRO 3 all ranks wait for the one that compiles.
# Rows are therefore padded to powers of two: eight lengths up to 16,384 tokens, with and without gradients. Padding
# costs memory in one layer at a time, but hardly any work. Beyond so many versions torch would fall back to a
# product of all queries with all keys.
_MAX_VERSIONS = 64


@dataclass(frozen=True, slots=True, eq=False)
class FlexPlan:
    """Who attends to whom, as ``flex_attention`` wants it.

    Attributes:
        num_tokens: T, the number of tokens of the sequence.
        num_padded: T rounded up as :func:`padded_length` does.
        block_mask: the blocks of queries and keys that are computed, over ``num_padded`` positions.
        is_compiled: whether the kernel is compiled (CUDA); else it runs as plain products (CPU, for tests).
    """

    num_tokens: int
    num_padded: int
    block_mask: BlockMask
    is_compiled: bool


def padded_length(num_tokens: int) -> int:
    """A sequence's length, rounded up to a power of two, at least a block.

    Example:
        1 -> 128, 1,000 -> 1,024, 9,000 -> 16,384.
    """
    return max(_BLOCK, 1 << (num_tokens - 1).bit_length())


def _overlaps(starts: IndexArray, lengths: IndexArray, num_blocks: int) -> NDArray[np.float64]:
    """[segments, blocks] float64: how many positions of each segment lie in each block."""
    edges = np.arange(num_blocks + 1) * _BLOCK
    inside = np.clip(edges[None] - starts[:, None], 0, lengths[:, None])
    return np.diff(inside, axis=1).astype(np.float64)


def _num_seen(segments: NDArray[np.float64], of_prompts: NDArray[np.float64]) -> NDArray[np.float64]:
    """[blocks, blocks]: how many pairs of a query and a key that it sees two blocks have.

    Args:
        segments: [segments, blocks] positions of prompts and responses: causal over themselves.
        of_prompts: [segments, blocks] positions of the prompt that a segment sees as well; 0 for prompts.
    """
    own = np.tril(segments.T @ segments, -1) + np.diag((segments * (segments + 1) / 2).sum(axis=0))
    seen: NDArray[np.float64] = own + segments.T @ of_prompts
    return seen


def _block_lists(chosen: NDArray[np.bool_], device: torch.device) -> tuple[Tensor, Tensor]:
    """For every block of queries: how many blocks of keys are chosen, and their indexes, those first."""
    counts = chosen.sum(axis=1).astype(np.int32)
    indexes = np.argsort(~chosen, axis=1, kind="stable").astype(np.int32)
    return torch.from_numpy(counts).to(device)[None, None], torch.from_numpy(indexes).to(device)[None, None]


def flex_plan(packed: PackedSequence, *, device: torch.device) -> FlexPlan:
    """Block mask for a sequence.

    A query sees a key of its own segment that does not come after it, and every key of its own prompt. At the end
    every position of padding is a segment of its own. Which blocks are seen, in part or wholly, follows from where
    segments start and end: no [T, T] mask is built.

    Args:
        packed: the packed sequence, which says where everything stands.
        device: the device that the model is on.
    """
    num_padded = padded_length(packed.num_tokens)
    num_segments = len(packed.segments)
    prompts = [segment.num_prompt_tokens for segment in packed.segments]
    starts = np.array([*packed.prompt_starts, *packed.response_starts], dtype=np.int64)
    lengths = np.array([*prompts, *packed.response_lengths], dtype=np.int64)
    parents = np.array([*[-1] * num_segments, *packed.response_segments], dtype=np.int64)
    num_padding = num_padded - packed.num_tokens
    overlaps, padding = (
        _overlaps(first, length, num_padded // _BLOCK)
        for first, length in ((starts, lengths), (np.array([packed.num_tokens]), np.array([num_padding])))
    )
    seen = _num_seen(overlaps, np.where(parents[:, None] >= 0, overlaps[parents], 0.0)) + np.diag(padding[0])
    is_whole = seen == _BLOCK * _BLOCK
    order = np.argsort(starts, kind="stable")
    segments, parents_at = (
        torch.from_numpy(np.concatenate([np.repeat(values[order], lengths[order]), at_end])).to(device)
        for values, at_end in (
            (np.arange(len(starts)), len(starts) + np.arange(num_padding)),
            (parents, np.full(num_padding, -1)),
        )
    )

    def is_seen(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        own = (segments[query] == segments[key]) & (key <= query)
        return own | (parents_at[query] == segments[key])

    return FlexPlan(
        num_tokens=packed.num_tokens,
        num_padded=num_padded,
        block_mask=BlockMask.from_kv_blocks(
            *_block_lists((seen > 0) & ~is_whole, device),
            *_block_lists(is_whole, device),
            BLOCK_SIZE=_BLOCK,
            mask_mod=is_seen,
            seq_lengths=(num_padded, num_padded),
        ),
        is_compiled=device.type == "cuda",
    )


class _Compiled:
    """The compiled kernel, made at its first use."""

    kernel: Any = None

    @classmethod
    def get(cls) -> Any:
        if cls.kernel is None:
            import torch._dynamo

            torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _MAX_VERSIONS)
            cls.kernel = torch.compile(flex_attention, dynamic=False)
        return cls.kernel


def flex_packed_attention(query: Tensor, key: Tensor, value: Tensor, plan: FlexPlan, scaling: float) -> Tensor:
    """Attention over a packed sequence.

    Args:
        query: [T, query heads, D].
        key: [T, key heads, D].
        value: [T, key heads, D].
        plan: the plan, which says who attends to whom.
        scaling: the factor of the scores.

    Returns:
        [T, query heads, D] in the precision of ``query``.
    """
    padding = plan.num_padded - plan.num_tokens
    # One layout whether there is padding or not: torch compiles anew for another one.
    heads_first = [
        torch.nn.functional.pad(part, (0, 0, 0, 0, 0, padding)).contiguous().transpose(0, 1)[None]
        for part in (query, key, value)
    ]
    kernel = _Compiled.get() if plan.is_compiled else flex_attention
    out = kernel(*heads_first, block_mask=plan.block_mask, scale=scaling, enable_gqa=True)
    assert isinstance(out, Tensor)
    return out[0].transpose(0, 1)[: plan.num_tokens]
