"""Gated delta nets over packed sequences in which siblings share their prompt.

Such a layer (Qwen3.5 has three of them for each that attends) reads tokens in order: a short convolution mixes each
with the few before it, and the gated delta rule carries a state along. In a packed sequence a response therefore
goes on from two things of its prompt: the last inputs of the convolution and the state behind its last token. A
prompt's state is computed once; all of its responses get it, and its gradient is the sum of theirs.

Prompts of similar length are rows of one call, padded to the longest, and so are responses of similar length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from rsgrpo.model.attention.delta_rule import DeltaRule, choose_rule
from rsgrpo.model.attention.slots import from_slots, to_slots
from rsgrpo.model.memory_bounds import DELTA_CHUNK
from rsgrpo.model.micro_batches import IndexArray, PackedSequence

# Padding may cost this factor over the real tokens, and always this many tokens: below that a further call costs
# more than it saves.
_PADDING_FACTOR = 1.2
_FREE_TOKENS = 256


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Prompts, or responses, that one call computes.

    Attributes:
        start: the first slot; row i takes the slots from ``start + i · width``.
        count: N, the number of rows.
        width: W, the length of the longest.
        owners: for responses the rows' prompts, in the order of the plan's prompts, each with how many of the next
            rows go on from it; empty for prompts themselves.
    """

    start: int
    count: int
    width: int
    owners: tuple[tuple[int, int], ...]

    def cut(self, slots: Tensor) -> Tensor:
        """The rows' part of [S, ...] slots, as a view [N, W, ...]."""
        return slots[self.start : self.start + self.count * self.width].view(self.count, self.width, *slots.shape[1:])


@dataclass(frozen=True, slots=True, eq=False)
class DeltaPlan:
    """Index tensors of a packed sequence, made once and used by every gated delta net.

    Attributes:
        prompts: the rows of all prompts, longest first; prompts are numbered in this order.
        responses: the rows of all responses.
        pad_index: [S] int64, the packed position that each slot holds; 0 in padding.
        is_real: [S, 1] float32, 1 where the slot is no padding, else 0.
        unpad_index: [T] int64, the slot that holds each packed position.
        lengths: [prompts] int64, how many tokens each prompt has.
        ends: [prompts] int64, the slot of each prompt's last token.
        rule: what computes the gated delta rule.
    """

    prompts: tuple[Rows, ...]
    responses: tuple[Rows, ...]
    pad_index: Tensor
    is_real: Tensor
    unpad_index: Tensor
    lengths: Tensor
    ends: Tensor
    rule: DeltaRule


def _alike(lengths: Sequence[int]) -> list[int]:
    """Where to cut a descending list of lengths so that padding to each part's first one costs little."""
    parts: list[int] = []
    real, width = 0, 0
    for length in lengths:
        if not parts or (parts[-1] + 1) * width > _PADDING_FACTOR * (real + length) + _FREE_TOKENS:
            parts.append(0)
            real, width = 0, length
        parts[-1] += 1
        real += length
    return parts


def padded_size(prompt_lengths: Sequence[int], response_lengths: Sequence[int]) -> tuple[int, int]:
    """How much a gated delta net computes of a packed sequence.

    Args:
        prompt_lengths: the lengths of its prompts, in tokens.
        response_lengths: the lengths of its responses.

    Returns:
        How many tokens, padding of rows and of their last chunks included; and how many chunks, each of which has a
        state.

    Example:
        A prompt of 100 tokens and two responses of 30: two chunks of 64 and two of 30, 188 tokens.
    """
    num_tokens = num_chunks = 0
    for lengths in (sorted(prompt_lengths, reverse=True), sorted(response_lengths, reverse=True)):
        taken = 0
        for count in _alike(lengths):
            width = lengths[taken]
            size = min(DELTA_CHUNK, width)
            chunks = count * -(-width // size)
            num_tokens, num_chunks, taken = num_tokens + chunks * size, num_chunks + chunks, taken + count
    return num_tokens, num_chunks


class _Layout:
    """Hands out slots; ``held`` is the packed position of each, -1 in padding."""

    def __init__(self) -> None:
        self.held: list[IndexArray] = []
        self.num_slots = 0

    def place(self, starts: Sequence[int], lengths: Sequence[int], owners: tuple[tuple[int, int], ...]) -> Rows:
        """Slots for segments padded to the longest."""
        width = max(lengths)
        offsets = np.arange(width)
        held = np.where(offsets < np.array(lengths)[:, None], np.array(starts)[:, None] + offsets, -1)
        self.held.append(held.ravel())
        rows = Rows(self.num_slots, len(lengths), width, owners)
        self.num_slots += held.size
        return rows


def delta_plan(packed: PackedSequence, *, device: torch.device, dtype: torch.dtype) -> DeltaPlan:
    """Lay a packed sequence out in rows.

    Args:
        packed: the packed sequence, which says where everything stands.
        device: the device that the model is on.
        dtype: the precision of the computation.
    """
    layout = _Layout()
    of_segments = [segment.num_prompt_tokens for segment in packed.segments]
    by_prompt = sorted(range(len(of_segments)), key=lambda i: (-of_segments[i], i))
    prompts, ends, taken = [], [], 0
    for size in _alike([of_segments[i] for i in by_prompt]):
        chosen = by_prompt[taken : taken + size]
        taken += size
        rows = layout.place([packed.prompt_starts[i] for i in chosen], [of_segments[i] for i in chosen], ())
        prompts.append(rows)
        ends += [rows.start + row * rows.width + of_segments[i] - 1 for row, i in enumerate(chosen)]
    number = {segment: place for place, segment in enumerate(by_prompt)}
    by_length = sorted(range(len(packed.response_lengths)), key=lambda r: (-packed.response_lengths[r], r))
    responses, taken = [], 0
    for size in _alike([packed.response_lengths[r] for r in by_length]):
        # Those of one prompt stand together: its state is then handed on without an index.
        chosen = sorted(by_length[taken : taken + size], key=lambda r: (number[packed.response_segments[r]], r))
        taken += size
        owners, counts = np.unique([number[packed.response_segments[r]] for r in chosen], return_counts=True)
        responses.append(
            layout.place(
                [packed.response_starts[r] for r in chosen],
                [packed.response_lengths[r] for r in chosen],
                tuple(zip(owners.tolist(), counts.tolist(), strict=True)),
            )
        )
    held = np.concatenate(layout.held)
    is_real = held >= 0
    unpad_index = np.empty(packed.num_tokens, dtype=np.int64)
    unpad_index[held[is_real]] = np.flatnonzero(is_real)
    return DeltaPlan(
        prompts=tuple(prompts),
        responses=tuple(responses),
        pad_index=torch.from_numpy(np.where(is_real, held, 0)).to(device),
        is_real=torch.from_numpy(is_real.astype(np.float32))[:, None].to(device),
        unpad_index=torch.from_numpy(unpad_index).to(device),
        lengths=torch.tensor([of_segments[i] for i in by_prompt], device=device),
        ends=torch.tensor(ends, device=device),
        rule=choose_rule(device=device, dtype=dtype).rule,
    )


def _handed_on(of_prompts: Tensor, rows: Rows) -> Tensor:
    """[prompts, ...] -> [N, ...]: what each response goes on from; a prompt's gradient is the sum over its own."""
    return torch.cat(
        [of_prompts[prompt : prompt + 1].expand(count, *of_prompts.shape[1:]) for prompt, count in rows.owners]
    )


def _last_inputs(slots: Tensor, plan: DeltaPlan, count: int) -> Tensor:
    """[prompts, count, x]: the last inputs of each prompt, zeros where it has fewer."""
    back = torch.arange(count - 1, -1, -1, device=slots.device)
    is_there = plan.lengths[:, None] > back
    index = (plan.ends[:, None] - back).clamp_min(0)
    found = slots.index_select(0, index.flatten()).view(*index.shape, -1)
    return found * is_there[..., None].to(found.dtype)


def _convolved(conv: nn.Conv1d, rows: Tensor, before: Tensor | None) -> Tensor:
    """The causal convolution of a gated delta net with its SiLU.

    Args:
        conv: a kernel of k inputs for each channel, which pads k - 1 zeros on both sides. It is called as a module:
            under ZeRO 3 its weight is there only then.
        rows: [N, W, channels].
        before: [N, k - 1, channels], the inputs that come before; None: zeros.
    """
    whole = rows if before is None else torch.cat([before, rows], dim=1)
    skipped = whole.shape[1] - rows.shape[1]
    out: Tensor = conv(whole.transpose(1, 2))[..., skipped : skipped + rows.shape[1]]
    return functional.silu(out).transpose(1, 2)


def packed_delta_net(net: Any, hidden_states: Tensor, *, delta_plan: DeltaPlan, **_unused: Any) -> Tensor:
    """A gated delta net of transformers over a packed sequence; its ``forward`` is replaced by this.

    Args:
        net: the layer, a ``GatedDeltaNet`` of transformers with separate projections.
        hidden_states: [1, T, H].
        delta_plan: the plan, passed through the language model's keyword arguments.

    Returns:
        [1, T, H].
    """
    hidden = hidden_states[0]
    plan = delta_plan
    rates = net.in_proj_b(hidden).sigmoid()
    # Logarithms in bfloat16 would forget ten times too fast or slow.
    decays = -net.A_log.float().exp() * functional.softplus(net.in_proj_a(hidden).float() + net.dt_bias)
    mixed = to_slots(net.in_proj_qkv(hidden), plan)
    rates = to_slots(rates, plan) * plan.is_real.to(rates.dtype)
    decays = to_slots(decays, plan) * plan.is_real

    def compute(rows: Rows, before: Tensor | None, state: Tensor | None) -> tuple[Tensor, Tensor]:
        inputs = _convolved(net.conv1d, rows.cut(mixed), before)
        query, key, value = inputs.split([net.key_dim, net.key_dim, net.value_dim], dim=-1)
        out, last = plan.rule(
            query.unflatten(-1, (-1, net.head_k_dim)),
            key.unflatten(-1, (-1, net.head_k_dim)),
            value.unflatten(-1, (-1, net.head_v_dim)),
            rows.cut(decays),
            rows.cut(rates),
            state,
        )
        return out.flatten(0, 1), last

    found = [compute(rows, None, None) for rows in plan.prompts]
    states = torch.cat([last for _, last in found])
    inputs_before = _last_inputs(mixed, plan, net.conv_kernel_size - 1)
    outs = [out for out, _ in found]
    outs += [compute(rows, _handed_on(inputs_before, rows), _handed_on(states, rows))[0] for rows in plan.responses]
    core = from_slots(torch.cat(outs).flatten(1), plan)
    gated = net.norm(core.reshape(-1, net.head_v_dim), net.in_proj_z(hidden).reshape(-1, net.head_v_dim))
    out: Tensor = net.out_proj(gated.reshape(len(hidden), -1))
    return out[None]


def use_packed_delta_nets(language: nn.Module, attribute: str) -> None:
    """Let a language model's gated delta nets keep to the segments of packed sequences.

    Args:
        language: the language model of transformers; changed in place.
        attribute: the name under which such layers hold their gated delta net.
    """
    for layer in language.layers:  # type: ignore[union-attr]  # a ModuleList
        net = getattr(layer, attribute, None)
        if net is not None:
            net.forward = partial(packed_delta_net, net)
