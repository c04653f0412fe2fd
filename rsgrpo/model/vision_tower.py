"""The vision tower: which attention it uses, taking it out of the model, and what it hands to the language model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rsgrpo.model.attention.windows import VISION_ATTENTION_NAMES

if TYPE_CHECKING:  # seconds of imports for a name
    from transformers import PreTrainedModel


def use_window_attention(tower: PreTrainedModel, backend: str) -> None:
    """Let a vision tower compute the windows of a layer in few calls.

    Args:
        tower: the vision tower, loaded with torch's attention, which it calls once a window.
        backend: the attention backend of the language model's sequences.
    """
    tower.config._attn_implementation = VISION_ATTENTION_NAMES[backend]


def take_vision_tower(model: PreTrainedModel) -> PreTrainedModel:
    """Take the frozen tower out of a model whose pages' features are stored: it needs no place in DeepSpeed then.

    Args:
        model: the model as :func:`open_model` returns it; every sequence must come with ``cached_features`` from now
            on.
    """
    visual: PreTrainedModel = model.model.visual
    model.model.visual = None
    return visual


def tower_features(visual: PreTrainedModel, pixels: Tensor, grid: Tensor) -> Tensor:
    """What a vision tower makes of pages, levels for deeper layers included.

    Args:
        visual: the tower.
        pixels: [patches, numbers of a patch], of all pages one after the other.
        grid: [pages, 3] int64, frames, rows and columns of patches of each page.

    Returns:
        [tokens, (1 + levels) · H] in the tower's precision: features of image tokens, then those of each level.
    """
    found = visual(pixels.to(visual.dtype), grid_thw=grid)
    levels = getattr(found, "deepstack_features", None) or ()
    features: Tensor = torch.cat([found.pooler_output, *levels], dim=1) if levels else found.pooler_output
    return features


def deeper_levels(positions: Tensor, rows: Tensor, levels: Sequence[Tensor], num_tokens: int) -> dict[str, object]:
    """What the language model adds to the states of image tokens behind its first layers (DeepStack, arXiv 2406.04334).

    Args:
        positions: [I] int64, the positions of image tokens in the sequence.
        rows: [I] int64, the feature row that each of them shows.
        levels: [features, H] each, for the first layer, the second, and so on; may be empty.
        num_tokens: the length of the sequence.

    Returns:
        The language model's arguments; none without levels. It takes a mask of image tokens, and their features in the
        sequence's order.
    """
    if not levels:
        return {}
    rows = rows[positions.argsort()]
    is_image = torch.zeros(num_tokens, dtype=torch.bool, device=positions.device).index_fill(0, positions, True)
    return {"visual_pos_masks": is_image[None], "deepstack_visual_embeds": [level[rows] for level in levels]}
