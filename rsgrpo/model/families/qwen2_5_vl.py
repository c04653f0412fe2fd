"""Qwen2.5-VL (arXiv 2502.13923): windows in the vision tower, boxes in pixels of the page as it is seen."""

from __future__ import annotations

from typing import Any

from rsgrpo.config import QuickstartConfig
from rsgrpo.config.model import ATTENDING_TARGETS
from rsgrpo.model.families.family import Family, LanguageShape, VisionShape

_WINDOW_PIXELS = 112  # of a small model: pages are small, too


def _vision_shape(vision: Any) -> VisionShape:
    return VisionShape(
        hidden=vision.hidden_size,
        intermediate=vision.intermediate_size,
        mlp_matrices=3,
        mlp_keeps=4,
        norm="rms",
        full_layers=len(vision.fullatt_block_indexes),
        window_patches=(vision.window_size // vision.patch_size) ** 2,
    )


def _small_vision(sizes: QuickstartConfig) -> dict[str, Any]:
    return {
        "hidden_size": sizes.vision_hidden,
        "intermediate_size": 3 * sizes.vision_hidden,
        "window_size": _WINDOW_PIXELS,
        "fullatt_block_indexes": [sizes.vision_layers - 1],
        "out_hidden_size": sizes.text_hidden,
    }


FAMILY = Family(
    name="Qwen2.5-VL",
    model_type="qwen2_5_vl",
    config_class="Qwen2_5_VLConfig",
    model_class="Qwen2_5_VLForConditionalGeneration",
    processor_class="Qwen2_5_VLProcessor",
    image_processor_class="Qwen2VLImageProcessor",
    video_processor_class="Qwen2VLVideoProcessor",
    transformers_version="4.49",
    vllm_version="0.7.2",
    patch_pixels=14,
    merge=2,
    pixel_statistics=None,
    box_coordinates="pixels",
    layer_kinds=("full_attention",),
    delta_net="",
    lora_targets=ATTENDING_TARGETS,
    written_prefixes=(("model.language_model.", "model."), ("model.visual.", "visual.")),
    unread_prefixes=(),
    language_shape=lambda text: LanguageShape(),
    vision_shape=_vision_shape,
    num_deepstack=lambda vision: 0,
    small_text=lambda sizes: {},
    small_rope={},
    small_vision=_small_vision,
)
