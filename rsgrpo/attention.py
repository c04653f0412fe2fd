"""Attention over packed rows in which siblings share their prompt.

Two doors behind one function, chosen by the plan that the row comes with:

* :class:`PaddedPlan` (any device): prompts and responses of similar length are padded to rectangles;
  prompt queries are causal over the prompt, response queries see the prompt and their own past. A
  sibling is never seen, and no [T, T] mask is built.
* :class:`VarlenPlan` (CUDA): FlashAttention over ragged sequences; keys and values of a prompt are
  repeated for each of its responses, queries are not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from rsgrpo.batching import PackedRow, Piece, lay_out
from rsgrpo.errors import RsgrpoError

ATTENTION_NAME = "rsgrpo_packed"

# Padding may cost this factor over the real attention work, and always this many scores: below that
# a further block costs more in kernel launches than it saves.
_PADDING_FACTOR = 1.3
_FREE_SCORES = 1_000_000
# On a CPU, plain matrix products with a stored score matrix have a backward pass that is twice as fast as
# the fused kernel's; the bound keeps the stored scores of one layer below 1 GiB.
_MAX_STORED_SCORES = 2**28


class AttentionUnavailableError(RsgrpoError):
    """``model.attention`` asks for what this machine cannot do."""


@dataclass(frozen=True, slots=True)
class _Block:
    """One rectangle of prompts and one of their responses.

    Attributes:
        num_prompts: G.
        prompt_width: P, the longest prompt.
        num_responses: N.
        response_width: R, the longest response.
        prompt_of_response: [N] int64, which of the G prompts each response belongs to.
        mask: [N, 1, R, P + R] additive, 0 where a response's query may look.
    """

    num_prompts: int
    prompt_width: int
    num_responses: int
    response_width: int
    prompt_of_response: Tensor
    mask: Tensor


@dataclass(frozen=True, slots=True)
class PaddedPlan:
    """Index tensors of the padded door, made once a micro-batch and used by every layer.

    Attributes:
        blocks: the rectangles, whose slots follow each other: prompts, then responses, block by block.
        pad_index: [S] int64, the row position that each slot holds; 0 in padding.
        is_real: [S, 1] whether the slot is no padding, 1.0 or 0.0.
        unpad_index: [T] int64, the slot that holds each row position.
    """

    blocks: tuple[_Block, ...]
    pad_index: Tensor
    is_real: Tensor
    unpad_index: Tensor


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


def _scores(num_prompts: int, prompt_width: int, num_responses: int, response_width: int) -> int:
    """Query-key pairs of a rectangle, padding included."""
    return num_prompts * prompt_width**2 + num_responses * response_width * (prompt_width + response_width)


def _group_blocks(row: PackedRow) -> list[list[int]]:
    """Pieces of similar length together, so that padding costs little."""
    pieces = row.pieces
    order = sorted(range(len(pieces)), key=lambda i: (pieces[i].num_prompt_tokens, max(pieces[i].response_lengths), i))
    blocks: list[list[int]] = []
    real, response_width, num_responses = 0, 0, 0
    for index in order:
        piece = pieces[index]
        own = sum(_scores(0, piece.num_prompt_tokens, 1, length) for length in piece.response_lengths)
        own += piece.num_prompt_tokens**2
        width = max(response_width, *piece.response_lengths)
        responses = num_responses + len(piece.responses)
        padded = _scores(len(blocks[-1]) + 1 if blocks else 1, piece.num_prompt_tokens, responses, width)
        if not blocks or padded > _PADDING_FACTOR * (real + own) + _FREE_SCORES:
            blocks.append([])
            real, width, responses = 0, max(piece.response_lengths), len(piece.responses)
        blocks[-1].append(index)
        real, response_width, num_responses = real + own, width, responses
    return blocks


def _block_mask(
    prompt_lengths: np.ndarray[Any, Any], prompt_width: int, response_width: int, dtype: torch.dtype
) -> Tensor:
    """[N, 1, R, P + R] additive mask: the prompt's real tokens, and the response's own past."""
    hidden = torch.finfo(dtype).min
    mask = torch.zeros(len(prompt_lengths), 1, response_width, prompt_width + response_width, dtype=dtype)
    beyond = torch.arange(prompt_width)[None] >= torch.from_numpy(prompt_lengths)[:, None]  # [N, P]
    mask[..., :prompt_width].masked_fill_(beyond[:, None, None], hidden)
    mask[..., prompt_width:] = torch.full((response_width, response_width), hidden, dtype=dtype).triu(1)
    return mask


def padded_plan(row: PackedRow, *, device: torch.device, dtype: torch.dtype) -> PaddedPlan:
    """Index tensors for a row, for the door that works on any device.

    Args:
        row: where everything stands.
        device: where the model is.
        dtype: of queries and keys; the mask's type.
    """
    responses_of: list[list[int]] = [[] for _ in row.pieces]
    for response, piece in enumerate(row.response_pieces):
        responses_of[piece].append(response)
    blocks: list[_Block] = []
    segments: list[tuple[int, int, int]] = []  # first slot, first row position, length
    slot = 0
    for members in _group_blocks(row):
        prompt_lengths = np.array([row.pieces[i].num_prompt_tokens for i in members])
        responses = [(local, r) for local, i in enumerate(members) for r in responses_of[i]]
        owner = np.array([local for local, _ in responses])
        prompt_width = int(prompt_lengths.max())
        response_width = max(row.response_lengths[r] for _, r in responses)
        for local, i in enumerate(members):
            segments.append((slot + local * prompt_width, row.prompt_starts[i], int(prompt_lengths[local])))
        slot += len(members) * prompt_width
        for place, (_, r) in enumerate(responses):
            segments.append((slot + place * response_width, row.response_starts[r], row.response_lengths[r]))
        slot += len(responses) * response_width
        blocks.append(
            _Block(
                num_prompts=len(members),
                prompt_width=prompt_width,
                num_responses=len(responses),
                response_width=response_width,
                prompt_of_response=torch.from_numpy(owner).to(device),
                mask=_block_mask(prompt_lengths[owner], prompt_width, response_width, dtype).to(device),
            )
        )
    pad_index = np.zeros(slot, dtype=np.int64)
    is_real = np.zeros(slot, dtype=np.float32)
    unpad_index = np.zeros(row.num_tokens, dtype=np.int64)
    for first_slot, first, length in segments:
        pad_index[first_slot : first_slot + length] = np.arange(first, first + length)
        is_real[first_slot : first_slot + length] = 1.0
        unpad_index[first : first + length] = np.arange(first_slot, first_slot + length)
    return PaddedPlan(
        blocks=tuple(blocks),
        pad_index=torch.from_numpy(pad_index).to(device),
        is_real=torch.from_numpy(is_real)[:, None].to(device),
        unpad_index=torch.from_numpy(unpad_index).to(device),
    )


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
    sizes = [n for b in plan.blocks for n in (b.num_prompts * b.prompt_width, b.num_responses * b.response_width)]
    parts = torch.split(slots.view(len(slots), -1, head_dim), sizes)
    heads = [num_heads, num_key_heads, num_key_heads]
    outputs: list[Tensor] = []
    for block, prompts, responses in zip(plan.blocks, parts[::2], parts[1::2], strict=True):
        prompts = prompts.view(block.num_prompts, block.prompt_width, -1, head_dim)
        responses = responses.view(block.num_responses, block.response_width, -1, head_dim)
        prompt_query, prompt_key, prompt_value = torch.split(prompts, heads, dim=2)
        query_, key_, value_ = torch.split(responses, heads, dim=2)
        outputs.append(_attend(prompt_query, prompt_key, prompt_value, None, scaling).flatten(0, 1))
        owner = block.prompt_of_response
        key_ = torch.cat([prompt_key.index_select(0, owner), key_], dim=1)
        value_ = torch.cat([prompt_value.index_select(0, owner), value_], dim=1)
        outputs.append(_attend(query_, key_, value_, block.mask, scaling).flatten(0, 1))
    padded = torch.cat([out.flatten(1) for out in outputs])
    result: Tensor = _Unpad.apply(padded, plan)  # type: ignore[no-untyped-call]
    return result.view(-1, num_heads, head_dim)


def _varlen_attention(query: Tensor, key: Tensor, value: Tensor, plan: VarlenPlan, scaling: float) -> Tensor:
    """[T, heads, D] -> [T, query heads, D]; causal from the end, so a response's queries see its whole prompt."""
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
        return _varlen_attention(*rows, attention_plan, scaling)[None], None
    return _padded_attention(*rows, attention_plan, scaling)[None], None


def register_packed_attention() -> None:
    """Make :func:`packed_attention` known to transformers under ``ATTENTION_NAME``."""
    from transformers import AttentionInterface

    AttentionInterface.register(ATTENTION_NAME, packed_attention)


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
        got = _varlen_attention(query, key, value, varlen_plan(row, device=device), 0.125)
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
