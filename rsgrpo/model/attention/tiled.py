"""Attention over a packed sequence in tiles, on any device.

Prompts of similar length are padded to a rectangle, and so are responses of similar length. A prompt's
queries are causal over the prompt; a response's queries see their prompt and their own past, as two sets
of keys under one softmax. A sibling is never seen, no [T, T] mask is built, and a prompt's keys are not
copied for its responses where prompts are long.

Scores exist a tile at a time, small enough for the processor's cache, and the backward pass computes
them once more (Dao et al., arXiv 2205.14135, §3.1), so a layer keeps no scores at all.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rsgrpo.model.attention.slots import from_slots, to_slots
from rsgrpo.model.attention.tiled_plan import Rectangle, TiledPlan

# Scores of a tile, 4 MiB in float32, and the fewest query positions of a tile: below, products get slow. A GPU
# wants few large products: 128 MiB.
_TILE_SCORES = 2**20
_TILE_SCORES_GPU = 2**25
_MIN_QUERIES = 32


@dataclass(frozen=True, slots=True)
class _Tile:
    """Queries that are computed together: segments ``first:last``, their positions ``start:stop``."""

    first: int
    last: int
    start: int
    stop: int

    def cut(self, heads: Tensor, num_key_heads: int) -> Tensor:
        """Cut out [N, query heads, W, x] as [segments · key heads, queries of the heads that share a key head, x]."""
        part = heads[self.first : self.last, :, self.start : self.stop]
        return part.reshape(len(part) * num_key_heads, -1, part.shape[-1])

    def put(self, heads: Tensor, values: Tensor) -> None:
        """Write values to where :meth:`cut` took them from."""
        part = heads[self.first : self.last, :, self.start : self.stop]
        part.copy_(values.view(part.shape))


def _tiles(rectangle: Rectangle, num_heads: int, device: torch.device) -> Iterator[_Tile]:
    """Several whole segments a tile, or stretches of one, so that a tile's scores stay small."""
    tile_scores = _TILE_SCORES if device.type == "cpu" else _TILE_SCORES_GPU
    scores_a_query = num_heads * (rectangle.num_prompt_keys + rectangle.width)
    segments = max(1, tile_scores // (scores_a_query * rectangle.width))
    length = rectangle.width if segments > 1 else max(_MIN_QUERIES, tile_scores // scores_a_query)
    for first in range(0, rectangle.count, segments):
        for start in range(0, rectangle.width, length):
            yield _Tile(first, min(first + segments, rectangle.count), start, min(start + length, rectangle.width))


@dataclass(frozen=True, slots=True, eq=False)
class _Heads:
    """A rectangle's queries, keys and values (or their gradients), heads before positions.

    Attributes:
        query: [N, query heads, W, D], float32 or better, already scaled.
        key: [N, key heads, W, D], float32 or better.
        value: [N, key heads, W, D], float32 or better.
    """

    query: Tensor
    key: Tensor
    value: Tensor

    @classmethod
    def of(cls, slots: Tensor, rectangle: Rectangle, num_heads: int, scaling: float) -> _Heads:
        """Cut the rectangle out of slots [S, query heads + 2 · key heads, D], in float32 or better."""
        num_key_heads = (slots.shape[1] - num_heads) // 2
        rows = rectangle.rows(slots).transpose(1, 2).to(torch.promote_types(slots.dtype, torch.float32))
        query, key, value = torch.split(rows, [num_heads, num_key_heads, num_key_heads], dim=1)
        return cls(query.contiguous() * scaling, key.contiguous(), value.contiguous())

    def zeros(self) -> _Heads:
        """Zeros of the rectangle's shape, to add gradients to."""
        return _Heads(torch.zeros_like(self.query), torch.zeros_like(self.key), torch.zeros_like(self.value))

    def write(self, slots: Tensor, rectangle: Rectangle, scaling: float) -> None:
        """Write gradients to where :meth:`of` took the values from."""
        together = torch.cat([self.query * scaling, self.key, self.value], dim=1)
        rectangle.rows(slots).copy_(together.transpose(1, 2))


class _OwnKeys:
    """The keys of a tile's own segments: every position up to the query's."""

    def __init__(self, own: _Heads, tile: _Tile) -> None:
        self._where = (slice(tile.first, tile.last), slice(None), slice(0, tile.stop))
        self.key = own.key[self._where].flatten(0, 1)
        self.value = own.value[self._where].flatten(0, 1)
        self._start, self._length = tile.start, tile.stop - tile.start

    def hide(self, scores: Tensor) -> None:
        """Put -inf where a query would see what comes after it."""
        future = scores.new_full((self._length, self._length), -torch.inf).triu(1)
        scores.view(-1, self._length, scores.shape[-1])[..., self._start :] += future

    def add(self, into: Tensor, grad: Tensor) -> None:
        """Add gradients of keys (or values) to those of the rectangle."""
        part = into[self._where]
        part += grad.view(part.shape)


class _PromptKeys:
    """The keys of the prompts of a tile's segments: one prompt as it stands, or copies of several."""

    def __init__(self, prompts: _Heads, rectangle: Rectangle, tile: _Tile) -> None:
        self._owner = rectangle.owner[tile.first : tile.last]
        self._one: tuple[int, slice, slice] | None = None
        self._hidden: Tensor | None = None
        if tile.last - tile.first == 1:
            place, length = rectangle.prompts[tile.first]
            self._one = (place, slice(None), slice(0, length))
            self.key, self.value = prompts.key[self._one], prompts.value[self._one]
            return
        if rectangle.hidden is not None:
            self._hidden = rectangle.hidden[tile.first : tile.last, None]
        self.key = prompts.key.index_select(0, self._owner).flatten(0, 1)
        self.value = prompts.value.index_select(0, self._owner).flatten(0, 1)

    def hide(self, scores: Tensor) -> None:
        """Put -inf at the prompts' padding."""
        if self._hidden is not None:
            scores.view(len(self._owner), -1, scores.shape[-1]).add_(self._hidden)

    def add(self, into: Tensor, grad: Tensor) -> None:
        """Add gradients of keys (or values) to those of the prompts."""
        if self._one is not None:
            into[self._one] += grad
        else:
            into.index_add_(0, self._owner, grad.view(len(self._owner), *into.shape[1:]))


_Keys = _OwnKeys | _PromptKeys


def _key_sets(own: _Heads, prompts: _Heads, rectangle: Rectangle, tile: _Tile) -> list[_Keys]:
    """The sets of keys that a tile's queries see."""
    return [_OwnKeys(own, tile), *([_PromptKeys(prompts, rectangle, tile)] if rectangle.prompts else [])]


def _forward_tile(query: Tensor, sets: Sequence[_Keys]) -> tuple[Tensor, Tensor]:
    """Output [B, M, D] and log-sum-exp of the scores [B, M, 1], over all sets of keys together."""
    scores = [torch.bmm(query, keys.key.transpose(1, 2)) for keys in sets]
    for keys, own in zip(sets, scores, strict=True):
        keys.hide(own)
    top = torch.stack([own.amax(-1) for own in scores]).amax(0)[..., None]
    total = torch.zeros_like(top)
    out = torch.zeros_like(query)
    for keys, own in zip(sets, scores, strict=True):
        total += own.sub_(top).exp_().sum(-1, keepdim=True)
        out.baddbmm_(own, keys.value)
    return out.div_(total), total.log_().add_(top)


def _backward_tile(cuts: Sequence[Tensor], sets: Sequence[tuple[_Keys, _Heads]]) -> Tensor:
    """Gradient [B, M, D] of a tile's queries; those of its keys are added up where they belong.

    Args:
        cuts: queries [B, M, D], upstream gradients [B, M, D], log-sum-exp of the scores [B, M, 1], and
            upstream · output [B, M, 1].
        sets: keys, and where their gradients go.
    """
    query, upstream, normaliser, offset = cuts
    grad_query = torch.zeros_like(query)
    for keys, grads in sets:
        shares = torch.bmm(query, keys.key.transpose(1, 2)).sub_(normaliser)
        keys.hide(shares)
        shares.exp_()
        keys.add(grads.value, torch.bmm(shares.transpose(1, 2), upstream))
        # d loss / d score = share · (upstream · value - upstream · output)
        shares.mul_(torch.bmm(upstream, keys.value.transpose(1, 2)).sub_(offset))
        grad_query.baddbmm_(shares, keys.key)
        keys.add(grads.key, torch.bmm(shares.transpose(1, 2), query))
    return grad_query


class _TiledAttention(torch.autograd.Function):
    """Slots of queries, keys and values [S, query heads + 2 · key heads, D] -> outputs [S, query heads, D]."""

    @staticmethod
    def forward(ctx: Any, slots: Tensor, plan: TiledPlan, num_heads: int, scaling: float) -> Tensor:
        out = slots.new_empty(len(slots), num_heads, slots.shape[2])
        normaliser = torch.empty_like(out[..., :1], dtype=torch.promote_types(slots.dtype, torch.float32))
        for block in plan.blocks:
            prompts = _Heads.of(slots, block.prompts, num_heads, scaling)
            for rectangle in (block.prompts, *block.responses):
                own = _Heads.of(slots, rectangle, num_heads, scaling) if rectangle.prompts else prompts
                out_heads, normaliser_heads = (rectangle.rows(x).transpose(1, 2) for x in (out, normaliser))
                for tile in _tiles(rectangle, num_heads, slots.device):
                    query = tile.cut(own.query, own.key.shape[1])
                    values, normalisers = _forward_tile(query, _key_sets(own, prompts, rectangle, tile))
                    tile.put(out_heads, values)
                    tile.put(normaliser_heads, normalisers)
        ctx.save_for_backward(slots, out, normaliser)
        ctx.plan, ctx.num_heads, ctx.scaling = plan, num_heads, scaling
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        slots, out, normaliser = ctx.saved_tensors
        num_heads: int = ctx.num_heads
        dtype = normaliser.dtype
        offset = (grads[0].to(dtype) * out).sum(-1, keepdim=True)
        grad_slots = torch.empty_like(slots)
        for block in ctx.plan.blocks:
            prompts = _Heads.of(slots, block.prompts, num_heads, ctx.scaling)
            grad_prompts = prompts.zeros()
            for rectangle in (*block.responses, block.prompts):
                own = _Heads.of(slots, rectangle, num_heads, ctx.scaling) if rectangle.prompts else prompts
                grad_own = own.zeros() if rectangle.prompts else grad_prompts
                given = [rectangle.rows(x).transpose(1, 2).to(dtype) for x in (grads[0], normaliser, offset)]
                for tile in _tiles(rectangle, num_heads, slots.device):
                    cuts = [tile.cut(x, own.key.shape[1]) for x in (own.query, *given)]
                    sets = zip(_key_sets(own, prompts, rectangle, tile), (grad_own, grad_prompts), strict=False)
                    tile.put(grad_own.query, _backward_tile(cuts, list(sets)))
                grad_own.write(grad_slots, rectangle, ctx.scaling)
        return grad_slots, None, None, None


def tiled_attention(query: Tensor, key: Tensor, value: Tensor, plan: TiledPlan, scaling: float) -> Tensor:
    """Attention over a packed sequence, a tile of scores at a time.

    Args:
        query: [T, query heads, D].
        key: [T, key heads, D].
        value: [T, key heads, D].
        plan: the plan, which says who attends to whom.
        scaling: the factor of the scores.

    Returns:
        [T, query heads, D] in the precision of the inputs; scores and sums are float32 (float64 where the inputs are).
    """
    together = torch.cat([query, key, value], dim=1)
    slots = to_slots(together, plan)
    out: Tensor = _TiledAttention.apply(slots, plan, query.shape[1], scaling)  # type: ignore[no-untyped-call]
    return from_slots(out, plan)
