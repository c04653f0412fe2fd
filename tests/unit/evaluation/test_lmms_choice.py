from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.oracles.lmms_choice import (
    mmmu_choice,
    mmmu_open_answers,
    mmmu_open_is_right,
    muirbench_answer,
    muirbench_is_right,
    muirbench_question,
    strip_reasoning,
)

FRUIT = ["red apple", "green pear", "blue plum", "yellow fig"]


def test_every_vector_reads_as_in_lmms_eval(parity: Callable[[str], list[dict[str, Any]]]) -> None:
    operations = set()
    for vector in parity("lmms_eval_mcq"):
        inputs, expected = vector["inputs"], vector["expected"]
        operations.add(inputs["op"])
        match inputs["op"]:
            case "mmmu_mcq":
                found: Any = mmmu_choice(inputs["response"], inputs["options"]) or "<random fallback>"
            case "mmmu_open":
                answers = mmmu_open_answers(inputs["response"])
                found = {
                    "parsed_set": sorted(map(str, answers)),
                    "eval_open": mmmu_open_is_right(answers, inputs["gold"]),
                }
                expected = expected | {"parsed_set": sorted(expected["parsed_set"])}
            case "muirbench":
                found = {
                    "filtered": muirbench_answer(inputs["response"]),
                    "correct": int(muirbench_is_right(inputs["response"], inputs["answer"])),
                }
            case "strip_reasoning":
                found = strip_reasoning(
                    inputs["text"], [(opening, closing) for opening, closing in inputs["tag_pairs"]]
                )
            case other:
                raise AssertionError(f"{vector['id']} has an operation of its own: {other}")
        assert found == expected, vector["id"]
    assert operations == {"mmmu_mcq", "mmmu_open", "muirbench", "strip_reasoning"}


@pytest.mark.parametrize(
    ("response", "letter"),
    [
        ("The answer is (B) not (C)", "C"),
        ("B, because A is wrong", "A"),
        ("I think the green pear is right here", "B"),
        ("red apple", None),  # five words at most: options are not looked for
        (r"\boxed{C}", None),
        ("a", None),
        ("<answer>B</answer>", None),
        ("<answer>B </answer>", "B"),
        ("ABCD", "D"),  # in front of a blank
        ("'.B", "B"),  # edges go one character after the other
        (".', B", "B"),
        ("yes A.Bc d", "A"),  # only in front of a period
        ("DNA A.", "A"),
    ],
)
def test_choices_are_read_as_lmms_eval_reads_them(response: str, letter: str | None) -> None:
    assert mmmu_choice(response, FRUIT) == letter


def test_an_empty_tail_starts_the_search_for_the_shortest_anew() -> None:
    # "so " has the tail "9 is =", "is " then "=", "final " none at all and "=" an empty one, last: no tail is left.
    assert mmmu_open_answers("so 9 is =") == {"so 9 is =", 9.0}
    # The last line may be an equation; a line above it may not.
    assert mmmu_open_answers("x = 3\ny = 4") == {4.0}


def test_open_answers_hold_gold_as_a_part_or_a_number() -> None:
    assert mmmu_open_is_right({"a cat"}, ["dog", "cat"])
    assert mmmu_open_is_right({3.14}, "3.141")
    assert not mmmu_open_is_right({"3.5 cm"}, "3.5")


def test_a_muirbench_question_has_lettered_options() -> None:
    assert muirbench_question("How many?", ["one", "two"], behind="\nAnswer:") == "How many?\nA. one\nB. two\nAnswer:"


def test_reasoning_without_a_start_goes_and_unclosed_reasoning_stays() -> None:
    assert strip_reasoning("a</think>b</think> c ") == "c"
    assert strip_reasoning("</think><think>c") == "</think><think>c"
    assert strip_reasoning("<think>a</think><think>b</think>c") == "c"
