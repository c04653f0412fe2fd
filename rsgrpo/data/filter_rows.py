"""What a filter is trained on: questions with their gold pages among distractors, as MIRAGE trains (arXiv:2407.13766).

question + gold pages + 0 … 30 others  ->  one labelled pair a page, for those who judge pages
question + gold pages, a few others    ->  what a filter would let through, for the model that answers
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from rsgrpo.config import DistractorConfig
from rsgrpo.data.files import DataError
from rsgrpo.data.mixture import noisy_relevance
from rsgrpo.types import ImageRef, Sample

FindDistractors = Callable[[Sample, int], Sequence[ImageRef]]
"""Gives up to so many pages that might be taken for those of a question, such as its nearest ones in an index."""


def random_distractors(samples: Sequence[Sample], rng: np.random.Generator) -> FindDistractors:
    """Make a function that draws pages of other questions.

    Args:
        samples: all questions.
        rng: the generator that draws.
    """
    pool = list(dict.fromkeys(page for sample in samples for page in sample.images))

    def draw(sample: Sample, count: int) -> list[ImageRef]:
        own = set(sample.images)
        order = rng.permutation(len(pool))
        return [pool[place] for place in order[: count + len(own)].tolist() if pool[place] not in own][:count]

    return draw


def with_more_pages(
    sample: Sample, find: FindDistractors, settings: DistractorConfig, rng: np.random.Generator
) -> Sample:
    """Mix distractors into a question; its own pages keep their order, and their labels.

    Args:
        sample: a question with known gold pages.
        find: gives the distractors.
        settings: how many there are, from ``min_images`` to ``max_images``.
        rng: the generator that draws the number and the places.

    Returns:
        The question over all pages, numbered from 1 in the order in which they stand now; texts that speak of pages by
        number (prompt, gold response) are left out, since numbers changed.

    Raises:
        DataError: the sample names no gold page: all of its pages would count as irrelevant.

    Example:
        Two pages of which the first is gold, and one distractor that comes first: ``positive_images == (1,)``.
    """
    _check_gold(sample)
    count = int(rng.integers(settings.min_images, settings.max_images + 1))
    pool = [*sample.images, *find(sample, count)]
    num_own = len(sample.images)
    places = rng.permutation(len(pool))
    places[places < num_own] = np.arange(num_own)
    order = places.tolist()
    return replace(
        sample,
        images=tuple(pool[place] for place in order),
        positive_images=tuple(index for index, place in enumerate(order) if place in set(sample.positive_images)),
        prompt="",
        gold_response="",
        page_numbers=(),
        boxes=(),
    )


def let_through(sample: Sample, settings: DistractorConfig, rng: np.random.Generator) -> tuple[int, ...]:
    """The pages that a filter would let through: a question's gold pages, and now and then a wrong one.

    Args:
        sample: a question with known gold pages.
        settings: how often the filter makes a mistake, and how many pages it then takes too many.
        rng: the generator that draws mistakes.

    Returns:
        The 0-based indexes of the pages, ascending.

    Raises:
        DataError: the sample names no gold page.

    Example:
        Twenty pages of which the third is gold: ``(2,)``, or with a mistake ``(2, 11)``.
    """
    _check_gold(sample)
    is_relevant = np.zeros(len(sample.images), dtype=bool)
    is_relevant[list(sample.positive_images)] = True
    return tuple(np.flatnonzero(noisy_relevance(is_relevant, settings, rng)).tolist())


def _check_gold(sample: Sample) -> None:
    if not sample.positive_images:
        raise DataError(f"sample {sample.sample_id!r:.80} names no gold page (posImgs) among its images; leave it out")
