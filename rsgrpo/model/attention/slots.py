"""A packed sequence laid out in slots, and back: every position stands in one slot, further slots are padding."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor


class SlotPlan(Protocol):
    """Where each position of a packed sequence stands."""

    @property
    def pad_index(self) -> Tensor:
        """[S] int64: the position in each slot; any position where the slot is padding."""

    @property
    def unpad_index(self) -> Tensor:
        """[T] int64: the slot of each position."""

    @property
    def is_real(self) -> Tensor:
        """[S, 1]: 1 in slots that hold a position, 0 in padding."""


class _Pad(torch.autograd.Function):
    """Sequence -> slots. Every packed position stands in exactly one slot, so the gradient is a gather as well."""

    @staticmethod
    def forward(ctx: Any, packed: Tensor, plan: SlotPlan) -> Tensor:
        ctx.plan = plan
        return packed.index_select(0, plan.pad_index)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return grads[0].index_select(0, ctx.plan.unpad_index), None


class _Unpad(torch.autograd.Function):
    """Slots -> sequence; padding gets zero gradient."""

    @staticmethod
    def forward(ctx: Any, slots: Tensor, plan: SlotPlan) -> Tensor:
        ctx.plan = plan
        return slots.index_select(0, plan.unpad_index)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        plan: SlotPlan = ctx.plan
        return grads[0].index_select(0, plan.pad_index).mul_(plan.is_real.to(grads[0].dtype)), None


def to_slots(packed: Tensor, plan: SlotPlan) -> Tensor:
    """[T, …] to [S, …]. The gradient takes what stands in real slots, so what is made of padding must not count."""
    slots: Tensor = _Pad.apply(packed, plan)  # type: ignore[no-untyped-call]  # torch types no apply
    return slots


def from_slots(slots: Tensor, plan: SlotPlan) -> Tensor:
    """[S, x] to [T, x]; padding gets zero gradient."""
    packed: Tensor = _Unpad.apply(slots, plan)  # type: ignore[no-untyped-call]  # torch types no apply
    return packed
