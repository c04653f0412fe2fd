"""The small model's tokenizer: a byte-level BPE with Qwen2's pre-tokenisation and special tokens.

It is learned from the quickstart's texts, so tags merge with their neighbours as they do in the full model: ``>``
with a line break or a word behind it, ``</`` apart from the name. Nothing here imports torch.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

from tokenizers import AddedToken, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as RawTokenizer
from transformers import Qwen2Tokenizer

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
"""Qwen2.5's special tokens in the order of their ids; like there they stand behind the vocabulary."""

CHAT_TEMPLATE = """\
{%- if messages[0].role != "system" %}{{ "<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n" }}{% endif %}
{%- for message in messages %}
  {{- "<|im_start|>" + message.role + "\\n" }}
  {%- if message.content is string %}{{ message.content }}{% else %}
    {%- for part in message.content %}
      {%- if part.type == "image" %}{{ "<|vision_start|><|image_pad|><|vision_end|>" }}
      {%- elif part.type == "video" %}{{ "<|vision_start|><|video_pad|><|vision_end|>" }}
      {%- else %}{{ part.text }}{% endif %}
    {%- endfor %}
  {%- endif %}
  {{- "<|im_end|>\\n" }}
{%- endfor %}
{%- if add_generation_prompt %}{{ "<|im_start|>assistant\\n" }}{% endif %}"""
"""A chat template that gives the same text as Qwen2.5-VL's own for system, user and assistant turns."""

_BYTE_TOKENS = 256
_CHAT_WORDS = "system\nYou are a helpful assistant.\nuser\nassistant\n"


def build_tokenizer(corpus: Iterable[str], vocabulary_tokens: int) -> Qwen2Tokenizer:
    """Learn a byte-level BPE with Qwen2's rules.

    Args:
        corpus: texts to learn merges from.
        vocabulary_tokens: size of the whole vocabulary, special tokens included.

    Returns:
        A tokenizer with Qwen's special tokens and chat template.

    Raises:
        ValueError: ``vocabulary_tokens`` leaves no room for 256 bytes and the special tokens.
    """
    if vocabulary_tokens < _BYTE_TOKENS + len(SPECIAL_TOKENS):
        raise ValueError(
            f"quickstart.vocabulary_tokens={vocabulary_tokens} is too small; it must be at least "
            f"{_BYTE_TOKENS + len(SPECIAL_TOKENS)}"
        )
    rules = Qwen2Tokenizer().backend_tokenizer
    raw = RawTokenizer(models.BPE())
    raw.normalizer = rules.normalizer
    raw.pre_tokenizer = rules.pre_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_tokens - len(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    raw.train_from_iterator([_CHAT_WORDS, *corpus], trainer)
    learned = json.loads(raw.to_str())["model"]
    tokenizer = Qwen2Tokenizer(vocab=learned["vocab"], merges=[tuple(pair) for pair in learned["merges"]])
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    tokenizer.eos_token = "<|im_end|>"
    tokenizer.pad_token = "<|endoftext|>"
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer
