"""Keep the pages of a question that are worth a close look: one or more passes, each by a scorer of its own.

    pages -> pass 1: score all at low resolution, keep 20 -> pass 2: score these, keep 3 -> the answering model

Every page is scored by itself, as MIRAGE does (arXiv:2407.13766). What is kept stays in the question's order and under
its number, so that ``[7]`` means what the user sees.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from rsgrpo.errors import shown
from rsgrpo.retrieval.filtering.relevance import RelevanceError, SelectionMode, select
from rsgrpo.types import ImageRef

_SHOWN_QUESTION = 80


@dataclass(frozen=True, kw_only=True, slots=True)
class PagesOfQuestion:
    """A question and the pages that may answer it.

    Attributes:
        question: the question.
        pages: the pages, in the user's order.
    """

    question: str
    pages: tuple[ImageRef, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoredPages:
    """What a scorer says of the pages of one question.

    Attributes:
        probabilities: how probable it is that each page is relevant, from 0 to 1, in the order of the pages.
        image_tokens: how many tokens of images the scorer's model read for them; 0 where their vectors were kept.
        text_tokens: how many tokens of text it read, where it is asked page by page. The one question that an embedder
            reads is not counted.
    """

    probabilities: tuple[float, ...]
    image_tokens: int = 0
    text_tokens: int = 0


class PageScorer(Protocol):
    """Says how probable it is that a page helps to answer a question."""

    def score(self, question: str, pages: Sequence[ImageRef]) -> NDArray[np.float64]:
        """Score the pages of one question.

        Args:
            question: the question.
            pages: its pages.

        Returns:
            The probability of each page, [pages] float64, from 0 to 1.

        Raises:
            RsgrpoError: the question is empty, or a page cannot be read.
        """

    def score_all(self, asked: Sequence[PagesOfQuestion]) -> list[ScoredPages]:
        """Score the pages of several questions, in as few calls of the model as it can.

        Args:
            asked: the questions with their pages.

        Returns:
            What is said of the pages of each question, in the order of the questions.

        Raises:
            RsgrpoError: a question is empty, or a page cannot be read.
        """


@dataclass(frozen=True, kw_only=True, slots=True)
class FilterStage:
    """One pass over the pages.

    Attributes:
        name: the name of the scorer, for people, such as ``yes_no``.
        scorer: who scores the pages.
        top_k: the most pages that are kept, at least 1.
        threshold: the probability from which on a page counts as relevant.
        mode: the rule, see :func:`rsgrpo.retrieval.filtering.relevance.select`.
    """

    name: str
    scorer: PageScorer
    top_k: int
    threshold: float = 0.5
    mode: SelectionMode = "strict"


@dataclass(frozen=True, kw_only=True, slots=True)
class FilteredPages:
    """What a filter did with the pages of one question.

    Attributes:
        kept: the 0-based indexes of the pages that are kept, ascending.
        probabilities: for each pass the probability of each page; None for pages that it did not get to see.
        image_tokens: how many tokens of images the scorers read, all passes together.
        text_tokens: how many tokens of text they read.

    Example:
        Three pages, a pass that keeps two and one that keeps one: ``kept=(2,)``,
        ``probabilities=((0.1, 0.7, 0.8), (None, 0.2, 0.9))``.
    """

    kept: tuple[int, ...]
    probabilities: tuple[tuple[float | None, ...], ...]
    image_tokens: int = 0
    text_tokens: int = 0

    @property
    def last(self) -> tuple[float, ...]:
        """The probability of each page in the last pass that saw it."""
        columns = zip(*self.probabilities, strict=True)
        return tuple([value for value in column if value is not None][-1] for column in columns)


def filter_pages(asked: Sequence[PagesOfQuestion], stages: Sequence[FilterStage]) -> list[FilteredPages]:
    """Send the pages of questions through the passes of a filter.

    Args:
        asked: the questions with their pages.
        stages: the passes, in order, at least one; each sees the pages that the one before kept.

    Returns:
        What was done with the pages of each question, in the order of the questions.

    Raises:
        RelevanceError: a question is empty or has no page.
        RsgrpoError: a page cannot be read.
    """
    for item in asked:
        if not item.question.strip():
            raise RelevanceError("a question is empty; ask something")
        if not item.pages:
            raise RelevanceError(
                f"the question {shown(item.question, _SHOWN_QUESTION)!r} has no page; give at least one"
            )
    kept = [tuple(range(len(item.pages))) for item in asked]
    columns: list[list[tuple[float | None, ...]]] = [[] for _ in asked]
    tokens = np.zeros((len(asked), 2), dtype=np.int64)
    for stage in stages:
        left = [
            PagesOfQuestion(question=item.question, pages=tuple(item.pages[index] for index in indexes))
            for item, indexes in zip(asked, kept, strict=True)
        ]
        for number, found in enumerate(stage.scorer.score_all(left)):
            column: list[float | None] = [None] * len(asked[number].pages)
            for index, probability in zip(kept[number], found.probabilities, strict=True):
                column[index] = probability
            columns[number].append(tuple(column))
            tokens[number] += (found.image_tokens, found.text_tokens)
            chosen = select(found.probabilities, stage.top_k, stage.threshold, stage.mode)
            kept[number] = tuple(kept[number][place] for place in chosen)
    return [
        FilteredPages(kept=indexes, probabilities=tuple(column), image_tokens=int(read[0]), text_tokens=int(read[1]))
        for indexes, column, read in zip(kept, columns, tokens, strict=True)
    ]


@dataclass(frozen=True, kw_only=True, slots=True)
class FilterMetrics:
    """What a filter costs and saves, and which pages it finds; tokens are means over the questions.

    Attributes:
        num_questions: how many questions were filtered.
        pages: the mean number of pages of a question.
        kept_pages: the mean number of pages that were kept.
        image_recall: the share of all gold pages that were kept; 0.0 where none are known.
        image_precision: the share of the kept pages of questions with known gold pages that are gold; 0.0 where there
            are none.
        num_gold_pages: how many gold pages are known, over which the recall is taken.
        unfiltered_image_tokens: the tokens of images in a prompt that shows all pages.
        answer_image_tokens: the tokens of images in the prompt that is answered.
        filter_image_tokens: the tokens of images that the filter itself read.
        filter_text_tokens: the tokens of text that the filter itself read.
        answer_ratio: how many times fewer tokens of images the answered prompts have.
        total_ratio: how many times fewer it are with those that the filter read.
    """

    num_questions: int
    pages: float
    kept_pages: float
    image_recall: float
    image_precision: float
    num_gold_pages: int
    unfiltered_image_tokens: float
    answer_image_tokens: float
    filter_image_tokens: float
    filter_text_tokens: float
    answer_ratio: float
    total_ratio: float


def filter_metrics(
    filtered: Sequence[FilteredPages], gold: Sequence[Collection[int]], page_tokens: Sequence[Sequence[int]]
) -> FilterMetrics:
    """Measure a filter, tokens counted both ways: in the answered prompts, and with those that the filter read.

    Args:
        filtered: what the filter did with each question.
        gold: the 0-based indexes of each question's gold pages; empty where they are not known.
        page_tokens: how many tokens each page of each question takes in the prompt that is answered, at full size.

    Returns:
        The means over all questions; recall and precision over all pages (micro), as Visual Haystacks counts them.

    Raises:
        ValueError: the lengths of the arguments differ.

    Example:
        100 pages of 1,961 tokens, 20 of which were asked about at 247, and three kept: 196,100 / 5,883 = 33.3 and
        196,100 / (5,883 + 4,940) = 18.1.
    """
    num_gold = num_found = num_judged = 0
    whole = answered = 0
    for item, positive, tokens in zip(filtered, gold, page_tokens, strict=True):
        whole += sum(tokens)
        answered += sum(tokens[index] for index in item.kept)
        if positive:
            num_gold += len(set(positive))
            num_found += len(set(positive) & set(item.kept))
            num_judged += len(item.kept)
    own = sum(item.image_tokens for item in filtered)
    count = max(1, len(filtered))
    return FilterMetrics(
        num_questions=len(filtered),
        pages=sum(map(len, page_tokens)) / count,
        kept_pages=sum(len(item.kept) for item in filtered) / count,
        image_recall=num_found / num_gold if num_gold else 0.0,
        image_precision=num_found / num_judged if num_judged else 0.0,
        num_gold_pages=num_gold,
        unfiltered_image_tokens=whole / count,
        answer_image_tokens=answered / count,
        filter_image_tokens=own / count,
        filter_text_tokens=sum(item.text_tokens for item in filtered) / count,
        answer_ratio=whole / answered if answered else 0.0,
        total_ratio=whole / (answered + own) if answered + own else 0.0,
    )
