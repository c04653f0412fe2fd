"""Haystacks and the arithmetic of their image tokens: nothing here draws, trains or answers.

A needle is a question with the page that answers it, out of a pool of pages. Its haystack of N pages is that page and
N - 1 others of the pool in a drawn order; a smaller haystack's pages are in the larger ones too, so that the curve over N
asks the same questions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

PIXELS_A_TOKEN = 28 * 28
"""Pixels that a Qwen2.5-VL turns into one token: patches of 14, two by two."""

_NORMAL_95 = 1.959963984540054  # the normal distribution's 97.5 % point


@dataclass(frozen=True, kw_only=True, slots=True)
class Needle:
    """A question with the page that answers it.

    Attributes:
        question: the question, as the policy and the embedder get it.
        answer: the only right answer, one word.
        page: the index of its page in the pool.
    """

    question: str
    answer: str
    page: int


def haystacks(page: int, num_pool: int, sizes: Sequence[int], rng: np.random.Generator) -> dict[int, tuple[int, ...]]:
    """Draw the haystacks of one needle.

    Args:
        page: the index of the needle's page.
        num_pool: how many pages there are to draw from.
        sizes: how many pages the haystacks have, each at most ``num_pool``.
        rng: the generator of the other pages and of their order.

    Returns:
        For each size the pages, in the order in which they are shown; every one holds the needle's page.

    Example:
        ``haystacks(7, 100, [10, 100], rng)[10]`` are 10 of the 100 pages, one of them page 7.
    """
    others = [int(other) for other in rng.permutation(num_pool) if other != page]
    found = {}
    for size in sizes:
        if not 1 <= size <= num_pool:
            raise ValueError(f"a haystack of {size} pages cannot be drawn from {num_pool}")
        pages = [page, *others[: size - 1]]
        found[size] = tuple(pages[index] for index in rng.permutation(size))
    return found


def page_tokens(pixels: int) -> int:
    """Count the tokens of a square page.

    Args:
        pixels: its width and height, a multiple of 28.

    Example:
        ``page_tokens(84) == 9``
    """
    if pixels < 28 or pixels % 28:
        raise ValueError(f"a page is {pixels} pixels wide; it must be a positive multiple of 28")
    return pixels * pixels // PIXELS_A_TOKEN


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenCount:
    """Image tokens of one question, counted both ways.

    Attributes:
        unfiltered: tokens of all pages at full resolution: N · F.
        prompt: tokens in the answering prompt: k · F.
        all: those and the filter's own: m · f + k · F. Vectors of pages are cached and cost a question nothing.
    """

    unfiltered: int
    prompt: int
    all: int

    @property
    def prompt_ratio(self) -> float:
        """How many times fewer tokens the answering prompt has."""
        return self.unfiltered / self.prompt

    @property
    def all_ratio(self) -> float:
        """How many times fewer tokens there are in all."""
        return self.unfiltered / self.all


def count_tokens(num_pages: int, num_looked_at: int, num_kept: int, full: int, low: int) -> TokenCount:
    """Count image tokens of a question behind a filter.

    Args:
        num_pages: N, pages of the haystack.
        num_looked_at: m, pages that are judged at low resolution; 0: the cached vectors alone decide.
        num_kept: k, pages that the answering prompt shows.
        full: F, tokens of a page at full resolution.
        low: f, tokens of a page at low resolution.

    Example:
        ``count_tokens(100, 20, 3, 1961, 247).all_ratio`` is 196,100 / 10,823 = 18.1.
    """
    looked_at, kept = min(num_looked_at, num_pages), min(num_kept, num_pages)
    return TokenCount(unfiltered=num_pages * full, prompt=kept * full, all=looked_at * low + kept * full)


@dataclass(frozen=True, kw_only=True, slots=True)
class PairedDifference:
    """The difference of two accuracies on the same questions.

    Attributes:
        mean: first minus second, in points.
        half_width: half the width of the 95 % interval of the mean, in points.
        num_gained: questions that only the first answers rightly.
        num_lost: questions that only the second answers rightly.
    """

    mean: float
    half_width: float
    num_gained: int
    num_lost: int


def paired_difference(first: Sequence[bool], second: Sequence[bool]) -> PairedDifference:
    """Compare two answerers on the same questions.

    Args:
        first: whether the first answers each question rightly.
        second: the same of the second.

    Returns:
        The difference with its normal 95 % interval, from the standard deviation of the paired differences.

    Example:
        Of four questions one is gained, none lost: the mean is 25 points; the differences 1, 0, 0, 0 deviate by 0.5, so
        the half width is 1.96 · 0.5 / √4 = 0.49, which is 49 points.
    """
    if len(first) != len(second) or len(first) < 2:
        raise ValueError(f"{len(first)} and {len(second)} questions cannot be paired; give the same ones, at least two")
    differences = np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64)
    error = float(differences.std(ddof=1)) / math.sqrt(len(differences))
    return PairedDifference(
        mean=100 * float(differences.mean()),
        half_width=100 * _NORMAL_95 * error,
        num_gained=int((differences > 0).sum()),
        num_lost=int((differences < 0).sum()),
    )
