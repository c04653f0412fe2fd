"""Configs of published models, as far as memory and time depend on them: no weights, no tokenizer."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rsgrpo.model.families.table import FAMILIES

_IDS = {"image_token_id": 1, "video_token_id": 2, "vision_start_token_id": 3, "vision_end_token_id": 4}
_VISION_OF_QWEN3 = {"num_heads": 16, "patch_size": 16, "num_position_embeddings": 2304}
_TEXT_OF_QWEN3_5 = {
    "vocab_size": 248320,
    "head_dim": 256,
    "linear_num_key_heads": 16,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "linear_conv_kernel_dim": 4,
    "full_attention_interval": 4,
    "mamba_ssm_dtype": "float32",
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 1e7,
        "mrope_section": [11, 11, 10],
        "mrope_interleaved": True,
        "partial_rotary_factor": 0.25,
    },
}


@dataclass(frozen=True, kw_only=True, slots=True)
class PublishedSize:
    """A model that recipes name.

    Attributes:
        family: the family's ``model_type``.
        num_parameters: how many parameters it has, without layers that guess several tokens ahead.
        text: the config of its language model.
        vision: the config of its tower.
        ties: whether head and embedding are one parameter.
    """

    family: str
    num_parameters: int
    text: dict[str, Any]
    vision: dict[str, Any]
    ties: bool


PUBLISHED = {
    "Qwen2-VL-7B": PublishedSize(
        family="qwen2_vl",
        num_parameters=8_291_375_616,
        text={
            "vocab_size": 152064,
            "hidden_size": 3584,
            "intermediate_size": 18944,
            "num_hidden_layers": 28,
            "num_attention_heads": 28,
            "num_key_value_heads": 4,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
        },
        vision={"depth": 32, "embed_dim": 1280, "mlp_ratio": 4, "num_heads": 16, "hidden_size": 3584, "patch_size": 14},
        ties=False,
    ),
    "Qwen3-VL-4B": PublishedSize(
        family="qwen3_vl",
        num_parameters=4_437_815_808,
        text={
            "vocab_size": 151936,
            "hidden_size": 2560,
            "intermediate_size": 9728,
            "num_hidden_layers": 36,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 5e6,
                "mrope_section": [24, 20, 20],
                "mrope_interleaved": True,
            },
        },
        vision={
            **_VISION_OF_QWEN3,
            "depth": 24,
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "out_hidden_size": 2560,
            "deepstack_visual_indexes": [5, 11, 17],
        },
        ties=True,
    ),
    "Qwen3.5-2B": PublishedSize(
        family="qwen3_5",
        num_parameters=2_213_241_664,
        text={
            **_TEXT_OF_QWEN3_5,
            "hidden_size": 2048,
            "intermediate_size": 6144,
            "num_hidden_layers": 24,
            "num_attention_heads": 8,
            "num_key_value_heads": 2,
            "linear_num_value_heads": 16,
        },
        vision={
            **_VISION_OF_QWEN3,
            "depth": 24,
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "out_hidden_size": 2048,
        },
        ties=True,
    ),
    "Qwen3.5-9B": PublishedSize(
        family="qwen3_5",
        num_parameters=9_409_813_744,
        text={
            **_TEXT_OF_QWEN3_5,
            "hidden_size": 4096,
            "intermediate_size": 12288,
            "num_hidden_layers": 32,
            "num_attention_heads": 16,
            "num_key_value_heads": 4,
            "linear_num_value_heads": 32,
        },
        vision={
            **_VISION_OF_QWEN3,
            "depth": 27,
            "hidden_size": 1152,
            "intermediate_size": 4304,
            "out_hidden_size": 4096,
        },
        ties=False,
    ),
}
"""Those models by name, of the families whose sizes differ in more than numbers."""


def write_config(name: str, folder: Path) -> Path:
    """Write a model's ``config.json`` into a folder, and give the folder back."""
    size = PUBLISHED[name]
    family = FAMILIES[size.family]
    content = family.of_transformers(family.config_class)(
        text_config={**size.text, "tie_word_embeddings": size.ties, "max_position_embeddings": 128000},
        vision_config=size.vision,
        tie_word_embeddings=size.ties,
        **_IDS,
    ).to_dict()
    (folder / "config.json").write_text(json.dumps(content))
    return folder
