"""How a packed sequence is laid out for the tiled backend: segments of similar length padded to rectangles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rsgrpo.model.micro_batches import IndexArray, PackedSequence

# Padding may cost this factor over the real attention work, and always this many scores: below that
# a further rectangle costs more in kernel launches than it saves.
_PADDING_FACTOR = 1.2
_FREE_SCORES = 200_000


@dataclass(frozen=True, slots=True, eq=False)
class Rectangle:
    """Segments of similar length side by side: prompts, or responses.

    Attributes:
        start: the first slot of the rectangle; segment i takes the slots from ``start + i · width``.
        count: N, the number of segments.
        width: W, the length of the longest segment.
        prompts: for each response the index of its prompt in the block, and that prompt's length; empty for prompts
            themselves.
        owner: [N] int64, for each response the index of its prompt in the block.
        num_prompt_keys: P, the length of the longest of these prompts; 0 for prompts themselves.
        hidden: [N, P] float32 to be added to scores, -inf at the padding of each response's prompt; None where nothing
            is padded.
    """

    start: int
    count: int
    width: int
    prompts: tuple[tuple[int, int], ...]
    owner: Tensor
    num_prompt_keys: int
    hidden: Tensor | None

    def rows(self, slots: Tensor) -> Tensor:
        """The rectangle's part of [S, ...] slots, as a view [N, W, ...]."""
        stop = self.start + self.count * self.width
        return slots[self.start : stop].view(self.count, self.width, *slots.shape[1:])


@dataclass(frozen=True, slots=True)
class Block:
    """Prompts of similar length, and the rectangles of all responses to them."""

    prompts: Rectangle
    responses: tuple[Rectangle, ...]


@dataclass(frozen=True, slots=True, eq=False)
class TiledPlan:
    """Index tensors of the tiled backend, made once a micro-batch and used by every layer.

    Attributes:
        blocks: the blocks in the order of their slots: prompts, then rectangles of responses, block by block.
        pad_index: [S] int64, the packed position that each slot holds; 0 in padding.
        is_real: [S, 1, 1] float32, 1 where the slot is no padding, else 0.
        unpad_index: [T] int64, the slot that holds each packed position.
    """

    blocks: tuple[Block, ...]
    pad_index: Tensor
    is_real: Tensor
    unpad_index: Tensor


def _similar(costs: Sequence[tuple[int, int]]) -> list[int]:
    """Where to cut a descending list of lengths so that padding to each part's first one costs little.

    Args:
        costs: (rows, columns) of each item's scores; rows descend, an item is padded to the part's first.

    Returns:
        How many items each part has.
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


def _hidden(prompt_lengths: IndexArray, width: int) -> Tensor | None:
    """[N, P] additive mask of padded prompts; None where no prompt is padded."""
    beyond = torch.arange(width)[None] >= torch.from_numpy(prompt_lengths)[:, None]
    return torch.zeros(beyond.shape).masked_fill_(beyond, -torch.inf) if beyond.any() else None


class _Layout:
    """Hands out slots; ``held`` is the packed position of each, -1 in padding."""

    def __init__(self) -> None:
        self.held: list[IndexArray] = []
        self.num_slots = 0

    def place(self, starts: Sequence[int], lengths: Sequence[int]) -> int:
        """Slots for segments padded to the first one's length; returns the first slot."""
        offsets = np.arange(lengths[0])
        self.held.append(
            np.where(offsets < np.array(lengths)[:, None], np.array(starts)[:, None] + offsets, -1).ravel()
        )
        first = self.num_slots
        self.num_slots += len(self.held[-1])
        return first


def tiled_plan(packed: PackedSequence, *, device: torch.device) -> TiledPlan:
    """Index tensors for a sequence, for the backend that works on any device.

    Args:
        packed: the packed sequence, which says where everything stands.
        device: the device that the model is on.
    """
    prompt_lengths = np.array([segment.num_prompt_tokens for segment in packed.segments], dtype=np.int64)
    by_prompt = sorted(range(len(packed.segments)), key=lambda i: (-prompt_lengths[i], i))
    blocks: list[Block] = []
    layout = _Layout()
    for size in _similar([(int(prompt_lengths[i]), int(prompt_lengths[i])) for i in by_prompt]):
        members, by_prompt = by_prompt[:size], by_prompt[size:]
        width = int(prompt_lengths[members[0]])
        first = layout.place([packed.prompt_starts[i] for i in members], [int(prompt_lengths[i]) for i in members])
        prompts = Rectangle(first, size, width, (), torch.arange(size, device=device), 0, None)
        responses: list[Rectangle] = []
        places = {segment: place for place, segment in enumerate(members)}
        ordered = sorted(
            (r for r, segment in enumerate(packed.response_segments) if segment in places),
            key=lambda r: (-packed.response_lengths[r], r),
        )
        lengths = [packed.response_lengths[r] for r in ordered]
        for count in _similar([(length, width + length) for length in lengths]):
            chosen, ordered = ordered[:count], ordered[count:]
            owner = np.array([places[packed.response_segments[r]] for r in chosen], dtype=np.int64)
            own_prompts = prompt_lengths[members][owner]
            hidden = _hidden(own_prompts, width)
            responses.append(
                Rectangle(
                    start=layout.place(
                        [packed.response_starts[r] for r in chosen], [packed.response_lengths[r] for r in chosen]
                    ),
                    count=count,
                    width=packed.response_lengths[chosen[0]],
                    prompts=tuple(zip(owner.tolist(), own_prompts.tolist(), strict=True)),
                    owner=torch.from_numpy(owner).to(device),
                    num_prompt_keys=width,
                    hidden=None if hidden is None else hidden.to(device),
                )
            )
        blocks.append(Block(prompts, tuple(responses)))
    held = np.concatenate(layout.held)
    is_real = held >= 0
    unpad_index = np.empty(packed.num_tokens, dtype=np.int64)
    unpad_index[held[is_real]] = np.flatnonzero(is_real)
    return TiledPlan(
        blocks=tuple(blocks),
        pad_index=torch.from_numpy(np.where(is_real, held, 0)).to(device),
        is_real=torch.from_numpy(is_real.astype(np.float32))[:, None, None].to(device),
        unpad_index=torch.from_numpy(unpad_index).to(device),
    )
