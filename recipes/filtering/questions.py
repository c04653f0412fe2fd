"""Filter the pages of whole questions: the samples that are left, what the filter said, and what it cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rsgrpo.config import DataConfig, DistractorConfig
from rsgrpo.data.evisrag_files import LoadedData, load_samples
from rsgrpo.data.filter_rows import let_through
from rsgrpo.data.kept_pages import with_pages
from rsgrpo.errors import shown
from rsgrpo.evaluation.benchmarks.evisrag import public_id
from rsgrpo.retrieval.filtering.page_filter import (
    FilteredPages,
    FilterMetrics,
    FilterStage,
    PagesOfQuestion,
    filter_metrics,
    filter_pages,
)
from rsgrpo.types import ImageRef, Sample

_QUESTIONS_A_CALL = 256  # between two signs of progress


def read_questions(path: str, data: DataConfig) -> LoadedData:
    """Read the questions of a data set, and print what is left out of it.

    Args:
        path: the data set.
        data: how it is read.

    Raises:
        DataError: it cannot be read.
    """
    loaded = load_samples(path, data, is_training=False)
    for reason, count in loaded.skipped.items():
        print(f"left out of {shown(path)}: {count} × {reason}")
    return loaded


@dataclass(frozen=True, kw_only=True, slots=True)
class FilteredQuestions:
    """Questions with the pages that a filter kept.

    Attributes:
        asked: the questions with all of their pages.
        samples: the same questions with the pages that were kept, under their numbers, in the same order.
        filtered: what the filter did with each of them.
        metrics: which pages it found, and tokens counted both ways.
        stages: the names of the passes.
    """

    asked: tuple[Sample, ...]
    samples: tuple[Sample, ...]
    filtered: tuple[FilteredPages, ...]
    metrics: FilterMetrics
    stages: tuple[str, ...]

    def rows(self) -> list[dict[str, Any]]:
        """What the filter said of each page, one row a question, pages by their numbers; for ``filter.jsonl``."""
        return [
            {
                "qid": public_id(sample),
                "query": sample.question,
                "page_numbers": list(sample.numbers),
                "kept": [sample.numbers[index] for index in found.kept],
                "gold": [sample.numbers[index] for index in sample.positive_images],
                "probabilities": dict(zip(_unique(self.stages), map(list, found.probabilities), strict=True)),
                "image_tokens": found.image_tokens,
                "text_tokens": found.text_tokens,
            }
            for sample, found in zip(self.asked, self.filtered, strict=True)
        ]


def filter_questions(
    samples: Sequence[Sample],
    stages: Sequence[FilterStage],
    page_tokens: Callable[[ImageRef], int],
    advance: Callable[[int], None] = lambda count: None,
) -> FilteredQuestions:
    """Send the pages of questions through a filter.

    Args:
        samples: the questions with all of their pages.
        stages: the passes of the filter.
        page_tokens: counts the tokens of a page in the prompt that is answered, at full size.
        advance: is called with the number of questions filtered since the last call.

    Returns:
        The questions with the pages that were kept, in the same order.

    Raises:
        RelevanceError: a question is empty or has no page.
        DataError: a sample is a conversation.
        RsgrpoError: a page cannot be read.
    """
    filtered: list[FilteredPages] = []
    for start in range(0, len(samples), _QUESTIONS_A_CALL):
        chunk = samples[start : start + _QUESTIONS_A_CALL]
        asked = [PagesOfQuestion(question=sample.question or sample.prompt, pages=sample.images) for sample in chunk]
        filtered += filter_pages(asked, stages)
        advance(len(chunk))
    tokens = [[page_tokens(page) for page in sample.images] for sample in samples]
    return FilteredQuestions(
        asked=tuple(samples),
        samples=tuple(with_pages(sample, found.kept) for sample, found in zip(samples, filtered, strict=True)),
        filtered=tuple(filtered),
        metrics=filter_metrics(filtered, [sample.positive_images for sample in samples], tokens),
        stages=tuple(stage.name for stage in stages),
    )


def filter_by_gold(
    samples: Sequence[Sample], settings: DistractorConfig, rng: np.random.Generator
) -> FilteredQuestions:
    """Keep what a filter would that finds gold pages and makes a few mistakes: rows for a model that learns from these.

    Args:
        samples: the questions with all of their pages, gold ones known.
        settings: how often a mistake is made, and how many pages are then taken too many.
        rng: the generator that draws mistakes.

    Returns:
        The questions with the pages that were kept, in the same order; probabilities are 1 for these and 0 for others,
        and no tokens are counted.

    Raises:
        DataError: a sample names no gold page, or is a conversation.
    """
    filtered = []
    for sample in samples:
        kept = let_through(sample, settings, rng)
        told = tuple(float(index in kept) for index in range(len(sample.images)))
        filtered.append(FilteredPages(kept=kept, probabilities=(told,)))
    return FilteredQuestions(
        asked=tuple(samples),
        samples=tuple(with_pages(sample, found.kept) for sample, found in zip(samples, filtered, strict=True)),
        filtered=tuple(filtered),
        metrics=filter_metrics(
            filtered, [sample.positive_images for sample in samples], [[0] * len(sample.images) for sample in samples]
        ),
        stages=("gold",),
    )


def largest_pages(sample: Sample, count: int, page_tokens: Callable[[ImageRef], int]) -> Sample:
    """The question with the pages that take most room: if this fits, it fits whichever pages a filter keeps.

    Args:
        sample: the question with all of its pages.
        count: how many pages the filter keeps at most.
        page_tokens: counts the tokens of a page.
    """
    largest = sorted(range(len(sample.images)), key=lambda index: -page_tokens(sample.images[index]))[:count]
    return with_pages(sample, sorted(largest))


def _unique(names: Sequence[str]) -> list[str]:
    """Names of passes that tell them apart: ``yes_no`` and ``yes_no 2``."""
    return [
        name if name not in names[:place] else f"{name} {names[:place].count(name) + 1}"
        for place, name in enumerate(names)
    ]
