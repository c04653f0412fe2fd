"""Hard negatives: for each question of training the best pages of an index that do not answer it.

A page that scores high for a question and is not its own is either a hard negative or another right page, and a right
page among the negatives teaches the opposite. Three guards leave such pages out: the question's own page and every
page that has the same question; a page of the same image file; and a page whose score comes too close to that of the
right one. With the scores ``s`` of a candidate and ``s⁺`` of the right page the last guard keeps

    s <= s⁺ + margin    and    s <= share · s⁺

(NV-Retriever's TopK-MarginPos and TopK-PercPos, arXiv:2407.15831, §4.1, which takes a share of 0.95; a share below 1
says nothing where the right page's own score is not above 0).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rsgrpo.errors import RsgrpoError
from rsgrpo.retrieval.embedders.embedder import Embedder
from rsgrpo.retrieval.index.page_index import FoundPage, PageIndex, PageIndexError

MAX_DEPTH = 10_000
"""How many pages a search for negatives may look at."""

_QUESTIONS_AT_ONCE = 512  # bounds the memory: the pages found for them, and their vectors


class MiningError(RsgrpoError, ValueError):
    """Hard negatives cannot be mined; the message names what is wrong and the way out."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MiningRules:
    """Which pages become the hard negatives of a question.

    Attributes:
        num_pages: how many negatives a question gets at most.
        depth: how many pages of the search are looked at, best first, at least ``num_pages``.
        margin: how far the score of a negative may lie above that of the right page; below 0: how far it must lie
            below it; None: any score is allowed.
        share: the largest share of the right page's score that a negative may have, above 0; None: any.

    Raises:
        MiningError: a value is out of range.
    """

    num_pages: int = 4
    depth: int = 100
    margin: float | None = 0.0
    share: float | None = 0.95

    def __post_init__(self) -> None:
        if not 1 <= self.num_pages <= self.depth <= MAX_DEPTH:
            raise MiningError(
                f"{self.num_pages} negatives out of {self.depth} pages: the first must be at least 1, the second at "
                f"least as many and at most {MAX_DEPTH}"
            )
        if self.margin is not None and not -2.0 <= self.margin <= 2.0:
            raise MiningError(f"the margin is {self.margin}; scores are cosines, so that it must lie in [-2, 2]")
        if self.share is not None and not 0.0 < self.share <= 1.0:
            raise MiningError(f"the share is {self.share}; it must lie above 0 and at most at 1")

    def may_be_negative(self, score: float, right_score: float) -> bool:
        """Decide by the scores alone whether a page may be a negative.

        Args:
            score: the cosine of the page and the question.
            right_score: the cosine of the right page and the question.

        Example:
            With a margin of 0 and a share of 0.95 a page of 0.7 may stand beside a right one of 0.8, one of 0.77 not.
        """
        if not (math.isfinite(score) and math.isfinite(right_score)):
            return False
        is_below = self.margin is None or score <= right_score + self.margin
        return is_below and (self.share is None or right_score <= 0 or score <= self.share * right_score)


@dataclass(frozen=True, kw_only=True, slots=True)
class MinedQuestion:
    """The hard negatives of one question.

    Attributes:
        negatives: the pages, best first, with their scores and the ranks that they have in the search.
        right_score: the cosine of the question and its right page.
        right_rank: the rank of the right page in the search; None: it is not among the pages that were looked at.
        num_right: how many pages were left out because they have the same question, the right page included.
        num_close: how many pages were left out because their score comes too close to the right page's.
    """

    negatives: tuple[FoundPage, ...]
    right_score: float
    right_rank: int | None
    num_right: int
    num_close: int


def mine_negatives(
    queries: Sequence[str], right_ids: Sequence[str], embedder: Embedder, index: PageIndex, rules: MiningRules
) -> list[MinedQuestion]:
    """Find the hard negatives of questions.

    Args:
        queries: the questions, without an instruction. Questions that differ in case or blanks only are the same one.
        right_ids: the id of the right page of each question, all of which must be in the index. Pages of the same
            image file have one id (the digest of the file), so that none of them becomes a negative of another.
        embedder: the embedder that made the index.
        index: the index that holds all pages.
        rules: which pages become negatives.

    Returns:
        One record for each question, in order.

    Raises:
        MiningError: the numbers of questions and pages differ, or a right page is not in the index.
        EmbedderMismatchError: another embedder made the index.
        EmbeddingError: a question is empty, or none of its characters is known to the model.
    """
    if len(queries) != len(right_ids):
        raise MiningError(f"got {len(queries)} questions and {len(right_ids)} right pages; give each question its page")
    index.identity.check(embedder.identity, index.name)
    of_same_question: dict[str, set[str]] = {}
    for query, right_id in zip(queries, right_ids, strict=True):
        of_same_question.setdefault(_same(query), set()).add(right_id)
    mined: list[MinedQuestion] = []
    for start in range(0, len(queries), _QUESTIONS_AT_ONCE):
        some, ids = queries[start : start + _QUESTIONS_AT_ONCE], right_ids[start : start + _QUESTIONS_AT_ONCE]
        vectors = embedder.embed_queries(some)
        try:
            right_vectors = index.vectors(ids)
        except PageIndexError as error:
            raise MiningError(f"a right page is missing ({error}); add all pages of the training pairs") from error
        right_scores = np.einsum("qd,qd->q", vectors, right_vectors, dtype=np.float64)
        for query, right_id, right_score, found in zip(
            some, ids, right_scores, index.search(vectors, rules.depth), strict=True
        ):
            mined.append(_chosen(found, of_same_question[_same(query)], right_id, float(right_score), rules))
    return mined


def _chosen(
    found: Sequence[FoundPage], right_ids: set[str], right_id: str, right_score: float, rules: MiningRules
) -> MinedQuestion:
    others = [page for page in found if page.page.page_id not in right_ids]
    kept = [page for page in others if rules.may_be_negative(page.score, right_score)]
    return MinedQuestion(
        negatives=tuple(kept[: rules.num_pages]),
        right_score=right_score,
        right_rank=next((page.rank for page in found if page.page.page_id == right_id), None),
        num_right=len(found) - len(others),
        num_close=len(others) - len(kept),
    )


def _same(query: str) -> str:
    """What all spellings of one question have in common."""
    return " ".join(query.casefold().split())


@dataclass(frozen=True, kw_only=True, slots=True)
class MiningReport:
    """What mining found, in numbers.

    Attributes:
        num_questions: how many questions there are.
        num_negatives: how many negatives they have, all together.
        num_without: how many questions have no negative.
        num_close: how many pages were left out because their score comes too close to the right page's.
        first_frac: the share of questions whose right page is the first one of the search.
    """

    num_questions: int
    num_negatives: int
    num_without: int
    num_close: int
    first_frac: float


def mining_report(mined: Sequence[MinedQuestion]) -> MiningReport:
    """Count what mining found.

    Args:
        mined: the record of each question, at least one.
    """
    return MiningReport(
        num_questions=len(mined),
        num_negatives=sum(len(question.negatives) for question in mined),
        num_without=sum(not question.negatives for question in mined),
        num_close=sum(question.num_close for question in mined),
        first_frac=sum(question.right_rank == 1 for question in mined) / len(mined),
    )
