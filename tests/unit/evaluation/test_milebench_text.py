from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rsgrpo.evaluation.benchmarks.milebench_text import (
    OriginalRaisesError,
    lcs_length,
    match_choice,
    normalize,
    option_label,
    rouge_l,
    score_choice,
    score_needle,
    score_rouge,
    score_substring,
)

Parity = Callable[[str], list[dict[str, Any]]]


def test_normalisation_equals_the_original(parity: Parity) -> None:
    for vector in parity("milebench_normalize"):
        assert normalize(vector["inputs"]["text"]) == vector["expected"], vector["id"]


def test_choices_equal_the_original(parity: Parity) -> None:
    for vector in parity("milebench_multichoice"):
        inputs, expected = vector["inputs"], vector["expected"]
        arguments = (inputs["pred_response"], inputs["gt_response"], inputs["choice_list"])
        if "raises" in expected:
            with pytest.raises(OriginalRaisesError):
                score_choice(*arguments)
            continue
        score = score_choice(*arguments)
        assert (score.extracted, score.score) == (expected["extracted"], expected["score"]), vector["id"]
        assert [normalize(choice) for choice in inputs["choice_list"]] == expected["choices_processed"]


def test_needles_and_substrings_equal_the_original(parity: Parity) -> None:
    rules = {"needle": score_needle, "substring": score_substring}
    for vector in parity("milebench_needle"):
        inputs = vector["inputs"]
        score = rules[inputs["op"]](inputs["pred_response"], inputs["gt_response"])
        assert score == vector["expected"]["score"], vector["id"]


def test_rouge_equals_the_original(parity: Parity) -> None:
    for vector in parity("milebench_rouge"):
        inputs, expected = vector["inputs"], vector["expected"]
        if "raises" in expected:
            with pytest.raises(OriginalRaisesError):
                score_rouge(inputs["pred_response"], inputs["gt_response"])
            continue
        score = score_rouge(inputs["pred_response"], inputs["gt_response"])
        assert score == pytest.approx(expected["rouge_l_f"], abs=1e-9), vector["id"]


def test_labels_equal_the_original(parity: Parity) -> None:
    for vector in parity("milebench_aggregate"):
        if vector["inputs"]["op"] == "letter":
            assert option_label(vector["inputs"]["index"]) == vector["expected"], vector["id"]


def words_of_a_walk(reference: list[str], hypothesis: list[str]) -> set[str]:
    """The definition: a full table, and the way back that drops the reference word only if strictly better."""
    table = [[0] * (len(hypothesis) + 1) for _ in range(len(reference) + 1)]
    for i, left in enumerate(reference, start=1):
        for j, right in enumerate(hypothesis, start=1):
            table[i][j] = table[i - 1][j - 1] + 1 if left == right else max(table[i - 1][j], table[i][j - 1])
    words, i, j = set(), len(reference), len(hypothesis)
    while i and j:
        if reference[i - 1] == hypothesis[j - 1]:
            words.add(reference[i - 1])
            i, j = i - 1, j - 1
        elif table[i - 1][j] > table[i][j - 1]:
            i -= 1
        else:
            j -= 1
    return words


TEXT = st.lists(st.sampled_from(["a", "b", "c", "d", "e", "."]), min_size=1, max_size=24)


@given(TEXT, TEXT)
def test_bit_vectors_find_the_words_of_the_definition(reference: list[str], hypothesis: list[str]) -> None:
    left, right = " ".join(["x", *reference]), " ".join(["y", *hypothesis])
    gold, said = ([" ".join(part.split()).split(" ") for part in text.split(".") if part] for text in (left, right))
    union = set().union(
        *(words_of_a_walk(gold_sentence, said_sentence) for gold_sentence in gold for said_sentence in said)
    )
    precision = len(union) / len({word for sentence in said for word in sentence})
    recall = len(union) / len({word for sentence in gold for word in sentence})
    expected = 2 * precision * recall / (precision + recall + 1e-8)
    assert rouge_l(right, left) == pytest.approx(expected, abs=1e-12)


@given(st.lists(st.sampled_from("abc"), max_size=9), st.lists(st.sampled_from("abc"), max_size=9))
def test_a_common_subsequence_is_as_long_from_either_side(left: list[str], right: list[str]) -> None:
    assert lcs_length(left, right) == lcs_length(right, left) <= min(len(left), len(right))


def test_what_stops_the_original_is_named() -> None:
    for prediction, reference in [("word", "."), ("." * 40, "word"), ("a " * 1000, "b " + "a " * 500)]:
        with pytest.raises(OriginalRaisesError):
            score_rouge(prediction, reference)


def test_an_option_with_special_characters_never_equals_its_own_pattern() -> None:
    # The hit "$5" carries a backslash in the pattern: rule 2 falls through, and no character is a label.
    assert match_choice("it is $5", ["$5", "$6"]) == ""
