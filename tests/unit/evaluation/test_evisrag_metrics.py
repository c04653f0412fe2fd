from __future__ import annotations

import re
import string
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rsgrpo.config import ResponseFormat, SectionRule
from rsgrpo.evaluation.metrics import (
    aggregate,
    evidence_scores,
    official_answer,
    score_answer,
    score_response,
    strict_score_answer,
)
from rsgrpo.text.normalise import is_refusal, normalize_answer, normalize_keeping_numbers, set_f1
from rsgrpo.text.sections import parse_response

Parity = Callable[[str], list[dict[str, Any]]]


def vectors(parity: Parity, operation: str) -> list[dict[str, Any]]:
    chosen = [vector for vector in parity("evisrag_em_acc_f1") if vector["inputs"]["op"] == operation]
    assert chosen
    return chosen


def test_normalisation_equals_the_original(parity: Parity) -> None:
    for vector in vectors(parity, "normalize"):
        assert normalize_answer(vector["inputs"]["text"]) == vector["expected"], vector["id"]


def test_scores_equal_the_original(parity: Parity) -> None:
    for vector in vectors(parity, "score"):
        inputs, expected = vector["inputs"], vector["expected"]
        score = score_answer(inputs["prediction"], inputs["answers"], is_sufficient=inputs["is_sufficient"])
        assert official_answer(inputs["prediction"]) == expected["extracted"], vector["id"]
        assert (score.em, score.accuracy) == (expected["em"], expected["acc"]), vector["id"]
        assert score.f1 == pytest.approx(expected["f1"], abs=1e-12), vector["id"]


def test_aggregates_equal_the_original(parity: Parity) -> None:
    names = {
        "global_em": "em",
        "global_acc": "accuracy",
        "global_f1": "f1",
        "issuff_em": "answerable_em",
        "issuff_acc": "answerable_accuracy",
        "issuff_f1": "answerable_f1",
        "unsuff_em": "unanswerable_em",
        "cnt_global": "num_responses",
        "cnt_issuff": "num_answerable",
        "cnt_unsuff": "num_unanswerable",
    }
    for vector in vectors(parity, "aggregate"):
        metrics = aggregate(
            [
                score_response(row["prediction"], row["answers"], is_sufficient=row["is_sufficient"])
                for row in vector["inputs"]["rows"]
            ]
        )
        assert set(vector["expected"]) == set(names)
        for official, ours in names.items():
            assert getattr(metrics, ours) == pytest.approx(vector["expected"][official], abs=1e-12), vector["id"]


WORDS = st.sampled_from(
    ["a", "an", "the", "The", "A-team", "3.5", "-3", "“the”", "a–b", "café", "\x00the", "\ue000a", "b."]
)


@given(st.one_of(st.text(max_size=30), st.lists(WORDS, max_size=8).map(" ".join)))
def test_fast_normalisation_is_the_definition(text: str) -> None:
    bare = "".join(character for character in text.lower() if character not in string.punctuation)
    assert normalize_answer(text) == " ".join(re.sub(r"\b(a|an|the)\b", " ", bare).split())


@given(st.text(alphabet="aAthe .,-%()“ 3", max_size=30))
def test_keeping_numbers_differs_only_in_points_and_signs(text: str) -> None:
    kept = normalize_keeping_numbers(text)
    assert kept.replace(".", "").replace("-", "") == normalize_answer(text)
    assert normalize_keeping_numbers(kept) == kept


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("3.5", "3.5"),
        ("3.5.", "3.5"),
        ("v1.2.3", "v1.2.3"),
        (".5", "5"),
        ("$1,234.50", "1234.50"),
        ("-3", "-3"),
        ("(-3)", "-3"),
        ("10-20", "1020"),
        ("A-Team", "ateam"),
        ("3 %", "3"),
        ("etc. The end", "etc end"),
    ],
)
def test_numbers_keep_their_points_and_signs(text: str, normal: str) -> None:
    assert normalize_keeping_numbers(text) == normal


def test_set_f1_by_hand() -> None:
    # 2 of 3 words right, 2 of 4 found: p = 2/3, r = 1/2, F1 = 2 (1/3) / (7/6) = 4/7
    assert set_f1(["a", "b", "x", "x"], ["a", "b", "c", "d"]) == pytest.approx(4 / 7)
    assert set_f1([], []) == set_f1(["a"], []) == set_f1(["a"], ["b"]) == 0.0


def test_strict_scores_need_the_answer_section_and_keep_numbers() -> None:
    assert score_answer("the answer is 3.5", ["3.5"]).accuracy == 1.0
    assert strict_score_answer("the answer is 3.5", ["3.5"]).accuracy == 0.0
    assert strict_score_answer("<answer>3.5", ["3.5"]).accuracy == 0.0
    assert score_answer("<answer>3.5</answer>", ["35"]).em == 1.0
    assert strict_score_answer("<answer>3.5</answer>", ["35"]).em == 0.0
    exact = strict_score_answer("<answer>3.5</answer>", ["4", "3.5"])
    assert (exact.em, exact.accuracy, exact.f1) == (1.0, 1.0, 1.0)  # no epsilon: an exact match is 1


GOLD = "<evidence>\n[1]: the price is 12\n[2]: no relevant information\n[3]:\n</evidence>"


@pytest.mark.parametrize(
    ("evidence", "expected"),
    [
        # words {price, 12} of {price, is, 12}: p = 1, r = 2/3, F1 = 4/5; image 3 has an empty gold line: left out
        ("[1]: price 12\n[2]: No relevant information.", {0: 0.8, 1: 1.0}),
        ("[1]: price 12\n[2]: a chart", {0: 0.8, 1: 0.0}),
        ("[1]: no relevant information\n[2]: no relevant information", {0: 0.0, 1: 1.0}),
        # invented evidence with the marker behind it is not "no relevant information"
        ("[1]: the price is 12\n[2]: the price is 12, no relevant information", {0: 1.0, 1: 0.0}),
        ("[2]: no relevant information", {0: 0.0, 1: 1.0}),
        ("", {0: 0.0, 1: 0.0}),
        # everything on one line: only the label at the line's start counts; p = 3/7, r = 1, F1 = 3/5
        ("[1]: the price is 12 [2]: no relevant information", {0: 0.6, 1: 0.0}),
    ],
)
def test_evidence_is_judged_image_by_image(evidence: str, expected: dict[int, float]) -> None:
    scores = evidence_scores(parse_response(f"<evidence>{evidence}</evidence>"), parse_response(GOLD))
    assert scores == pytest.approx(expected)


def test_marking_a_helpful_image_irrelevant_earns_nothing() -> None:
    gold = parse_response("<evidence>[1]: no price information</evidence>")
    response = parse_response("<evidence>[1]: no relevant information</evidence>")
    assert evidence_scores(response, gold) == {0: 0.0}  # set-F1 would be 2/3


def test_all_metrics_of_a_small_test_set() -> None:
    gold = GOLD + "<answer>12</answer>"
    perfect = (
        "<observe>o</observe><evidence>[1]: the price is 12\n[2]: no relevant information</evidence>"
        "<think>t</think><answer>12</answer>"
    )
    scores = [
        score_response(perfect, ["12"], True, gold),
        score_response("<answer>insufficient to answer</answer>", ["12"], True, gold),  # refused although answerable
        score_response("<answer>Insufficient to answer.</answer>", ["x"], False),
        score_response("<answer>12</answer>", ["x"], False),
    ]
    metrics = aggregate(scores)
    assert metrics.em == metrics.strict_em == 0.5
    assert (metrics.answerable_em, metrics.unanswerable_em) == (0.5, 0.5)
    assert (metrics.abstention_answerable_frac, metrics.abstention_unanswerable_frac) == (0.5, 0.5)
    assert metrics.well_formed_frac == 0.25
    assert metrics.evidence_f1 == 0.5  # 1 and 0, over the two responses that have gold evidence
    assert (metrics.num_responses, metrics.num_with_gold_evidence) == (4, 2)


def test_an_empty_test_set_gives_zeros() -> None:
    metrics = aggregate([])
    assert metrics.em == metrics.evidence_f1 == metrics.well_formed_frac == metrics.abstention_unanswerable_frac == 0.0
    assert metrics.num_responses == 0


def test_only_a_bare_refusal_is_an_abstention() -> None:
    assert is_refusal("Insufficient to answer.")
    assert is_refusal("no relevant information")
    assert not is_refusal("There is no relevant information in the images, so 12")
    assert not score_response("insufficient to answer", [], False).is_abstention  # no answer section


def test_form_and_lines_go_by_the_declared_sections():
    looks = ResponseFormat(
        sections=(
            SectionRule(name="think", order=0),
            SectionRule(name="look", order=1, repeatable=True, per_image_lines=True),
            SectionRule(name="answer", order=2),
        )
    )
    text = "t</think><look>[1]: price 12</look><look>[2]: no relevant information</look><answer>12</answer>"
    gold = f"<think>{text}"
    score = score_response(text, ["12"], gold_response=gold, response_format=looks, opened="think")
    assert (score.is_well_formed, score.evidence_f1, score.strict_em) == (True, 1.0, 1.0)
    # without the tag in the prompt the response lacks a section
    assert not score_response(text, ["12"], gold_response=gold, response_format=looks).is_well_formed
    # by EVisRAG's sections there is no evidence in it, and the official numbers are the same
    plain = score_response(text, ["12"], gold_response=gold)
    assert (plain.is_well_formed, plain.evidence_f1) == (False, None)
    assert (plain.em, plain.accuracy, plain.f1) == (score.em, score.accuracy, score.f1)
