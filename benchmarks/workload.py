"""What the benchmarks of the trainer share: a small Qwen2.5-VL (or another family), groups of a given shape, tables.

The model keeps the proportions of Qwen2.5-VL-3B: heads of 128, an MLP 5.4 times as wide as the model, a
head with about a ninth of the layers' parameters, and a vision tower that costs about as much an image
token as the language model's forward pass. Half of a prompt are image tokens, of four pages.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import json_line
import numpy as np
import torch
from PIL import Image
from tokenizers import AddedToken, pre_tokenizers
from transformers import PreTrainedConfig, Qwen2Tokenizer

from rsgrpo.config import QuickstartConfig
from rsgrpo.data.synthetic.quickstart_tokenizer import CHAT_TEMPLATE, SPECIAL_TOKENS
from rsgrpo.model.families.family import Family
from rsgrpo.model.families.table import FAMILIES
from rsgrpo.model.quickstart_model import build_processor
from rsgrpo.types import ChatPrompt, ImageRef, TrainingGroup, TrainingResponse

IMAGES = 4
_BYTES = 256


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelShape:
    """Sizes of a model; the defaults are the small one's."""

    hidden: int = 512
    intermediate: int = 2752
    layers: int = 2
    heads: int = 4
    key_heads: int = 2
    vocabulary: int = 2304
    vision_hidden: int = 320
    vision_intermediate: int = 864
    vision_layers: int = 2
    vision_heads: int = 4


SMALL = ModelShape()
NARROW = ModelShape(
    hidden=256,
    intermediate=1376,
    heads=2,
    key_heads=1,
    vocabulary=2304,
    vision_hidden=160,
    vision_intermediate=432,
    vision_heads=2,
)
TINY = ModelShape(
    hidden=256, intermediate=512, layers=2, heads=2, key_heads=1, vocabulary=1024, vision_hidden=64, vision_layers=2
)
QWEN_3B = ModelShape(
    hidden=2048,
    intermediate=11008,
    layers=36,
    heads=16,
    key_heads=2,
    vocabulary=151936,
    vision_hidden=1280,
    vision_intermediate=3420,
    vision_layers=32,
    vision_heads=16,
)
SHAPES = {"tiny": TINY, "narrow": NARROW, "small": SMALL, "3b": QWEN_3B}


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupShape:
    """Sizes of one group.

    Attributes:
        prompt_tokens: of the prompt, image tokens included.
        response_tokens: of every response.
        num_responses: n.
        num_images: how many images the prompt has, together half of the prompt; 0: text only.
        token_pixels: the side of an image token in pixels, which depends on the family.
    """

    prompt_tokens: int
    response_tokens: int
    num_responses: int
    num_images: int = IMAGES
    token_pixels: int = 28


def tokenizer_of(vocabulary: int) -> Qwen2Tokenizer:
    """One token a byte, Qwen's special tokens, and tokens without use up to ``vocabulary``."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    fillers = [f"filler{index}" for index in range(vocabulary - _BYTES - len(SPECIAL_TOKENS))]
    tokenizer = Qwen2Tokenizer(vocab={token: index for index, token in enumerate([*alphabet, *fillers])}, merges=[])
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    tokenizer.eos_token, tokenizer.pad_token = "<|im_end|>", "<|endoftext|>"
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def model_config(shape: ModelShape, tokenizer: Qwen2Tokenizer, family: Family) -> PreTrainedConfig:
    ids = {token: int(tokenizer.convert_tokens_to_ids(token)) for token in SPECIAL_TOKENS}
    pairs = shape.hidden // shape.heads // 2
    sizes = QuickstartConfig(
        text_hidden=shape.hidden,
        text_layers=shape.layers,
        text_heads=shape.heads,
        vision_hidden=shape.vision_hidden,
        vision_layers=shape.vision_layers,
        vision_heads=shape.vision_heads,
    )
    windows = {
        "intermediate_size": shape.vision_intermediate,
        "fullatt_block_indexes": list(range(7, shape.vision_layers, 8)) or [shape.vision_layers - 1],
    }
    vision = family.small_vision(sizes)
    found: PreTrainedConfig = family.of_transformers(family.config_class)(
        text_config={
            "vocab_size": shape.vocabulary,
            "hidden_size": shape.hidden,
            "intermediate_size": shape.intermediate,
            "num_hidden_layers": shape.layers,
            "num_attention_heads": shape.heads,
            "num_key_value_heads": shape.key_heads,
            "max_position_embeddings": 32768,
            "rms_norm_eps": 1e-6,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e6,
                "mrope_section": [pairs - 2 * (pairs * 3 // 8), pairs * 3 // 8, pairs * 3 // 8],
                **family.small_rope,
            },
            "bos_token_id": ids["<|endoftext|>"],
            "eos_token_id": ids["<|im_end|>"],
            "pad_token_id": ids["<|endoftext|>"],
            "tie_word_embeddings": True,
            **family.small_text(sizes),
        },
        vision_config={
            "depth": shape.vision_layers,
            "num_heads": shape.vision_heads,
            **vision,
            **{name: value for name, value in windows.items() if name in vision},
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=True,
    )
    return found


def build_model(
    shape: ModelShape, folder: Path, *, dtype: torch.dtype = torch.float32, family: str = "qwen2_5_vl"
) -> Path:
    """Write a model folder with random weights; matrices have variance 1/inputs, so that layers matter."""
    tokenizer = tokenizer_of(shape.vocabulary)
    torch.manual_seed(0)
    kind = FAMILIES[family]
    model = kind.model(model_config(shape, tokenizer, kind)).to(dtype)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim >= 2 and "embed_tokens" not in name:
                parameter.normal_(0.0, parameter[0].numel() ** -0.5)
    model.save_pretrained(folder)
    processor = build_processor(kind, tokenizer)
    processor.image_processor.size = {"shortest_edge": kind.token_pixels**2, "longest_edge": 10**8}
    processor.save_pretrained(folder)
    return folder


def write_images(shape: GroupShape, folder: Path, seed: int) -> list[ImageRef]:
    """Noise pages with half of the prompt's tokens in all."""
    if not shape.num_images:
        return []
    tokens = shape.prompt_tokens // 2 // shape.num_images
    rows = max(1, math.isqrt(tokens))
    height, width = rows * shape.token_pixels, tokens // rows * shape.token_pixels
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    images = []
    for index in range(shape.num_images):
        file = folder / f"{seed}-{index}.png"
        Image.fromarray(rng.integers(0, 255, (height, width, 3), dtype=np.uint8)).save(file)
        images.append(ImageRef(path=file.name, file=str(file)))
    return images


def build_group(shape: GroupShape, folder: Path, *, seed: int = 0, num_groups: int = 1) -> TrainingGroup:
    """A prompt of exactly ``prompt_tokens`` tokens, and random responses whose advantages sum to zero.

    Args:
        shape: the numbers of tokens, responses and images.
        folder: the folder that the images are written to.
        seed: the seed of images, text, responses and advantages.
        num_groups: how many groups the step has: credit is divided by the response tokens of all.
    """
    images = write_images(shape, folder, seed)
    rng = np.random.default_rng(seed)
    marks = "".join("<|vision_start|><|image_pad|><|vision_end|>" for _ in images)
    image_tokens = 0
    if images:
        width, height = Image.open(images[0].file).size
        image_tokens = len(images) * (width // shape.token_pixels) * (height // shape.token_pixels)
    frame = ("<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n")
    around = 3 + len("user") + len("assistant") + 3 + 2 * len(images)  # special tokens, bytes, line breaks
    letters = "".join(rng.choice(list("abcdefghij klmnop"), shape.prompt_tokens - image_tokens - around))
    advantages = rng.normal(size=shape.num_responses)
    advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-6)
    weight = 1.0 / (num_groups * shape.num_responses * shape.response_tokens)
    sample_id = f"q{seed}"
    return TrainingGroup(
        sample_id=sample_id,
        prompt=ChatPrompt(sample_id=sample_id, text=f"{frame[0]}{marks}{letters}{frame[1]}", images=tuple(images)),
        prompt_token_ids=None,
        responses=tuple(
            TrainingResponse(
                response_index=index,
                token_ids=rng.integers(0, _BYTES, shape.response_tokens).astype(np.int32),
                positive_weights=np.full(shape.response_tokens, max(advantage, 0.0) * weight, dtype=np.float32),
                negative_weights=np.full(shape.response_tokens, max(-advantage, 0.0) * weight, dtype=np.float32),
            )
            for index, advantage in enumerate(advantages)
        ),
    )


def markdown(rows: list[dict[str, Any]]) -> str:
    """Rows with the same keys as a table; nothing of none."""
    if not rows:
        return ""
    columns = list(rows[0])
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(f"{row[c]:.4g}" if isinstance(row[c], float) else str(row[c]) for c in columns) + " |"
              for row in rows]  # fmt: skip
    return "\n".join(lines)


def report(name: str, options: argparse.Namespace, rows: list[dict[str, Any]], **more: Any) -> None:
    """Print a table, and one JSON line with everything."""
    print(markdown(rows))
    settings = {key: str(value) if isinstance(value, Path) else value for key, value in vars(options).items()}
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    place = {"device": device, "threads": torch.get_num_threads()}
    json_line.report(name, {"settings": settings, **place, "rows": rows, **more})


def shape_text(shape: ModelShape) -> str:
    """All sizes in a line."""
    return ", ".join(f"{key}={value}" for key, value in dataclasses.asdict(shape).items())
