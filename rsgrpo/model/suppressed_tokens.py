"""Tokens that no response may contain; engine and trainer leave them out of the distribution alike.

A sampled image placeholder would make the trainer look for an image that is not there, and an id beyond
the tokenizer (published models pad their vocabulary) has no text. Both sides add :data:`SUPPRESSION_BIAS` to these
logits, so that their log-probabilities agree even for a model that has not yet learned to avoid them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

SUPPRESSION_BIAS = -100.0
"""The number that is added to a suppressed token's logit: exp(-100) is practically nothing."""

_VISION_TOKENS = ("<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>")


class Vocabulary(Protocol):
    """What is needed of a tokenizer."""

    def get_vocab(self) -> Mapping[str, int]:
        """The ids of all tokens."""


def suppressed_token_ids(tokenizer: Vocabulary, vocabulary_size: int) -> tuple[int, ...]:
    """Ids that responses must not contain, in order.

    Args:
        tokenizer: the tokenizer of the model.
        vocabulary_size: the number of rows of the model's output layer.

    Example:
        A tokenizer of 100 tokens with ``<|image_pad|>`` at 97 and a model of 104 rows: 97, 100, …, 103.
    """
    vocabulary = tokenizer.get_vocab()
    vision = {vocabulary[token] for token in _VISION_TOKENS if token in vocabulary}
    known = set(vocabulary.values())
    return tuple(index for index in range(vocabulary_size) if index in vision or index not in known)
