"""A random model of some ten thousand parameters, with tokenizer and processor, and questions for it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedConfig, PreTrainedTokenizerFast, ProcessorMixin

from rsgrpo.config import QuickstartConfig
from rsgrpo.model.families.family import Family
from rsgrpo.model.families.table import FAMILIES
from rsgrpo.model.quickstart_model import build_processor
from rsgrpo.model.suppressed_tokens import SUPPRESSION_BIAS, suppressed_token_ids
from rsgrpo.types import ChatPrompt, ImageRef, TrainingGroup, TrainingResponse

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)

checkpoint_name = FAMILIES["qwen2_5_vl"].checkpoint_name


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, and Qwen's special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={char: i for i, char in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>")


def tiny_config(
    tokenizer: PreTrainedTokenizerFast, *, hidden: int, layers: int, tie: bool, family: Family
) -> PreTrainedConfig:
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIAL_TOKENS}
    sizes = QuickstartConfig(
        text_hidden=hidden, text_layers=layers, text_heads=4, vision_hidden=32, vision_layers=2, vision_heads=2
    )
    # As small as windows and tower can be: what the tests of Qwen2.5-VL count on.
    vision = family.small_vision(sizes) | {"intermediate_size": 64, "window_size": 56}
    found: PreTrainedConfig = family.of_transformers(family.config_class)(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": hidden,
            "intermediate_size": 2 * hidden,
            "num_hidden_layers": layers,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 4096,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e4,
                "mrope_section": [hidden // 8 - 2 * (hidden // 32), hidden // 32, hidden // 32]
                if family.small_rope
                else [hidden // 32, hidden // 32, hidden // 16],
                **family.small_rope,
            },
            "tie_word_embeddings": tie,
            "pad_token_id": ids["<|endoftext|>"],
            "eos_token_id": ids["<|im_end|>"],
            **family.small_text(sizes),
        },
        vision_config={"depth": 2, "num_heads": 2} | {key: vision[key] for key in family.small_vision(sizes)},
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=tie,
    )
    return found


def build_tiny_model(
    folder: Path, *, hidden: int = 32, layers: int = 2, tie: bool = False, seed: int = 0, family: str = "qwen2_5_vl"
) -> Path:
    """Write a model folder; the weights are large enough for outputs that differ from token to token."""
    tokenizer = tiny_tokenizer()
    kind = FAMILIES[family]
    torch.manual_seed(seed)
    model = kind.model(tiny_config(tokenizer, hidden=hidden, layers=layers, tie=tie, family=kind))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.normal_(0.0, parameter[0].numel() ** -0.5 if parameter.ndim > 2 else 0.15)
    model.save_pretrained(folder)
    processor = build_processor(kind, tokenizer)
    processor.image_processor.size = {"shortest_edge": kind.token_pixels**2, "longest_edge": 10**6}
    processor.save_pretrained(folder)
    return folder


def write_images(folder: Path, sizes: list[tuple[int, int]], *, seed: int = 0) -> list[ImageRef]:
    """Noise pages of (width, height)."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    images = []
    for index, (width, height) in enumerate(sizes):
        file = folder / f"{index}.png"
        Image.fromarray(rng.integers(0, 255, (height, width, 3), dtype=np.uint8)).save(file)
        images.append(ImageRef(path=f"imgs/{index}.png", file=str(file)))
    return images


def make_group(
    sample_id: str,
    images: list[ImageRef],
    response_lengths: list[int],
    *,
    question: str = "What is written?",
    seed: int = 0,
    scale: float = 1.0,
) -> TrainingGroup:
    """A group with random responses and random credit of about ``scale`` a token."""
    rng = np.random.default_rng(seed)
    marks = "".join("<|vision_start|><|image_pad|><|vision_end|>" for _ in images)
    text = f"<|im_start|>user\n{question}{marks}<|im_end|>\n<|im_start|>assistant\n"
    responses = []
    for index, length in enumerate(response_lengths):
        credit = rng.normal(size=length).astype(np.float32) * scale
        responses.append(
            TrainingResponse(
                response_index=index,
                token_ids=rng.integers(0, 250, length).astype(np.int32),
                positive_weights=np.maximum(credit, 0),
                negative_weights=np.maximum(-credit, 0),
                rollout_logprobs=rng.normal(-5.5, 0.1, length).astype(np.float32),
            )
        )
    return TrainingGroup(
        sample_id=sample_id,
        prompt=ChatPrompt(sample_id=sample_id, text=text, images=tuple(images)),
        prompt_token_ids=None,
        responses=tuple(responses),
    )


def three_groups(folder: Path) -> list[TrainingGroup]:
    """Ragged groups, two with pages of several sizes, one without any; the pages are written into ``folder``."""
    images = write_images(folder, [(56, 56), (84, 56), (112, 140)])
    return [
        make_group("a", images[:2], [5, 9, 7], seed=1, scale=0.02),
        make_group("b", images[1:], [3, 12], seed=2, scale=0.02),
        make_group("c", [], [6, 1, 4], seed=3, scale=0.02),
    ]


def without_suppressed(logits: torch.Tensor, processor: ProcessorMixin) -> torch.Tensor:
    """Logits as engine and trainer take them: tokens that no response may contain are out of the distribution."""
    suppressed = suppressed_token_ids(processor.tokenizer, logits.shape[-1])
    return logits.index_add(-1, torch.tensor(suppressed), torch.full((len(logits), len(suppressed)), SUPPRESSION_BIAS))
