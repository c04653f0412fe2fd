"""Qwen2-VL (arXiv 2409.12191): every block of the tower sees a whole page, boxes in thousandths of its sides."""

from __future__ import annotations

from typing import Any

from rsgrpo.config import QuickstartConfig
from rsgrpo.config.model import ATTENDING_TARGETS
from rsgrpo.model.families.family import Family, LanguageShape, VisionShape


def _vision_shape(vision: Any) -> VisionShape:
    return VisionShape(
        hidden=vision.embed_dim,  # ``hidden_size`` is the language model's
        intermediate=vision.mlp_ratio * vision.embed_dim,
        mlp_matrices=2,
        mlp_keeps=3,  # of GELU's fast form, the input and its sigmoid, and their product
        norm="layer",
        full_layers=vision.depth,
        window_patches=0,
    )


def _small_vision(sizes: QuickstartConfig) -> dict[str, Any]:
    return {"embed_dim": sizes.vision_hidden, "mlp_ratio": 4, "hidden_size": sizes.text_hidden}


FAMILY = Family(
    name="Qwen2-VL",
    model_type="qwen2_vl",
    config_class="Qwen2VLConfig",
    model_class="Qwen2VLForConditionalGeneration",
    processor_class="Qwen2VLProcessor",
    image_processor_class="Qwen2VLImageProcessor",
    video_processor_class="Qwen2VLVideoProcessor",
    transformers_version="4.45",
    vllm_version="0.6.1",
    patch_pixels=14,
    merge=2,
    pixel_statistics=None,
    box_coordinates="permille",
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
