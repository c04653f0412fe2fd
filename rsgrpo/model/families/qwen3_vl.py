"""Qwen3-VL, dense (arXiv 2511.21631): features of three depths of the tower (DeepStack), patches of 16 pixels.

Rotary positions are interleaved and queries and keys are normalised, which transformers and vLLM both do by
themselves; boxes are in thousandths of the page's sides.
"""

from __future__ import annotations

from typing import Any

from rsgrpo.config import QuickstartConfig
from rsgrpo.config.model import ATTENDING_TARGETS
from rsgrpo.model.families.family import Family, LanguageShape, VisionShape

_SMALL_GRID = 8  # positions a side that a small model's tower learns, and others are interpolated from
_MOST_LEVELS = 3


def tower_shape(vision: Any) -> VisionShape:
    """Give the blocks of a tower of Qwen3, which has no windows.

    Args:
        vision: the tower's config.
    """
    return VisionShape(
        hidden=vision.hidden_size,
        intermediate=vision.intermediate_size,
        mlp_matrices=2,
        mlp_keeps=2,  # GELU's input and its result
        norm="layer",
        full_layers=vision.depth,
        window_patches=0,
    )


def _small_text(sizes: QuickstartConfig) -> dict[str, Any]:
    return {"head_dim": sizes.text_hidden // sizes.text_heads}


def small_tower(sizes: QuickstartConfig) -> dict[str, Any]:
    """Give what the config of a small model's tower needs, deeper levels left out.

    Args:
        sizes: the sizes of the model.
    """
    return {
        "hidden_size": sizes.vision_hidden,
        "intermediate_size": 4 * sizes.vision_hidden,
        "out_hidden_size": sizes.text_hidden,
        "num_position_embeddings": _SMALL_GRID**2,
    }


def _small_vision(sizes: QuickstartConfig) -> dict[str, Any]:
    levels = range(min(sizes.vision_layers, sizes.text_layers, _MOST_LEVELS))
    return {**small_tower(sizes), "deepstack_visual_indexes": list(levels)}


FAMILY = Family(
    name="Qwen3-VL",
    model_type="qwen3_vl",
    config_class="Qwen3VLConfig",
    model_class="Qwen3VLForConditionalGeneration",
    processor_class="Qwen3VLProcessor",
    image_processor_class="Qwen2VLImageProcessor",
    video_processor_class="Qwen3VLVideoProcessor",
    transformers_version="4.57",
    vllm_version="0.11",
    patch_pixels=16,
    merge=2,
    pixel_statistics=((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    box_coordinates="permille",
    layer_kinds=("full_attention",),
    delta_net="",
    lora_targets=ATTENDING_TARGETS,
    written_prefixes=(),
    unread_prefixes=(),
    language_shape=lambda text: LanguageShape(normalises_heads=True),
    vision_shape=tower_shape,
    num_deepstack=lambda vision: len(vision.deepstack_visual_indexes),
    small_text=_small_text,
    small_rope={"mrope_interleaved": True},
    small_vision=_small_vision,
)
