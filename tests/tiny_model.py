"""A random Qwen2.5-VL of some ten thousand parameters, with tokenizer and processor, and questions for it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
)

from rsgrpo.data.synthetic.quickstart_tokenizer import CHAT_TEMPLATE
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


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, and Qwen's special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={char: i for i, char in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>")


def tiny_config(tokenizer: PreTrainedTokenizerFast, *, hidden: int, layers: int, tie: bool) -> Qwen2_5_VLConfig:
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIAL_TOKENS}
    return Qwen2_5_VLConfig(
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
                "mrope_section": [hidden // 32, hidden // 32, hidden // 16],
            },
            "tie_word_embeddings": tie,
            "pad_token_id": ids["<|endoftext|>"],
            "eos_token_id": ids["<|im_end|>"],
        },
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 2,
            "out_hidden_size": hidden,
            "window_size": 56,
            "fullatt_block_indexes": [1],
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=tie,
    )


def build_tiny_model(folder: Path, *, hidden: int = 32, layers: int = 2, tie: bool = False, seed: int = 0) -> Path:
    """Write a model folder; the weights are large enough for outputs that differ from token to token."""
    tokenizer = tiny_tokenizer()
    torch.manual_seed(seed)
    model = Qwen2_5_VLForConditionalGeneration(tiny_config(tokenizer, hidden=hidden, layers=layers, tie=tie))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.normal_(0.0, parameter[0].numel() ** -0.5 if parameter.ndim > 2 else 0.15)
    model.save_pretrained(folder)
    image_processor = Qwen2VLImageProcessor(size={"shortest_edge": 784, "longest_edge": 10**6})
    processor = Qwen2_5_VLProcessor(image_processor, tokenizer, Qwen2VLVideoProcessor(), chat_template=CHAT_TEMPLATE)
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


def without_suppressed(logits: torch.Tensor, processor: Qwen2_5_VLProcessor) -> torch.Tensor:
    """Logits as engine and trainer take them: tokens that no response may contain are out of the distribution."""
    suppressed = suppressed_token_ids(processor.tokenizer, logits.shape[-1])
    return logits.index_add(-1, torch.tensor(suppressed), torch.full((len(logits), len(suppressed)), SUPPRESSION_BIAS))
