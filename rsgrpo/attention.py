"""Attention over packed rows in which siblings share their prompt.

Two doors behind one function, chosen by the plan that the row comes with:

* :class:`PaddedPlan` (any device): prompts and responses of similar length are padded to rectangles;
  prompt queries are causal over the prompt, response queries see the prompt and their own past. A
  sibling is never seen, and no [T, T] mask is built.
* :class:`~rsgrpo.varlen.VarlenPlan` (CUDA): FlashAttention over ragged sequences; keys and values of a prompt are
  repeated for each of its responses, queries are not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from rsgrpo.batching import IndexArray, PackedRow, Piece, lay_out
from rsgrpo.errors import RsgrpoError
from rsgrpo.varlen import VISION_ATTENTION_NAME, VarlenPlan, varlen_attention, varlen_plan, window_attention

ATTENTION_NAME = "rsgrpo_packed"

# Padding may cost this factor over the real attention work, and always this many scores: below that
# a further block costs more in kernel launches than it saves.
_PADDING_FACTOR = 1.2
_FREE_SCORES = 200_000
# On a CPU, plain matrix products with a stored score matrix have a backward pass that is twice as fast as
# the fused kernel's; the bound keeps the stored scores of one layer below 1 GiB.
_MAX_STORED_SCORES = 2**28


class AttentionUnavailableError(RsgrpoError):
    """``model.attention`` asks for what this machine cannot do."""


@dataclass(frozen=True, slots=True)
class _Rectangle:
    """Responses of similar length.

    Attributes:
        num_responses: N.
        width: R, the longest of them.
        owner: [N] int64, which of the block's prompts each belongs to.
        mask: [N or 1, 1, R, P + R] additive, 0 where a response's query may look.
    """

    num_responses: int
    width: int
    owner: Tensor
    mask: Tensor


@dataclass(frozen=True, slots=True)
class _Block:
    """Prompts of similar length, and their responses.

    Attributes:
        num_prompts: G.
        width: P, the longest prompt.
        rectangles: all responses to these prompts.
    """

    num_prompts: int
    width: int
    rectangles: tuple[_Rectangle, ...]


@dataclass(frozen=True, slots=True)
class PaddedPlan:
    """Index tensors of the padded door, made once a micro-batch and used by every layer.

    Attributes:
        blocks: their slots follow each other: prompts, then rectangles of responses, block by block.
        pad_index: [S] int64, the row position that each slot holds; 0 in padding.
        is_real: [S, 1] whether the slot is no padding, 1.0 or 0.0.
        unpad_index: [T] int64, the slot that holds each row position.
    """

    blocks: tuple[_Block, ...]
    pad_index: Tensor
    is_real: Tensor
    unpad_index: Tensor


AttentionPlan = PaddedPlan | VarlenPlan


class _Pad(torch.autograd.Function):
    """Row -> slots. Every row position stands in exactly one slot, so the gradient is a gather as well."""

    @staticmethod
    def forward(ctx: Any, row: Tensor, plan: PaddedPlan) -> Tensor:
        ctx.plan = plan
        return row.index_select(0, plan.pad_index)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return grads[0].index_select(0, ctx.plan.unpad_index), None


class _Unpad(torch.autograd.Function):
    """Slots -> row; padding gets zero gradient."""

    @staticmethod
    def forward(ctx: Any, slots: Tensor, plan: PaddedPlan) -> Tensor:
        ctx.plan = plan
        return slots.index_select(0, plan.unpad_index)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        plan: PaddedPlan = ctx.plan
        return grads[0].index_select(0, plan.pad_index).mul_(plan.is_real.to(grads[0].dtype)), None


def _similar(costs: Sequence[tuple[int, int]]) -> list[int]:
    """Where to cut a descending list of lengths so that padding to each part's first one costs little.

    Args:
        costs: (rows, columns) of each item's scores; rows descend, an item is padded to the part's first.

    Returns:
        Sizes of the parts.
    """
    parts: list[int] = []
    real, rows, columns = 0, 0, 0
    for own_rows, own_columns in costs:
        padded = (parts[-1] + 1 if parts else 1) * rows * columns
        if not parts or padded > _PADDING_FACTOR * (real + own_rows * own_columns) + _FREE_SCORES:
            parts.append(0)
            real, rows, columns = 0, own_rows, own_columns
        parts[-1] += 1
        real += own_rows * own_columns
    return parts


def _mask(prompt_lengths: IndexArray, prompt_width: int, width: int, dtype: torch.dtype) -> Tensor:
    """[N, 1, R, P + R] additive mask: the prompt's real tokens, and the response's own past."""
    if (prompt_lengths == prompt_lengths[0]).all():
        prompt_lengths = prompt_lengths[:1]
    hidden = torch.finfo(dtype).min
    mask = torch.zeros(len(prompt_lengths), 1, width, prompt_width + width, dtype=dtype)
    beyond = torch.arange(prompt_width)[None] >= torch.from_numpy(prompt_lengths)[:, None]  # [N, P]
    mask[..., :prompt_width].masked_fill_(beyond[:, None, None], hidden)
    mask[..., prompt_width:] = torch.full((width, width), hidden, dtype=dtype).triu(1)
    return mask


def padded_plan(row: PackedRow, *, device: torch.device, dtype: torch.dtype) -> PaddedPlan:
    """Index tensors for a row, for the door that works on any device.

    Args:
        row: where everything stands.
        device: where the model is.
        dtype: of queries and keys; the mask's type.
    """
    prompt_lengths = np.array([piece.num_prompt_tokens for piece in row.pieces], dtype=np.int64)
    by_prompt = sorted(range(len(row.pieces)), key=lambda i: (-prompt_lengths[i], i))
    blocks: list[_Block] = []
    slots: list[IndexArray] = []  # the row position that each slot holds, -1 in padding
    for size in _similar([(int(prompt_lengths[i]), int(prompt_lengths[i])) for i in by_prompt]):
        members, by_prompt = by_prompt[:size], by_prompt[size:]
        width = int(prompt_lengths[members[0]])
        slots.append(_slots([row.prompt_starts[i] for i in members], [int(prompt_lengths[i]) for i in members]))
        rectangles: list[_Rectangle] = []
        places = {piece: place for place, piece in enumerate(members)}
        ordered = sorted(
            (r for r, piece in enumerate(row.response_pieces) if piece in places),
            key=lambda r: (-row.response_lengths[r], r),
        )
        lengths = [row.response_lengths[r] for r in ordered]
        for count in _similar([(length, width + length) for length in lengths]):
            chosen, ordered = ordered[:count], ordered[count:]
            owner = np.array([places[row.response_pieces[r]] for r in chosen], dtype=np.int64)
            slots.append(_slots([row.response_starts[r] for r in chosen], [row.response_lengths[r] for r in chosen]))
            longest = row.response_lengths[chosen[0]]
            rectangles.append(
                _Rectangle(
                    num_responses=count,
                    width=longest,
                    owner=torch.from_numpy(owner).to(device),
                    mask=_mask(prompt_lengths[members][owner], width, longest, dtype).to(device),
                )
            )
        blocks.append(_Block(num_prompts=size, width=width, rectangles=tuple(rectangles)))
    held = np.concatenate(slots)
    is_real = held >= 0
    unpad_index = np.empty(row.num_tokens, dtype=np.int64)
    unpad_index[held[is_real]] = np.flatnonzero(is_real)
    return PaddedPlan(
        blocks=tuple(blocks),
        pad_index=torch.from_numpy(np.where(is_real, held, 0)).to(device),
        is_real=torch.from_numpy(is_real.astype(np.float32))[:, None].to(device),
        unpad_index=torch.from_numpy(unpad_index).to(device),
    )


def _slots(starts: Sequence[int], lengths: Sequence[int]) -> IndexArray:
    """Row positions of segments padded to the first one's length, -1 in padding, flat."""
    offsets = np.arange(lengths[0])
    held = np.where(offsets < np.array(lengths)[:, None], np.array(starts)[:, None] + offsets, -1)
    return held.ravel()


def _attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float) -> Tensor:
    """[B, L, heads, D] attention; ``mask=None`` means causal."""
    batch, length, num_heads, head_dim = query.shape
    num_keys, num_key_heads = key.shape[1:3]
    query, key, value = query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
    if query.device.type != "cpu" or batch * num_heads * length * num_keys > _MAX_STORED_SCORES:
        out = scaled_dot_product_attention(
            query, key, value, attn_mask=mask, is_causal=mask is None, scale=scaling, enable_gqa=True
        )
        return out.transpose(1, 2)
    if mask is None:
        mask = torch.full((length, num_keys), torch.finfo(query.dtype).min, dtype=query.dtype).triu(1)
    shape = (batch, num_key_heads, num_heads // num_key_heads, num_keys, head_dim)
    key = key[:, :, None].expand(shape).reshape(batch * num_heads, num_keys, head_dim)
    value = value[:, :, None].expand(shape).reshape(batch * num_heads, num_keys, head_dim)
    query = (query * scaling).reshape(batch * num_heads, length, head_dim)
    scores = torch.bmm(query, key.transpose(1, 2)).view(batch, num_heads, length, num_keys) + mask
    weights = torch.softmax(scores, dim=-1).view(batch * num_heads, length, num_keys)
    return torch.bmm(weights, value).view(batch, num_heads, length, head_dim).transpose(1, 2)


def _padded_attention(query: Tensor, key: Tensor, value: Tensor, plan: PaddedPlan, scaling: float) -> Tensor:
    """[T, heads, D] -> [T, query heads, D]."""
    num_heads, num_key_heads, head_dim = query.shape[1], key.shape[1], query.shape[2]
    together = torch.cat([query.flatten(1), key.flatten(1), value.flatten(1)], dim=-1)
    slots: Tensor = _Pad.apply(together, plan)  # type: ignore[no-untyped-call]
    sizes = [
        size
        for block in plan.blocks
        for size in (block.num_prompts * block.width, *(r.num_responses * r.width for r in block.rectangles))
    ]
    parts = iter(torch.split(slots.view(len(slots), -1, head_dim), sizes))
    heads = [num_heads, num_key_heads, num_key_heads]
    outputs: list[Tensor] = []
    for block in plan.blocks:
        prompts = next(parts).view(block.num_prompts, block.width, -1, head_dim)
        prompt_query, prompt_key, prompt_value = torch.split(prompts, heads, dim=2)
        outputs.append(_attend(prompt_query, prompt_key, prompt_value, None, scaling).flatten(0, 1))
        for rectangle in block.rectangles:
            responses = next(parts).view(rectangle.num_responses, rectangle.width, -1, head_dim)
            own_query, own_key, own_value = torch.split(responses, heads, dim=2)
            keys = torch.cat([prompt_key.index_select(0, rectangle.owner), own_key], dim=1)
            values = torch.cat([prompt_value.index_select(0, rectangle.owner), own_value], dim=1)
            outputs.append(_attend(own_query, keys, values, rectangle.mask, scaling).flatten(0, 1))
    padded = torch.cat([out.flatten(1) for out in outputs])
    result: Tensor = _Unpad.apply(padded, plan)  # type: ignore[no-untyped-call]
    return result.view(-1, num_heads, head_dim)


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    attention_plan: AttentionPlan,
    **_unused: Any,
) -> tuple[Tensor, None]:
    """Attention of one layer over a packed row, as transformers calls it.

    Args:
        module: the layer; not used.
        query: [1, query heads, T, D], rotary positions applied.
        key: [1, key heads, T, D].
        value: [1, key heads, T, D].
        attention_mask: None; the plan says who sees whom.
        scaling: factor of the scores.
        attention_plan: passed through the language model's keyword arguments.

    Returns:
        [1, T, query heads, D], and None for the weights.
    """
    rows = (query[0].transpose(0, 1), key[0].transpose(0, 1), value[0].transpose(0, 1))
    if isinstance(attention_plan, VarlenPlan):
        return varlen_attention(*rows, attention_plan, scaling)[None], None
    return _padded_attention(*rows, attention_plan, scaling)[None], None


def register_packed_attention() -> None:
    """Make our attention functions known to transformers under their names."""
    from transformers import AttentionInterface

    AttentionInterface.register(ATTENTION_NAME, packed_attention)
    AttentionInterface.register(VISION_ATTENTION_NAME, window_attention)


def _varlen_problem(device: torch.device, dtype: torch.dtype) -> str:
    """Why the FlashAttention door cannot be used here; empty if it can.

    The door is tried on a small row against the padded one: a build without the kernel, or one that
    aligns causal queries to the start of the keys instead of their end, must not train silently wrong.
    """
    if device.type != "cuda":
        return f"the device is {device.type}"
    if dtype != torch.bfloat16:
        return f"the precision is {dtype}, not bfloat16"
    row = lay_out([Piece(group=0, responses=(0, 1), num_prompt_tokens=5, response_lengths=(4, 3))])
    generator = torch.Generator(device).manual_seed(0)
    query, key, value = (
        torch.randn(row.num_tokens, heads, 64, device=device, dtype=dtype, generator=generator) for heads in (4, 2, 2)
    )
    expected = _padded_attention(query, key, value, padded_plan(row, device=device, dtype=dtype), 0.125)
    try:
        got = varlen_attention(query, key, value, varlen_plan(row, device=device), 0.125)
    except (ImportError, NotImplementedError, RuntimeError, TypeError) as error:
        return f"torch's varlen_attn does not run: {error}"
    gap = float((got.float() - expected.float()).abs().max())
    return "" if gap < 0.05 else f"torch's varlen_attn is off by {gap:.3f} on a shared prefix"


def choose_door(setting: str, *, device: torch.device, dtype: torch.dtype) -> str:
    """Which door ``model.attention`` means here.

    Args:
        setting: ``auto``, ``sdpa`` or ``flash``.
        device: where the model is.
        dtype: compute precision.

    Returns:
        ``padded`` or ``varlen``.

    Raises:
        AttentionUnavailableError: ``flash`` without a GPU, in float32, or with a torch that lacks it.
    """
    if setting == "sdpa":
        return "padded"
    problem = _varlen_problem(device, dtype)
    if problem and setting == "flash":
        raise AttentionUnavailableError(f"model.attention=flash cannot be used: {problem}; set model.attention=auto")
    return "padded" if problem else "varlen"
