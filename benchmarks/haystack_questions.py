"""Haystacks, and accuracies compared question by question: nothing here draws, trains or answers.

A needle is a question with the page that answers it, out of a pool of pages. Its haystack of N pages is that page and
N - 1 others of the pool in a drawn order. A smaller haystack's pages are in the larger ones too, so that the curve over
N asks the same questions of ever more pages.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rsgrpo.types import IMAGE_MARKER

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


def answering_prompt(question: str, num_pages: int) -> str:
    """Write the prompt of a question over pages; each page has the number before it by which evidence names it.

    Example:
        ``answering_prompt("Which number?", 2)`` is ``"Which number?\\n[1]<image>\\n[2]<image>"``.
    """
    return question + "".join(f"\n[{number}]{IMAGE_MARKER}" for number in range(1, num_pages + 1))


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


def oracle_pages(best_first: Sequence[int], gold: int, num_kept: int) -> tuple[int, ...]:
    """Choose what the oracle shows: the best pages, the right one in place of the worst where it is missing.

    Args:
        best_first: the indexes of pages in a haystack, those that the filter finds most relevant first.
        gold: the index of the page that answers the question.
        num_kept: how many pages are shown.

    Returns:
        The indexes in the order of the haystack.

    Example:
        ``oracle_pages([4, 9, 2, 0], 0, 3) == (0, 4, 9)``; ``oracle_pages([4, 0, 2, 9], 0, 3) == (0, 2, 4)``
    """
    kept = list(best_first[:num_kept])
    if gold not in kept:
        kept = [*kept[: num_kept - 1], gold]
    return tuple(sorted(kept))


def recalls_at(ranks: Sequence[int], most: int) -> list[float]:
    """Compute the share of questions whose page is among the best 1, 2, … pages.

    Args:
        ranks: for each question how many pages are ranked before the right one.
        most: the last number.

    Example:
        ``recalls_at([0, 1, 5], 2)`` is ``[1/3, 2/3]``.
    """
    return [sum(rank < number for rank in ranks) / len(ranks) for number in range(1, most + 1)]


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
