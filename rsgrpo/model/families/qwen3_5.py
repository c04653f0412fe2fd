"""Qwen3.5, dense (3.6 and 3.8 have the same structure): three of four layers are gated delta nets, not attention.

A gated delta net (arXiv 2412.06464) reads tokens in their order into a state of fixed size, so that packed sequences
have to hand it on from a prompt to its responses (:mod:`rsgrpo.model.attention.delta_net`). The other layers attend,
with a gate at their output and rotary positions in a part of each head; the tower is Qwen3-VL's without deeper levels.
"""

from __future__ import annotations

from typing import Any

from rsgrpo.config import QuickstartConfig
from rsgrpo.config.model import ATTENDING_TARGETS
from rsgrpo.model.families.family import DeltaNetShape, Family, LanguageShape
from rsgrpo.model.families.qwen3_vl import small_tower, tower_shape

_ATTENTION_INTERVAL = 4


def _language_shape(text: Any) -> LanguageShape:
    return LanguageShape(
        norm="centred_rms",
        normalises_heads=True,
        gates_attention=True,
        delta_nets=DeltaNetShape(
            layers=text.layer_types.count("linear_attention"),
            key_heads=text.linear_num_key_heads,
            value_heads=text.linear_num_value_heads,
            key_width=text.linear_key_head_dim,
            value_width=text.linear_value_head_dim,
            kernel=text.linear_conv_kernel_dim,
            # Published configs say so in a field that transformers does not know.
            has_float32_states=getattr(text, "mamba_ssm_dtype", None) == "float32",
        ),
    )


def _small_text(sizes: QuickstartConfig) -> dict[str, Any]:
    width = sizes.text_hidden // sizes.text_heads
    return {
        "head_dim": 2 * width,  # as in the smaller published models; half of it turns with the position
        # At least one layer of each kind, from two layers on.
        "full_attention_interval": min(_ATTENTION_INTERVAL, sizes.text_layers),
        "linear_key_head_dim": width,
        "linear_value_head_dim": width,
        "linear_num_key_heads": max(1, sizes.text_heads // 2),
        "linear_num_value_heads": sizes.text_heads,
    }


FAMILY = Family(
    name="Qwen3.5",
    model_type="qwen3_5",
    config_class="Qwen3_5Config",
    model_class="Qwen3_5ForConditionalGeneration",
    processor_class="Qwen3VLProcessor",
    image_processor_class="Qwen2VLImageProcessor",
    video_processor_class="Qwen3VLVideoProcessor",
    transformers_version="5.2",
    vllm_version="0.17",
    patch_pixels=16,
    merge=2,
    pixel_statistics=((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    box_coordinates="permille",
    layer_kinds=("full_attention", "linear_attention"),
    delta_net="linear_attn",
    lora_targets=(*ATTENDING_TARGETS, "in_proj_qkv", "in_proj_z", "out_proj"),
    written_prefixes=(),
    # Layers that guess several tokens ahead; transformers and the engines leave them out, too.
    unread_prefixes=("mtp.",),
    language_shape=_language_shape,
    vision_shape=tower_shape,
    num_deepstack=lambda vision: 0,
    small_text=_small_text,
    small_rope={"mrope_interleaved": True, "partial_rotary_factor": 0.5},
    small_vision=small_tower,
)
