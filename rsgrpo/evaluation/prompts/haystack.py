"""Visual Haystacks: one yes-or-no question over a heap of photographs."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TypeVar

_INSTRUCTION = "You are given a set of images. Please answer the following question in Yes or No: "

T = TypeVar("T")


def haystack_text(question: str) -> str:
    """The text behind the images (Qwen-style solver: images first, in the order shown).

    Example:
        ``haystack_text("Is there a dog?")`` ends in ``in Yes or No: Is there a dog?``.
    """
    return _INSTRUCTION + question


def shuffled_haystack(needles: Sequence[T], others: Sequence[T], seed: int | str) -> tuple[T, ...]:
    """Needles and distractors in random order; the original leaves its generator unseeded.

    Args:
        needles: the photographs that the question is about.
        others: the photographs that distract.
        seed: the seed of Python's generator.

    Example:
        One needle ``p0``, four distractors and seed 1 give ``n1 n2 n3 p0 n0``.
    """
    shown = [*needles, *others]
    random.Random(seed).shuffle(shown)
    return tuple(shown)


def haystack_at(needles: Sequence[T], others: Sequence[T], position: int) -> tuple[T, ...]:
    """The needles behind the first ``position`` distractors (fewer, where there are fewer)."""
    return (*others[:position], *needles, *others[position:])
