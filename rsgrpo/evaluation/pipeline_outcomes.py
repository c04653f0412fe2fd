"""What became of a question on its way through search, filter and answer: one outcome each, the first that applies.

``not_answered``
    There is no response: the request failed, or the prompt was too long.
``right``
    The answer is accepted; of a question without an answer: it refuses.
``should_have_abstained``
    The pages that were shown do not hold the answer, and it answers all the same.
``page_not_found``
    It refuses, and a gold page is not among the pages that were found.
``filtered_out``
    It refuses, all gold pages were found, and the filter left one out.
``read_wrongly``
    All gold pages were shown, and the response has no line of evidence for one of them, calls one irrelevant, or its
    line lacks a word of the gold evidence.
``reasoned_wrongly``
    All gold pages were shown, and their lines hold the gold evidence, or, where none is known, all words of an accepted
    answer.
``unclear``
    All gold pages were shown, and the response does not tell: it has no lines of evidence, or no gold evidence is known
    and the lines lack the answer, which may have to be computed.

A question needs all of its gold pages. Words are compared as the strict answers are: case and articles do not count,
numbers keep sign and point.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from rsgrpo.config import ResponseFormat
from rsgrpo.evaluation.benchmarks.milebench_text import OriginalRaisesError
from rsgrpo.evaluation.benchmarks.visrag_gen_text import GoldAnswer, SetName, score_answer
from rsgrpo.evaluation.metrics import score_answer as evisrag_score
from rsgrpo.evaluation.metrics import strict_score_answer
from rsgrpo.text.normalise import is_irrelevant, is_refusal, normalize_keeping_numbers
from rsgrpo.text.sections import parse_response, section_content

Outcome = Literal[
    "right",
    "page_not_found",
    "filtered_out",
    "read_wrongly",
    "reasoned_wrongly",
    "unclear",
    "should_have_abstained",
    "not_answered",
]
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)


@dataclass(frozen=True, kw_only=True, slots=True)
class PipelineQuestion:
    """A question with everything that it is judged by.

    Attributes:
        query_id: the id of the question.
        answer: the gold answer, with the type that the data set gives it; a refusal where no page holds it.
        gold_pages: the ids of the pages that the answer needs; empty where no page holds it.
        gold_evidence: what stands on a gold page of what the question needs, by page id, where it is known.
        rule: VisRAG's set whose rule judges answers; None: EVisRAG's strict exact match, and its official accuracy,
            which asks only that all words of an accepted answer occur.
    """

    query_id: str
    answer: GoldAnswer
    gold_pages: tuple[str, ...]
    gold_evidence: Mapping[str, str]
    rule: SetName | None = None

    @property
    def is_answerable(self) -> bool:
        """Whether a page holds the answer."""
        return bool(self.gold_pages)

    @property
    def accepted(self) -> tuple[str, ...]:
        """The accepted answers as texts."""
        if isinstance(self.answer, Sequence) and not isinstance(self.answer, str):
            return tuple(map(str, self.answer))
        return (str(self.answer),)


@dataclass(frozen=True, kw_only=True, slots=True)
class ShownPages:
    """The pages of a question at one depth of the search.

    Attributes:
        found: the ids of the pages that the search found, best first.
        kept: the 0-based places of those that the filter kept and the model saw, ascending.
        numbers: the number by which texts call each kept page.
    """

    found: tuple[str, ...]
    kept: tuple[int, ...]
    numbers: tuple[int, ...]

    @property
    def shown(self) -> tuple[str, ...]:
        """The ids of the pages that the model saw, in order."""
        return tuple(self.found[place] for place in self.kept)


@dataclass(frozen=True, kw_only=True, slots=True)
class PipelineCase:
    """What became of one question.

    Attributes:
        outcome: the first outcome that applies.
        is_right: whether the answer is right by the strict rule.
        is_official_right: whether it is right by the original's rule.
        is_refusal: whether it refuses to answer.
        is_found: whether all gold pages were found; true where there is none.
        is_shown: whether all gold pages were shown.
        misread: the ids of the gold pages that were read wrongly.
    """

    outcome: Outcome
    is_right: bool = False
    is_official_right: bool = False
    is_refusal: bool = False
    is_found: bool
    is_shown: bool
    misread: tuple[str, ...] = ()


def judge_case(
    question: PipelineQuestion, pages: ShownPages, response: str | None, response_format: ResponseFormat
) -> PipelineCase:
    """Say what became of a question.

    Args:
        question: the question with its gold.
        pages: the pages that were found and shown.
        response: the whole response; None: there is none.
        response_format: the declared sections. A response without the answer section is an answer as a whole.

    Returns:
        The outcome, as the table in the module's docstring says.

    Example:
        Gold page 3 of pages 1 to 3, all shown, and the line ``[3]: total 12`` where gold says ``total 17``:
        ``read_wrongly``. With the line ``[3]: total 17`` and the answer 12: ``reasoned_wrongly``.
    """
    is_found = set(question.gold_pages) <= set(pages.found)
    is_shown = set(question.gold_pages) <= set(pages.shown)
    if response is None:
        return PipelineCase(outcome="not_answered", is_found=is_found, is_shown=is_shown)
    section = section_content(response, response_format.answer_section)
    answer = response if section is None else section.strip()
    refuses = is_refusal(answer)
    official, strict = _is_right(question, answer)
    misread: tuple[str, ...] = ()
    if strict:
        outcome: Outcome = "right"
    elif not (question.is_answerable and is_shown) and not refuses:
        outcome = "should_have_abstained"
    elif not is_found:
        outcome = "page_not_found"
    elif not is_shown:
        outcome = "filtered_out"
    else:
        outcome, misread = _wrong_from_the_right_pages(question, pages, response, response_format)
    return PipelineCase(
        outcome=outcome,
        is_right=strict,
        is_official_right=official,
        is_refusal=refuses,
        is_found=is_found,
        is_shown=is_shown,
        misread=misread,
    )


def _is_right(question: PipelineQuestion, answer: str) -> tuple[bool, bool]:
    """Whether an answer is right by the original's rule and by the strict one."""
    if not question.is_answerable:
        return is_refusal(answer), is_refusal(answer)
    if question.rule is None:
        # Both look for the section, which was taken out above.
        whole = f"<answer>{answer}</answer>"
        official, strict = evisrag_score(whole, question.accepted), strict_score_answer(whole, question.accepted)
        return bool(official.accuracy), bool(strict.em)
    try:
        is_official = score_answer(question.rule, answer, question.answer).is_correct
    except OriginalRaisesError:
        is_official = False
    return is_official, score_answer(question.rule, answer, question.answer, is_strict=True).is_correct


def _wrong_from_the_right_pages(
    question: PipelineQuestion, pages: ShownPages, response: str, response_format: ResponseFormat
) -> tuple[Outcome, tuple[str, ...]]:
    """Tell reading from reasoning by the lines of evidence; with the gold pages that were read wrongly."""
    parsed = parse_response(response, response_format, page_numbers=pages.numbers)
    lines = parsed.first_lines()
    if not lines:
        return "unclear", ()
    place = {page_id: index for index, page_id in enumerate(pages.shown)}
    texts = {page_id: lines[place[page_id]].text for page_id in question.gold_pages if place[page_id] in lines}
    said = {page_id: text for page_id, text in texts.items() if text and not is_irrelevant(text)}
    misread = [
        page_id
        for page_id in question.gold_pages
        if page_id not in said or not _words(question.gold_evidence.get(page_id, "")) <= _words(said[page_id])
    ]
    if misread:
        return "read_wrongly", tuple(misread)
    if all(question.gold_evidence.get(page_id) for page_id in question.gold_pages):
        return "reasoned_wrongly", ()
    read = {word for text in said.values() for word in _words(text)}
    return ("reasoned_wrongly" if any(set() < _words(one) <= read for one in question.accepted) else "unclear"), ()


def _words(text: str) -> set[str]:
    return set(normalize_keeping_numbers(text).split())
