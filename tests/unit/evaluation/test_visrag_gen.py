"""VisRAG-Gen's scorer, prompts, joined pages and choice of an answer, compared with the original's results."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from rsgrpo.data.images.joined import join_pages
from rsgrpo.evaluation.answer_choice import choose_answer
from rsgrpo.evaluation.benchmarks.milebench_text import OriginalRaisesError
from rsgrpo.evaluation.benchmarks.visrag_gen_text import normalise, score_answer
from rsgrpo.evaluation.prompts.visrag_gen import gen_prompt
from rsgrpo.retrieval.measuring.relevance_files import oracle_page_ids

Parity = Callable[[str], Any]


def test_answers_are_normalised_as_in_the_original(parity: Parity) -> None:
    vectors = parity("visrag_gen_score")
    texts = [vector for vector in vectors["helper_vectors"] if vector["fn"] == "preprocess_text"]
    for vector in (*texts, *vectors["contraction_vectors"]):
        assert normalise(vector["in"]) == vector["out"]
    assert len(texts) == 29 and len(vectors["contraction_vectors"]) == 120
    marks = vectors["punctuation_in_processing_order"]
    assert [normalise(f"x{mark}y") for mark in marks] == ["x y"] * 21


def test_scores_are_the_original_s_and_where_it_stops_so_do_we(parity: Parity) -> None:
    for vector in parity("visrag_gen_score")["score_vectors"]:
        arguments = (vector["dataset"], vector["response"], vector["answer"])
        if "raises" in vector["expected"]:
            with pytest.raises(OriginalRaisesError):
                score_answer(*arguments)
            continue
        expected, score = vector["expected"], score_answer(*arguments)
        answers = expected["processed_answer"]
        assert score.is_correct == bool(expected["correct"]), vector
        assert score.response == expected["processed_response"]
        assert list(score.answers) == (answers if isinstance(answers, list) else [answers])


@pytest.mark.parametrize(
    ("set_name", "response", "answer"),
    [
        ("ChartQA", "1", "0.0"),  # divides by zero
        ("PlotQA", "1", 1e-05),  # "1e-05" loses its hyphen, and "1e 05" is no number
        ("PlotQA", "7", True),
        ("ArxivQA", "", "A"),  # has no first character
        ("SlideVQA", "42", ["42"]),
        ("InfoVQA", "42", [42]),
        ("InfoVQA", "42", []),
    ],
)
def test_where_the_original_stops_strict_scores(set_name: Any, response: str, answer: Any) -> None:
    with pytest.raises(OriginalRaisesError):
        score_answer(set_name, response, answer)
    assert score_answer(set_name, response, answer, is_strict=True).is_correct == (response == "42" and answer != [])


@pytest.mark.parametrize(
    ("set_name", "response", "answer", "official", "strict"),
    [
        ("ChartQA", "-5", "5", True, False),  # a sign belongs to a number
        ("ChartQA", "0.0", "0", False, True),
        ("ChartQA", "43%", "42%", False, True),  # 2.4 % away
        ("ChartQA", "45%", "42%", False, False),  # 7.1 % away
        ("MP-DocVQA", "0.39", [".39"], False, True),
        ("InfoVQA", "12%", ["twelve", "12%"], False, True),
        ("InfoVQA", "A", ["the"], True, False),  # nothing is left of either
        ("SlideVQA", "1,234", "1234", True, True),
        ("SlideVQA", "2010-2015", "2010 2015", True, True),
        ("ArxivQA", " (b) blue", "B", False, True),
        ("ArxivQA", "Because of it", "B", True, False),
        ("PlotQA", "52", "50", False, False),  # a text has no tolerance
        ("PlotQA", "52", 50, True, True),
    ],
)
def test_what_strict_mends(set_name: Any, response: str, answer: Any, official: bool, strict: bool) -> None:
    assert score_answer(set_name, response, answer).is_correct == official
    assert score_answer(set_name, response, answer, is_strict=True).is_correct == strict


@given(st.sampled_from(["ChartQA", "MP-DocVQA", "InfoVQA", "PlotQA", "SlideVQA", "ArxivQA"]), st.text(), st.text())
def test_strict_never_stops(set_name: Any, response: str, answer: str) -> None:
    score_answer(set_name, response, answer, is_strict=True)


def test_prompts_are_the_original_s(parity: Parity) -> None:
    for vector in parity("visrag_gen_score")["prompt_vectors"]:
        assert gen_prompt(vector["dataset"], vector["query"], options=vector.get("options", ())) == vector["out"]
    # With texts, by the original's format: the texts one below the other behind their label.
    assert gen_prompt("InfoVQA", "Who?", page_texts=["a", "b"]).startswith("Image:a\nb\nAnswer the question using")
    assert gen_prompt("ArxivQA", "Who?", options=["A. x"], page_texts=["a"]).startswith("Hint: a\nQuestion: Who?\n")


def test_oracle_pages_are_the_original_s(parity: Parity) -> None:
    for vector in parity("visrag_gen_score")["oracle_docid_vectors"]:
        found = oracle_page_ids(vector["query_id"], dataset=vector["dataset"])
        assert list(found) == vector["oracle_docids"]
        assert vector["oracle_scores"] == [1 / len(found)] * len(found)


def test_joined_pages_are_the_original_s(parity: Parity) -> None:
    for vector in parity("visrag_gen_score")["concat_vectors"]:
        is_vertical = vector["fn"] == "vertical_concat"
        colours = [(40 + 50 * number, 20, 200 - 50 * number) for number in range(len(vector["input_sizes_wh"]))]
        pages = [
            Image.new("RGB", tuple(size), colour)
            for size, colour in zip(vector["input_sizes_wh"], colours, strict=True)
        ]
        if "raises" in vector:
            with pytest.raises(ValueError, match="no page to join"):
                join_pages(pages, is_vertical=is_vertical)
            continue
        joined = join_pages(pages, is_vertical=is_vertical)
        assert list(joined.size) == vector["output_size_wh"]
        for size, offset, colour in zip(vector["tile_sizes_wh"], vector["offsets"], colours, strict=True):
            corner = (0, offset) if is_vertical else (offset, 0)
            assert joined.getpixel((corner[0] + size[0] // 2, corner[1] + size[1] // 2)) == colour
            assert joined.getpixel((corner[0] + size[0] - 1, corner[1] + size[1] - 1)) == colour


def test_the_choice_of_an_answer_is_the_original_s(parity: Parity) -> None:
    for vector in parity("visrag_numeric")["weighted_selection"]:
        choice = choose_answer(vector["retrieval_scores"], vector["avg_logprob_of_best_beam"])
        assert vector["answers"][choice.index] == vector["selected"]
        assert choice.page_weights == pytest.approx(vector["lambda"], abs=2e-7)  # float32
        assert choice.confidences == pytest.approx(vector["confidence"], abs=2e-7)


@given(st.lists(st.tuples(st.floats(-1, 1), st.floats(-50, 0)), min_size=1, max_size=8))
def test_the_chosen_answer_has_the_highest_confidence(answers: list[tuple[float, float]]) -> None:
    choice = choose_answer([score for score, _ in answers], [logprob for _, logprob in answers])
    assert math.isclose(math.fsum(choice.page_weights), 1.0)
    assert choice.confidences[choice.index] >= max(choice.confidences) * (1 - 1e-9)


def test_very_unlikely_answers_are_told_apart() -> None:
    assert choose_answer([0.1, 0.1], [-900.0, -800.0]).index == 1  # exp of both is 0.0
    with pytest.raises(ValueError, match="one score for each answer"):
        choose_answer([0.1], [])
    with pytest.raises(ValueError, match="not finite"):
        choose_answer([0.1], [-math.inf])
