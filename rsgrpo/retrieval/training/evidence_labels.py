"""What the responses to one question say of its pages, weighed by their answers: positives and hard negatives.

A response says of a page that it helps (its evidence line holds something), that it does not (``no relevant
information``), or nothing (it has no line, or an empty one). A policy that answers correctly has most likely read the
right page, so its lines are evidence about the pages; the lines of a wrong answer are evidence of nothing: the page
that it calls irrelevant may be the very page that it failed to read.

For one question let response r have the correctness s_r in [0, 1]. With the settings of
:class:`rsgrpo.config.distill.DistillConfig`::

    c_r = s_r  where s_r >= min_correctness, else 0          a wrong answer counts for nothing
    g_r = 1    where r says of at least one page that it helps, else 0
    m_r = c_r g_r                                            weight of a response
    M   = sum_r m_r
    S_i = sum of m_r over the r that say that page i helps
    D_i = sum of m_r over the r that say that it does not
    w_i = S_i / (M + prior_responses)                        weight as a positive
    v_i = D_i / (M + prior_responses)                        weight as a negative

    page i is   positive     if S_i > 0 and S_i >= min_agreement (S_i + D_i) and w_i >= min_weight
                negative     if D_i > 0 and D_i >= min_agreement (S_i + D_i) and v_i >= min_weight
                disputed     if S_i > 0 and D_i > 0 and neither reaches min_agreement
                weak         if one reaches min_agreement, but its weight lies below min_weight
                unmentioned  if S_i = D_i = 0

Why g_r: a response that answers correctly and cites no page did not answer from the pages. It guessed, or knew; what
it says about the pages proves nothing.

Why a question that the pages do not answer is left out as a whole: a refusal is right there whether or not anything
was read, so that its correctness says nothing about the lines; a page with a part of the answer is rightly called
evidence by some responses and rightly not by others; and without a positive there is no row that a negative could
stand in. For the last reason the negatives of a question without any positive are left out, too.

Laws (tests/unit/retrieval/test_evidence_labels.py): wrong responses never make or change a label; a further correct
response that says what a label says never lowers its weight or removes it; the order of responses does not matter; as
min_agreement lies above 1/2, no page is both.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from rsgrpo.config.distill import DistillConfig
from rsgrpo.text.normalise import is_irrelevant
from rsgrpo.text.sections import ParsedResponse

Decision = Literal["positive", "negative", "disputed", "weak", "unmentioned"]
"""What was decided of a page."""

LeftOut = Literal[
    "", "unanswerable", "no correct response", "few correct responses", "no evidence cited", "no positive"
]
"""Why a question gives no pair; empty: it gives at least one."""

_ROUNDING = 1e-9  # sums of weights in another order differ by this much at most


@dataclass(frozen=True, kw_only=True, slots=True)
class JudgedResponse:
    """What one response is worth, and what it says of the pages.

    Attributes:
        correctness: how correct its answer is, from 0 to 1.
        helps: for each page whether the response says that it helps; None: the response does not say.
    """

    correctness: float
    helps: tuple[bool | None, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class PageLabel:
    """What was decided of one page of a question.

    Attributes:
        decision: what the page is.
        weight: w_i of a positive, v_i of a negative, in (0, 1]; 0.0 otherwise.
        num_for: how many of the weighed responses say that the page helps.
        num_against: how many of the weighed responses say that it does not.
    """

    decision: Decision
    weight: float
    num_for: int
    num_against: int


@dataclass(frozen=True, kw_only=True, slots=True)
class QuestionLabels:
    """What was decided of one question.

    Attributes:
        pages: one label for each page, in the order of the pages. Also of a question that is left out, to be looked at.
        left_out: why the question gives no pair; empty: it does.
        num_responses: how many responses there are.
        num_correct: how many of them are correct.
        num_weighed: how many of these cite a page, so that their lines count.
    """

    pages: tuple[PageLabel, ...]
    left_out: LeftOut
    num_responses: int
    num_correct: int
    num_weighed: int


def page_statements(parsed: ParsedResponse, num_pages: int) -> tuple[bool | None, ...]:
    """What a response says of each page.

    Args:
        parsed: the response, taken apart.
        num_pages: how many pages the question has; lines about further ones are not looked at.

    Returns:
        For each page True (its line holds evidence), False (``no relevant information`` and nothing else) or None (no
        line, or an empty one). Of a label that comes twice the first line counts.

    Example:
        ``<evidence>[1]: the digit is 7\\n[3]: no relevant information</evidence>`` gives, for 3 pages,
        ``(True, None, False)``.
    """
    lines = parsed.first_lines()
    statements: list[bool | None] = []
    for index in range(num_pages):
        text = lines[index].text if index in lines else ""
        statements.append(None if not text else not is_irrelevant(text))
    return tuple(statements)


def label_pages(
    responses: Sequence[JudgedResponse], num_pages: int, settings: DistillConfig, *, is_sufficient: bool = True
) -> QuestionLabels:
    """Decide of each page of a question whether it is a positive, a hard negative, or left out.

    Args:
        responses: all responses to the question, in any order.
        num_pages: how many pages the question has.
        settings: the bounds of the formulas at the top of this module.
        is_sufficient: whether the pages hold the answer.

    Returns:
        The labels of the pages, and why the question gives no pair, if it does not.

    Raises:
        ValueError: a correctness lies outside [0, 1], or a response speaks of another number of pages.

    Example:
        Eight correct responses, of which seven cite page 1 and one calls it irrelevant, with min_agreement 0.8 and
        prior_responses 1: M = 8 (if the eighth cites another page), S_1 = 7, D_1 = 1; 7 >= 0.8 · 8, so page 1 is a
        positive of weight 7 / 9.
    """
    for response in responses:
        if not 0.0 <= response.correctness <= 1.0:
            raise ValueError(f"a correctness of {response.correctness} lies outside 0 to 1")
        if len(response.helps) != num_pages:
            raise ValueError(f"a response speaks of {len(response.helps)} pages, the question has {num_pages}")
    correct = [response for response in responses if response.correctness >= settings.min_correctness]
    weighed = [response for response in correct if any(response.helps)]
    # fsum: the same to the bit in any order of the responses.
    denominator = math.fsum(response.correctness for response in weighed) + settings.prior_responses
    pages = tuple(_label(index, weighed, denominator, settings) for index in range(num_pages))
    return QuestionLabels(
        pages=pages,
        left_out=_why_left_out(len(responses), correct, weighed, pages, settings, is_sufficient=is_sufficient),
        num_responses=len(responses),
        num_correct=len(correct),
        num_weighed=len(weighed),
    )


def _label(index: int, weighed: Sequence[JudgedResponse], denominator: float, settings: DistillConfig) -> PageLabel:
    for_page = [response.correctness for response in weighed if response.helps[index] is True]
    against_page = [response.correctness for response in weighed if response.helps[index] is False]
    support, dissent = math.fsum(for_page), math.fsum(against_page)
    needed = settings.min_agreement * (support + dissent) - _ROUNDING
    decision: Decision
    weight = 0.0
    if not for_page and not against_page:
        decision = "unmentioned"
    elif support < needed and dissent < needed:
        decision = "disputed"
    else:
        larger = max(support, dissent)
        decision = "positive" if support > dissent else "negative"
        weight = larger / denominator
        if weight < settings.min_weight - _ROUNDING:
            decision, weight = "weak", 0.0
    return PageLabel(decision=decision, weight=weight, num_for=len(for_page), num_against=len(against_page))


def _why_left_out(
    num_responses: int,
    correct: Sequence[JudgedResponse],
    weighed: Sequence[JudgedResponse],
    pages: Sequence[PageLabel],
    settings: DistillConfig,
    *,
    is_sufficient: bool,
) -> LeftOut:
    if not is_sufficient:
        return "unanswerable"
    if not correct:
        return "no correct response"
    if len(correct) < settings.min_correct_frac * num_responses - _ROUNDING:
        return "few correct responses"
    if not weighed:
        return "no evidence cited"
    return "" if any(page.decision == "positive" for page in pages) else "no positive"
