"""Attention over packed sequences in which siblings share their prompt.

Backends behind one function, chosen by the plan that the sequence comes with:

* :class:`~.tiled_plan.TiledPlan` (any device): a tile of scores at a time, through cache or fast memory.
* :class:`~.varlen.VarlenPlan` (CUDA): FlashAttention over ragged sequences; keys and values of a prompt are
  repeated for each of its responses, queries are not.
* :class:`~.flex.FlexPlan` (CUDA; on a CPU forward only): a compiled kernel with a block mask.

The vision tower goes through the same backends, window by window (``windows.py``).
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rsgrpo.errors import RsgrpoError, shown
from rsgrpo.model.attention.delta_rule import RuleChoice
from rsgrpo.model.attention.flex import FlexPlan, flex_packed_attention, flex_plan
from rsgrpo.model.attention.tiled import tiled_attention
from rsgrpo.model.attention.tiled_plan import TiledPlan, tiled_plan
from rsgrpo.model.attention.varlen import VarlenPlan, flash_kernel_name, varlen_attention, varlen_plan
from rsgrpo.model.attention.windows import VISION_ATTENTION_NAMES, grouped_window_attention, window_attention
from rsgrpo.model.micro_batches import PackedSequence, Segment, pack

ATTENTION_NAME = "rsgrpo_packed"

AttentionPlan = TiledPlan | VarlenPlan | FlexPlan


class AttentionUnavailableError(RsgrpoError):
    """``model.attention`` asks for what this machine cannot do."""


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
    """Attention of one layer over a packed sequence, as transformers calls it.

    Args:
        module: the layer that calls; not used.
        query: [1, query heads, T, D], rotary positions applied.
        key: [1, key heads, T, D].
        value: [1, key heads, T, D].
        attention_mask: must be None; the plan says who sees whom.
        scaling: the factor of the scores.
        attention_plan: the plan, passed through the language model's keyword arguments.

    Returns:
        The outputs [1, T, query heads, D], and None in place of the attention weights.
    """
    states = (query[0].transpose(0, 1), key[0].transpose(0, 1), value[0].transpose(0, 1))
    if isinstance(attention_plan, VarlenPlan):
        return varlen_attention(*states, attention_plan, scaling)[None], None
    if isinstance(attention_plan, FlexPlan):
        return flex_packed_attention(*states, attention_plan, scaling)[None], None
    return tiled_attention(*states, attention_plan, scaling)[None], None


def register_packed_attention() -> None:
    """Make our attention functions known to transformers under their names."""
    from transformers import AttentionInterface

    AttentionInterface.register(ATTENTION_NAME, packed_attention)
    AttentionInterface.register(VISION_ATTENTION_NAMES["varlen"], window_attention)
    AttentionInterface.register(VISION_ATTENTION_NAMES["tiled"], grouped_window_attention)


# Kernels fail in their own ways where the machine or the build does not have them.
_KERNEL_ERRORS = (ImportError, NotImplementedError, RuntimeError, TypeError)


def make_plan(backend: str, packed: PackedSequence, *, device: torch.device) -> AttentionPlan:
    """The plan that leads a sequence through a backend.

    Args:
        backend: the backend that :func:`choose_backend` chose.
        packed: the packed sequence, which says where everything stands.
        device: the device that the model is on.
    """
    if backend == "varlen":
        return varlen_plan(packed, device=device)
    if backend == "flex":
        return flex_plan(packed, device=device)
    return tiled_plan(packed, device=device)


def _trial(backend: str, packed: PackedSequence, *, device: torch.device, dtype: torch.dtype) -> list[Tensor]:
    """Output and gradients of a backend on given random inputs, float32."""
    generator = torch.Generator(device).manual_seed(0)
    inputs = [
        torch.randn(1, heads, packed.num_tokens, 64, device=device, dtype=dtype, generator=generator).requires_grad_()
        for heads in (4, 2, 2)
    ]
    plan = make_plan(backend, packed, device=device)
    query, key, value = inputs
    out, _ = packed_attention(nn.Identity(), query, key, value, None, scaling=0.125, attention_plan=plan)
    return [part.detach().float() for part in (out, *torch.autograd.grad(out.float().sin().sum(), inputs))]


@functools.cache
def backend_problem(backend: str, *, device: torch.device, dtype: torch.dtype) -> str:
    """Why a fast backend cannot be used here; empty if it can.

    The backend is tried on a small sequence against the tiled one, output and gradients: a build without the kernel, or
    one that aligns causal queries to the start of the keys instead of their end, must not train silently wrong.

    Args:
        backend: ``varlen`` or ``flex``.
        device: the device that the model is on.
        dtype: the precision of the computation.
    """
    if device.type != "cuda":
        return f"the device is {device.type}"
    if backend == "varlen" and dtype != torch.bfloat16:
        return f"the precision is {dtype}, not bfloat16"
    packed = pack([Segment(group=0, responses=(0, 1), num_prompt_tokens=5, response_lengths=(4, 3))])
    expected = _trial("tiled", packed, device=device, dtype=dtype)
    try:
        got = _trial(backend, packed, device=device, dtype=dtype)
    except _KERNEL_ERRORS as error:
        return f"its kernel does not run: {type(error).__name__}: {shown(error)}"
    gap = max(float((a - b).abs().max()) for a, b in zip(got, expected, strict=True))
    # A gap that is not a number is none, too.
    return "" if gap < 0.05 else f"its kernel is off by {gap:.3f} on a shared prefix"


_DOORS = {"sdpa": "tiled", "flash": "varlen", "flex": "flex"}


@dataclass(frozen=True, kw_only=True, slots=True)
class PassedOver:
    """A setting of ``model.attention`` that ``auto`` could not take.

    Attributes:
        setting: the setting that was not taken, ``flash`` or ``flex``.
        reason: why it cannot be used here.
    """

    setting: str
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class BackendChoice:
    """What attention over sequences is computed with, and why.

    Attributes:
        setting: the setting of ``model.attention`` that is used: ``flash``, ``flex`` or ``sdpa``.
        device: the kind of device, ``cuda`` or ``cpu``.
        kernel: whose kernel computes ``flash``: ``flash-attn`` or ``torch``; else empty.
        passed_over: the faster settings that ``auto`` tried before.
        delta_nets: what computes the layers that do not attend; None: there are none.
    """

    setting: str
    device: str
    kernel: str = ""
    passed_over: tuple[PassedOver, ...] = ()
    delta_nets: RuleChoice | None = None

    @property
    def backend(self) -> str:
        """The name of the backend: ``tiled``, ``varlen`` or ``flex``."""
        return _DOORS[self.setting]

    def lines(self) -> tuple[str, ...]:
        """What a person should read: the choice, and a warning where it makes a run much slower than it could be.

        Example:
            ``attention: sdpa on cpu; not flash: the device is cpu; not flex: the device is cpu``.
        """
        taken = f"{self.setting} ({self.kernel})" if self.kernel else self.setting
        reasons = [f"not {passed.setting}: {passed.reason}" for passed in self.passed_over]
        lines = ["; ".join([f"attention: {taken} on {self.device}", *reasons])]
        if self.device != "cpu" and self.setting == "sdpa" and self.passed_over:
            lines.append(
                "warning: model.attention=auto ended on sdpa, the slowest; set flash or flex to stop where it is "
                "missing"
            )
        return (*lines, *(self.delta_nets.lines() if self.delta_nets else ()))


def choose_backend(setting: str, *, device: torch.device, dtype: torch.dtype) -> BackendChoice:
    """Which backend ``model.attention`` means here.

    Args:
        setting: ``auto`` (the first that works of flash, flex, sdpa), or one of them, which nothing else replaces.
        device: the device that the model is on.
        dtype: the precision of the computation.

    Raises:
        AttentionUnavailableError: ``flash`` or ``flex`` is asked for without a GPU or its kernel, or ``flash`` in
            float32.
    """
    passed_over: list[PassedOver] = []
    for name in {"auto": ("flash", "flex"), "sdpa": ()}.get(setting, (setting,)):
        problem = backend_problem(_DOORS[name], device=device, dtype=dtype)
        if not problem:
            kernel = flash_kernel_name() if name == "flash" else ""
            return BackendChoice(setting=name, device=device.type, kernel=kernel, passed_over=tuple(passed_over))
        if setting != "auto":
            raise AttentionUnavailableError(
                f"model.attention={setting} cannot be used: {problem}; set model.attention=auto"
            )
        passed_over.append(PassedOver(setting=name, reason=problem))
    return BackendChoice(setting="sdpa", device=device.type, passed_over=tuple(passed_over))
