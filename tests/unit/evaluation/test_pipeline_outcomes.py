"""Outcomes of questions on their way through search, filter and answer: one each, whatever happens."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rsgrpo.config import EVISRAG
from rsgrpo.evaluation.pipeline_outcomes import OUTCOMES, PipelineCase, PipelineQuestion, ShownPages, judge_case

QUESTION = PipelineQuestion(query_id="q", answer="17", gold_pages=("c",), gold_evidence={"c": "total 17"})
ALL = ShownPages(found=("a", "b", "c"), kept=(0, 1, 2), numbers=(1, 2, 3))
FILTERED = dataclasses.replace(ALL, kept=(0, 1), numbers=(1, 2))
NOT_FOUND = ShownPages(found=("a", "b"), kept=(0, 1), numbers=(1, 2))
REFUSAL = "insufficient to answer"


def response(answer: str, third: str | None = "total 17", numbers: tuple[int, ...] = (1, 2, 3)) -> str:
    """A response whose last line of evidence says ``third``; None: it has no line for that page."""
    lines = [f"[{number}]: no relevant information" for number in numbers[:-1]]
    lines += [] if third is None else [f"[{numbers[-1]}]: {third}"]
    return f"<observe>x</observe><evidence>{chr(10).join(lines)}</evidence><think>x</think><answer> {answer} </answer>"


def case(question: PipelineQuestion, pages: ShownPages, text: str | None) -> PipelineCase:
    return judge_case(question, pages, text, EVISRAG)


@pytest.mark.parametrize(
    ("pages", "text", "outcome"),
    [
        (ALL, None, "not_answered"),
        (ALL, response("17"), "right"),
        (ALL, response("12", third="no relevant information"), "read_wrongly"),
        (ALL, response("12", third="total 12"), "read_wrongly"),
        (ALL, response("12", third=None), "read_wrongly"),
        (ALL, response("12", third="the total: 17"), "reasoned_wrongly"),
        (ALL, response(REFUSAL), "reasoned_wrongly"),
        (ALL, response(REFUSAL, third="no relevant information"), "read_wrongly"),
        (ALL, "12", "unclear"),
        (ALL, "17", "right"),
        (FILTERED, response(REFUSAL), "filtered_out"),
        (FILTERED, response("12"), "should_have_abstained"),
        (NOT_FOUND, response(REFUSAL), "page_not_found"),
        (NOT_FOUND, response("12"), "should_have_abstained"),
        (NOT_FOUND, response("17"), "right"),  # by chance, or by what it knows
    ],
)
def test_the_first_outcome_that_applies_is_given(pages: ShownPages, text: str | None, outcome: str) -> None:
    assert case(QUESTION, pages, text).outcome == outcome


def test_a_question_without_an_answer_wants_a_refusal() -> None:
    question = dataclasses.replace(QUESTION, answer=REFUSAL, gold_pages=(), gold_evidence={})
    assert case(question, ALL, response(REFUSAL)).outcome == "right"
    assert case(question, ALL, response("17")).outcome == "should_have_abstained"


def test_without_gold_evidence_reading_is_told_by_the_answer_where_it_can_be() -> None:
    question = dataclasses.replace(QUESTION, gold_evidence={})
    assert case(question, ALL, response("12", third="sum: 17")).outcome == "reasoned_wrongly"
    assert case(question, ALL, response("12", third="8 and 9")).outcome == "unclear"  # 17 may have to be computed
    assert case(question, ALL, response("12", third="no relevant information")).outcome == "read_wrongly"


def test_every_gold_page_is_needed_and_numbers_are_those_of_the_pages() -> None:
    question = dataclasses.replace(QUESTION, gold_pages=("a", "c"), gold_evidence={})
    # Page b was filtered out: a is [1] and c is [3].
    pages = ShownPages(found=("a", "b", "c"), kept=(0, 2), numbers=(1, 3))
    text = "<evidence>[1]: eight\n[3]: 17</evidence><answer>12</answer>"
    assert case(question, pages, text).outcome == "reasoned_wrongly"
    found = case(question, pages, "<evidence>[1]: eight\n[2]: 17</evidence><answer>12</answer>")
    assert (found.outcome, found.misread) == ("read_wrongly", ("c",))
    assert case(question, FILTERED, response("12")).outcome == "should_have_abstained"


def test_visrag_s_own_rule_judges_its_sets() -> None:
    question = dataclasses.replace(QUESTION, answer="42", rule="ChartQA")
    found = case(question, ALL, response("40"))  # 4.8 % below
    assert (found.outcome, found.is_official_right) == ("right", True)
    assert case(dataclasses.replace(question, rule=None), ALL, response("40")).outcome != "right"


@given(
    st.sampled_from([None, *(response(answer, third) for answer in ("17", "12", REFUSAL) for third in ("17", None))]),
    st.sampled_from([ALL, FILTERED, NOT_FOUND]),
    st.sampled_from([(), ("c",), ("a", "c")]),
)
def test_outcomes_are_disjoint_and_fit_what_was_found_and_shown(text: Any, pages: ShownPages, gold: Any) -> None:
    question = dataclasses.replace(QUESTION, gold_pages=gold, answer="17" if gold else REFUSAL, gold_evidence={})
    found = case(question, pages, text)
    assert found.outcome in OUTCOMES
    assert (found.outcome == "right") == found.is_right
    if found.outcome in ("read_wrongly", "reasoned_wrongly", "unclear"):
        assert found.is_shown and gold
    if found.outcome == "filtered_out":
        assert found.is_found and not found.is_shown and found.is_refusal
    if found.outcome == "page_not_found":
        assert not found.is_found and found.is_refusal
    if found.outcome == "should_have_abstained":
        assert not found.is_refusal and not (gold and found.is_shown)
