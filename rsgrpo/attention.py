"""Attention over packed rows in which siblings share their prompt.

Doors behind one function, chosen by the plan that the row comes with:

* :class:`~rsgrpo.tiled_plan.TiledPlan` (any device): a tile of scores at a time, through cache or fast memory.
* :class:`~rsgrpo.varlen.VarlenPlan` (CUDA): FlashAttention over ragged sequences; keys and values of a prompt are
  repeated for each of its responses, queries are not.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from rsgrpo.batching import Piece, lay_out
from rsgrpo.errors import RsgrpoError
from rsgrpo.tiled import tiled_attention
from rsgrpo.tiled_plan import TiledPlan, tiled_plan
from rsgrpo.varlen import VISION_ATTENTION_NAME, VarlenPlan, varlen_attention, varlen_plan, window_attention

ATTENTION_NAME = "rsgrpo_packed"

AttentionPlan = TiledPlan | VarlenPlan


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
    return tiled_attention(*rows, attention_plan, scaling)[None], None


def register_packed_attention() -> None:
    """Make our attention functions known to transformers under their names."""
    from transformers import AttentionInterface

    AttentionInterface.register(ATTENTION_NAME, packed_attention)
    AttentionInterface.register(VISION_ATTENTION_NAME, window_attention)


def _varlen_problem(device: torch.device, dtype: torch.dtype) -> str:
    """Why the FlashAttention door cannot be used here; empty if it can.

    The door is tried on a small row against the tiled one: a build without the kernel, or one that
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
    expected = tiled_attention(query, key, value, tiled_plan(row, device=device), 0.125)
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
        ``tiled`` or ``varlen``.

    Raises:
        AttentionUnavailableError: ``flash`` without a GPU, in float32, or with a torch that lacks it.
    """
    if setting == "sdpa":
        return "tiled"
    problem = _varlen_problem(device, dtype)
    if problem and setting == "flash":
        raise AttentionUnavailableError(f"model.attention=flash cannot be used: {problem}; set model.attention=auto")
    return "tiled" if problem else "varlen"
