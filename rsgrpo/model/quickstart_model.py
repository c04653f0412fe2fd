"""The quickstart's own model: the real architecture of its family, tokenizer rules and processor, only small."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from transformers import PreTrainedConfig, PreTrainedModel, ProcessorMixin, Qwen2Tokenizer

from rsgrpo.config import QuickstartConfig
from rsgrpo.data.synthetic.quickstart_tokenizer import CHAT_TEMPLATE, SPECIAL_TOKENS, build_tokenizer
from rsgrpo.io.atomic_files import new_folder
from rsgrpo.model.families.family import Family
from rsgrpo.model.families.table import FAMILIES

_MAX_TOKENS = 16  # of a page
_MAX_POSITIONS = 4096


def build_processor(family: Family, tokenizer: Qwen2Tokenizer) -> ProcessorMixin:
    """The processor for small pages: same patches, merging and normalisation as the full models'.

    Args:
        family: the family of the model.
        tokenizer: the tokenizer that ``build_tokenizer`` made.
    """
    token_area = family.token_pixels**2
    sizes = {
        "size": {"shortest_edge": token_area, "longest_edge": _MAX_TOKENS * token_area},
        "patch_size": family.patch_pixels,
        "merge_size": family.merge,
    }
    normal = family.pixel_statistics
    statistics = {"image_mean": list(normal[0]), "image_std": list(normal[1])} if normal is not None else {}
    processor: ProcessorMixin = family.of_transformers(family.processor_class)(
        image_processor=family.of_transformers(family.image_processor_class)(**sizes, **statistics),
        tokenizer=tokenizer,
        video_processor=family.of_transformers(family.video_processor_class)(**sizes),
        chat_template=CHAT_TEMPLATE,
    )
    return processor


def model_config(config: QuickstartConfig, tokenizer: Qwen2Tokenizer) -> PreTrainedConfig:
    """Settings of the small model; its ids are the tokenizer's.

    Args:
        config: the sizes of the model.
        tokenizer: the tokenizer that ``build_tokenizer`` made.

    Returns:
        A config of the family; its embedding has ``vocabulary_tokens`` rows, maybe more than the tokenizer has tokens.
    """
    family = FAMILIES[config.family]
    ids = {token: int(tokenizer.convert_tokens_to_ids(token)) for token in SPECIAL_TOKENS}
    half_head = config.text_hidden // config.text_heads // 2
    frame_dims = half_head // 4  # the full model splits its 64 rotary pairs 16 : 24 : 24
    row_dims = (half_head - frame_dims) // 2
    found: PreTrainedConfig = family.of_transformers(family.config_class)(
        text_config={
            "vocab_size": config.vocabulary_tokens,
            "hidden_size": config.text_hidden,
            "intermediate_size": 3 * config.text_hidden,
            "num_hidden_layers": config.text_layers,
            "num_attention_heads": config.text_heads,
            "num_key_value_heads": max(1, config.text_heads // 2),
            "max_position_embeddings": _MAX_POSITIONS,
            "rms_norm_eps": 1e-6,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": [half_head - 2 * row_dims, row_dims, row_dims],
                **family.small_rope,
            },
            "bos_token_id": ids["<|endoftext|>"],
            "eos_token_id": ids["<|im_end|>"],
            "pad_token_id": ids["<|endoftext|>"],
            "tie_word_embeddings": True,
            **family.small_text(config),
        },
        vision_config={
            "depth": config.vision_layers,
            "num_heads": config.vision_heads,
            "patch_size": family.patch_pixels,
            "spatial_merge_size": family.merge,
            "temporal_patch_size": 2,
            **family.small_vision(config),
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=True,
    )
    return found


def build_quickstart_model(config: QuickstartConfig, folder: Path, seed: int, corpus: Iterable[str]) -> Path:
    """Write the small model's folder: config, random weights, tokenizer, processor.

    The folder appears all at once; a complete one is left as it is.

    Args:
        config: the sizes of the model.
        folder: the folder to write.
        seed: the seed of the weights.
        corpus: texts that the tokenizer learns from.

    Returns:
        The same ``folder``; ``from_pretrained``, the trainer and the engines load it like any of its family.
    """
    if (folder / "config.json").exists():
        return folder
    family = FAMILIES[config.family]
    tokenizer = build_tokenizer(corpus, config.vocabulary_tokens)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = family.model(model_config(config, tokenizer))
        for _ in range(2):  # the recorded results are those of the second draw
            _scale_to_width(model)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    with new_folder(folder) as partial:
        model.save_pretrained(partial)
        build_processor(family, tokenizer).save_pretrained(partial)
    return folder


def _scale_to_width(model: PreTrainedModel) -> None:
    """Draw every matrix anew with standard deviation 1/sqrt(inputs).

    The full model's 0.02 suits widths of some thousand; at this width pages and attention start so faint
    that the pages stay unread for twice as many steps. Embeddings keep 0.02.
    """
    embedding = model.get_input_embeddings().weight
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2 and parameter is not embedding:
                parameter.normal_(0.0, parameter[0].numel() ** -0.5)
