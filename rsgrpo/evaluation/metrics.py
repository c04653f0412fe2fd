"""Judge answers on EVisRAG-Test: the official metrics bug for bug, strict ones beside them, and evidence.

Official (what published numbers are): the answer is the text after ``<answer>``, or the whole output
where the tag is missing; decimal points vanish (3.5 equals 35); accuracy asks only whether all words of
a reference occur. Strict: no answer section, no credit; decimal points and signs count; no epsilon in F1.

Which section is the answer (``response.answer_section``), whether a response is well formed, and what it says of each
image go by the declared sections. With EVisRAG's tags the official metrics are the public script's bug for bug; with
others they are the same rules on another tag.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from rsgrpo.config import EVISRAG, ResponseFormat
from rsgrpo.text.normalise import (
    REFUSALS,
    is_irrelevant,
    is_refusal,
    normalize_answer,
    normalize_keeping_numbers,
    set_f1,
)
from rsgrpo.text.sections import ParsedResponse, parse_response, section_content

_OFFICIAL_EPSILON = 1e-7  # in the original's F1, so an exact match scores 0.99999995


@dataclass(frozen=True, kw_only=True, slots=True)
class AnswerScore:
    """How one answer compares with its references; each number is the best over the references."""

    em: float
    accuracy: float
    f1: float


@dataclass(frozen=True, kw_only=True, slots=True)
class ResponseScore:
    """Everything that is measured of one response.

    Attributes:
        em: official exact match with the best reference, 0 or 1.
        accuracy: official accuracy: 1 if every word of one reference occurs in the answer, else 0.
        f1: official word F1 with the best reference, in [0, 1].
        strict_em: exact match by the strict rules, 0 or 1.
        strict_accuracy: accuracy by the strict rules, 0 or 1.
        strict_f1: word F1 by the strict rules, in [0, 1].
        evidence_f1: the mean of the evidence scores of the gold's images, in [0, 1]; None where there is no gold
            evidence.
        is_well_formed: whether the sections stand as they should.
        is_abstention: whether the answer section is a refusal and nothing else.
        is_sufficient: whether the pages hold the answer.
    """

    em: float
    accuracy: float
    f1: float
    strict_em: float
    strict_accuracy: float
    strict_f1: float
    evidence_f1: float | None
    is_well_formed: bool
    is_abstention: bool
    is_sufficient: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationMetrics:
    """Means over responses, each in [0, 1]; 0.0 where there is none to average.

    Attributes:
        em: official exact match over all responses (``global_em`` of the original).
        accuracy: official accuracy over all responses.
        f1: official F1 over all responses.
        answerable_em: official exact match over questions whose pages hold the answer (``issuff_em``).
        answerable_accuracy: official accuracy over questions whose pages hold the answer.
        answerable_f1: official F1 over questions whose pages hold the answer.
        unanswerable_em: official exact match with the refusals over the other questions (``unsuff_em``).
        unanswerable_accuracy: official accuracy with the refusals over the other questions; not in the original.
        unanswerable_f1: official F1 with the refusals over the other questions; not in the original.
        strict_em: exact match by the strict rules over all responses.
        strict_accuracy: accuracy by the strict rules over all responses.
        strict_f1: F1 by the strict rules over all responses.
        evidence_f1: the mean of ``evidence_f1`` over responses with gold evidence.
        well_formed_frac: the share of well-formed responses.
        abstention_answerable_frac: the share of responses to answerable questions that refuse (lower is better).
        abstention_unanswerable_frac: the share of responses to unanswerable questions that refuse (higher is better).
        num_responses: how many responses there are.
        num_answerable: how many of them are to questions whose pages hold the answer.
        num_unanswerable: how many of them are to the other questions.
        num_with_gold_evidence: how many responses have gold evidence, over which ``evidence_f1`` is averaged.
    """

    em: float
    accuracy: float
    f1: float
    answerable_em: float
    answerable_accuracy: float
    answerable_f1: float
    unanswerable_em: float
    unanswerable_accuracy: float
    unanswerable_f1: float
    strict_em: float
    strict_accuracy: float
    strict_f1: float
    evidence_f1: float
    well_formed_frac: float
    abstention_answerable_frac: float
    abstention_unanswerable_frac: float
    num_responses: int
    num_answerable: int
    num_unanswerable: int
    num_with_gold_evidence: int


def official_answer(text: str, section: str = EVISRAG.answer_section) -> str:
    """What the official scorer takes for the answer.

    The text between the first ``<answer>`` and the next ``<answer>`` or ``</answer>``, or the end; all of
    it where there is no ``<answer>``.

    Args:
        text: the whole output.
        section: the one with the answer; the public script's is ``answer``.
    """
    _, tag, rest = text.partition(f"<{section}>")
    if not tag:
        return text
    return rest.partition(f"<{section}>")[0].partition(f"</{section}>")[0]


def score_answer(
    text: str, answers: Sequence[str], *, is_sufficient: bool = True, section: str = EVISRAG.answer_section
) -> AnswerScore:
    """The official metrics of one output.

    Args:
        text: the whole output.
        answers: the accepted answers; the three refusals stand in for them if not ``is_sufficient``.
        is_sufficient: whether the pages hold the answer.
        section: see :func:`official_answer`.

    Returns:
        The best em, accuracy and F1 over the references, each by itself. A reference that shares no word with the
        answer counts for nothing, even where both are empty.

    Example:
        ``score_answer("<answer>The answer is Paris</answer>", ["Paris"])``: accuracy 1, F1 of
        precision 1/3 and recall 1, 0.49999996.
    """
    return _best_score(
        normalize_answer(official_answer(text, section)),
        answers if is_sufficient else REFUSALS,
        normalize_answer,
        _official_f1,
    )


def strict_score_answer(
    text: str, answers: Sequence[str], *, is_sufficient: bool = True, section: str = EVISRAG.answer_section
) -> AnswerScore:
    """The strict metrics of one output: closed answer section required, numbers kept, no epsilon.

    Args:
        text: the whole output.
        answers: references; the three refusals stand in for them if not ``is_sufficient``.
        is_sufficient: whether the pages hold the answer.
        section: the one with the answer.
    """
    answer = section_content(text, section)
    if answer is None:
        return AnswerScore(em=0.0, accuracy=0.0, f1=0.0)
    return _best_score(
        normalize_keeping_numbers(answer),
        answers if is_sufficient else REFUSALS,
        normalize_keeping_numbers,
        _plain_f1,
    )


def evidence_scores(
    response: ParsedResponse, gold: ParsedResponse, *, num_shown: int | None = None
) -> dict[int, float]:
    """How well each image's evidence line agrees with gold.

    An image that gold marks irrelevant scores 1 if the response's line says ``no relevant information``
    and nothing else, else 0. An image with gold evidence scores the set-F1 of the two lines' words
    (numbers kept), and 0 if the response has no line for it or marks it irrelevant. A label that comes
    twice counts the first time.

    Args:
        response: the whole response, with its tags.
        gold: the gold response, with its tags.
        num_shown: how many images were shown, where gold speaks of more: those that are irrelevant are left out, the
            evidence of the others is missed; None: all were shown.

    Returns:
        The score in [0, 1] by 0-based image index, for the images that gold has a line for; an empty gold line says
        nothing and is left out.

    Example:
        Gold ``[1]: the price is 12`` and ``[2]: no relevant information``; a response with
        ``[1]: price 12`` and ``[2]: a chart`` scores {0: 0.8, 1: 0.0}: precision 2/2, recall 2/3.
    """
    lines = response.first_lines()
    scores: dict[int, float] = {}
    for image_index, gold_line in gold.first_lines().items():
        is_shown = num_shown is None or image_index < num_shown
        if not gold_line.text or not (is_shown or not is_irrelevant(gold_line.text)):
            continue
        line = lines.get(image_index) if is_shown else None
        text = "" if line is None else line.text
        if is_irrelevant(gold_line.text) or is_irrelevant(text):
            scores[image_index] = float(is_irrelevant(gold_line.text) and is_irrelevant(text))
        else:
            scores[image_index] = set_f1(
                normalize_keeping_numbers(text).split(), normalize_keeping_numbers(gold_line.text).split()
            )
    return scores


def score_response(
    text: str,
    answers: Sequence[str],
    is_sufficient: bool = True,
    gold_response: str = "",
    *,
    response_format: ResponseFormat = EVISRAG,
    opened: str = "",
    page_numbers: Sequence[int] = (),
) -> ResponseScore:
    """Measure one response.

    Args:
        text: the whole output.
        answers: the answers that are accepted.
        is_sufficient: whether the pages hold the answer; if not, a refusal is what is right.
        gold_response: tagged gold, for the evidence score; empty where there is none.
        response_format: the declared sections.
        opened: the section that the prompt opened; empty: none.
        page_numbers: the number by which labels call each page that was shown; empty: all were, as 1, 2, ….

    Returns:
        All scores of the response. Of a page that was not shown, gold evidence counts as missed, and nothing is asked
        of the others.
    """
    parsed = parse_response(text, response_format, opened, page_numbers)
    gold = parse_response(gold_response, response_format, page_numbers=page_numbers)
    section = response_format.answer_section
    whole = f"<{section}>{text}" if opened == section else text  # the prompt wrote the tag that the scorers look for
    official = score_answer(whole, answers, is_sufficient=is_sufficient, section=section)
    strict = strict_score_answer(whole, answers, is_sufficient=is_sufficient, section=section)
    evidence = evidence_scores(parsed, gold, num_shown=len(page_numbers) or None)
    return ResponseScore(
        em=official.em,
        accuracy=official.accuracy,
        f1=official.f1,
        strict_em=strict.em,
        strict_accuracy=strict.accuracy,
        strict_f1=strict.f1,
        evidence_f1=_mean(evidence.values()) if evidence else None,
        is_well_formed=parsed.is_well_formed,
        is_abstention=is_refusal(parsed.content(section) or ""),
        is_sufficient=is_sufficient,
    )


def aggregate(scores: Sequence[ResponseScore]) -> EvaluationMetrics:
    """Means over responses (not over questions: a question answered twice counts twice).

    Args:
        scores: the scores of each response.

    Returns:
        The means of all metrics; 0.0 where there is no response to average over.
    """
    answerable = [score for score in scores if score.is_sufficient]
    unanswerable = [score for score in scores if not score.is_sufficient]
    evidence = [score.evidence_f1 for score in scores if score.evidence_f1 is not None]
    return EvaluationMetrics(
        em=_mean(score.em for score in scores),
        accuracy=_mean(score.accuracy for score in scores),
        f1=_mean(score.f1 for score in scores),
        answerable_em=_mean(score.em for score in answerable),
        answerable_accuracy=_mean(score.accuracy for score in answerable),
        answerable_f1=_mean(score.f1 for score in answerable),
        unanswerable_em=_mean(score.em for score in unanswerable),
        unanswerable_accuracy=_mean(score.accuracy for score in unanswerable),
        unanswerable_f1=_mean(score.f1 for score in unanswerable),
        strict_em=_mean(score.strict_em for score in scores),
        strict_accuracy=_mean(score.strict_accuracy for score in scores),
        strict_f1=_mean(score.strict_f1 for score in scores),
        evidence_f1=_mean(evidence),
        well_formed_frac=_mean(score.is_well_formed for score in scores),
        abstention_answerable_frac=_mean(score.is_abstention for score in answerable),
        abstention_unanswerable_frac=_mean(score.is_abstention for score in unanswerable),
        num_responses=len(scores),
        num_answerable=len(answerable),
        num_unanswerable=len(unanswerable),
        num_with_gold_evidence=len(evidence),
    )


def _mean(values: Iterable[float]) -> float:
    numbers = list(values)
    return sum(numbers) / len(numbers) if numbers else 0.0


def _official_f1(precision: float, recall: float) -> float:
    return 2 * precision * recall / (precision + recall + _OFFICIAL_EPSILON)


def _plain_f1(precision: float, recall: float) -> float:
    return 2 * precision * recall / (precision + recall)


def _best_score(
    prediction: str,
    references: Iterable[str],
    normalize: Callable[[str], str],
    f1_of: Callable[[float, float], float],
) -> AnswerScore:
    words = prediction.split()
    em = accuracy = f1 = 0.0
    for reference in map(normalize, references):
        reference_words = reference.split()
        num_common = (Counter(words) & Counter(reference_words)).total()
        if not num_common:
            continue
        em = max(em, float(prediction == reference))
        accuracy = max(accuracy, float(set(reference_words) <= set(words)))
        f1 = max(f1, f1_of(num_common / len(words), num_common / len(reference_words)))
    return AnswerScore(em=em, accuracy=accuracy, f1=f1)
