"""Haystacks and multiple choice: what counts as found, and as chosen."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.base import RewardCall
from rewards.functions.haystack import needle_found, needle_lines, yes_no
from rewards.functions.multiple_choice import choice, chosen_option, option_label
from rsgrpo.types import ImageRef, Sample
from tests.unit.reward_calls import make_call

NONE = "no relevant information"


def call(text: str, *, num_images: int = 3, **sample: Any) -> RewardCall:
    images = tuple(ImageRef(path=f"{n}.png") for n in range(num_images))
    return make_call(Sample(sample_id="q", images=images, **sample), text)


def lines(*texts: str | None) -> str:
    return "<evidence>" + "\n".join(f"[{n}]: {text}" for n, text in enumerate(texts, 1) if text) + "</evidence>"


# --- haystack ---


@pytest.mark.parametrize(
    ("answer", "gold", "expected"),
    [
        ("yes", "yes", 1.0),
        ("Yes, there is a dog.", "yes", 1.0),
        ("No", "no", 1.0),
        ("no", "yes", 0.0),
        ("yes and no", "yes", 0.0),
        ("yes/no", "yes", 0.0),
        ("yes-no", "no", 0.0),
        ("a dog", "yes", 0.0),
        (NONE, "no", 0.0),
        (f"No, {NONE}", "no", 1.0),
        ("yes", "Yes", 1.0),
        ("yes", "a dog", None),
    ],
)
def test_yes_no(answer: str, gold: str, expected: float | None) -> None:
    assert yes_no(call(f"<answer>{answer}</answer>", answers=(gold,))) == expected


def test_an_answer_outside_of_the_section_does_not_count() -> None:
    assert yes_no(call("yes", answers=("yes",))) == 0.0
    assert choice(call("B", choices=("a", "b"), answers=("B",))) == 0.0


@pytest.mark.parametrize(
    ("texts", "expected_lines", "expected_found"),
    [
        # needle on page 2 of 3
        ((NONE, "a truck and a dog", NONE), [1, 1, 1], 1.0),
        ((NONE, "a truck and a dog", None), [1, 1, 0], 0.5),  # recall 1, spared 1/2
        ((NONE, NONE, NONE), [1, 0, 1], 0.0),  # 0 + 1 - 1
        (("a red truck",) * 3, [0, 1, 0], 0.0),  # 1 + 0 - 1
        ((NONE, f"a truck, {NONE}", NONE), [1, 0, 1], 0.0),  # both at once says nothing
        ((f"{NONE} but a truck", "a red truck", NONE), [0, 1, 1], 0.5),
        ((NONE, "a truck", NONE), [1, 0, 1], 0.0),  # one word, articles aside, is no evidence
        ((None, None, None), [0, 0, 0], 0.0),
    ],
)
def test_needles(texts: tuple[str | None, ...], expected_lines: list[float], expected_found: float) -> None:
    judged = call(lines(*texts), positive_images=(1,))
    assert needle_lines(judged) == expected_lines
    assert needle_found(judged) == pytest.approx(expected_found)


@given(st.lists(st.sampled_from([NONE, "red truck", None, "x"]), min_size=1, max_size=6), st.data())
def test_the_same_text_for_every_image_finds_no_needle(texts: list[str | None], data: st.DataObject) -> None:
    needles = tuple(sorted(data.draw(st.sets(st.integers(0, len(texts) - 1), min_size=1))))
    judged = call(lines(*texts), num_images=len(texts), positive_images=needles)
    assert 0.0 <= needle_found(judged) <= 1.0
    assert (needle_found(judged) == 1.0) == all(value == 1.0 for value in needle_lines(judged))
    if len(set(texts)) == 1 and len(needles) < len(texts):
        assert needle_found(judged) == 0.0


# --- multiple choice ---

OPTIONS = ("a cat", "a dog", "3.5 m")


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("B", 1), ("b", 1), ("(B)", 1), ("[b]:", 1), ("B.", 1), ("B. a dog", 1), ("B) A dog.", 1), ("A dog.", 1),
        ("C", 2), ("3.5 m", 2), (" C: 3.5 m ", 2),
        ("A. a dog", -1),  # letter and text disagree
        ("A or B", -1), ("A, B", -1), ("a cat, a dog", -1), ("D", -1), ("35 m", -1), ("", -1), ("AB", -1),
    ],
)  # fmt: skip
def test_chosen_option(answer: str, expected: int) -> None:
    assert chosen_option(answer, OPTIONS) == expected


def test_letters_come_before_texts_and_equal_texts_are_no_choice() -> None:
    assert chosen_option("A", ("B", "A")) == 0
    assert chosen_option("no", ("yes", "no")) == 1
    assert chosen_option("same", ("same", "same")) == -1


@given(st.integers(0, 27), st.sampled_from(["{}", "({})", "{}.", " {} "]))
def test_each_label_names_its_option_in_any_form(index: int, form: str) -> None:
    options = [f"option number {number}" for number in range(28)]
    assert chosen_option(form.format(option_label(index)), options) == index
    assert chosen_option(form.format(option_label(index).lower()), options) == index
    assert chosen_option(f"{option_label(index)}. {options[index]}", options) == index


@given(
    st.lists(st.integers(0, 3), min_size=2, max_size=4, unique=True), st.sampled_from([", ", " ", "/", " or ", "\n"])
)
def test_several_options_are_no_choice(indexes: list[int], between: str) -> None:
    options = ("red", "green", "blue", "yellow")
    assert chosen_option(between.join(option_label(index) for index in indexes), options) == -1
    assert chosen_option(between.join(options[index] for index in indexes), options) == -1


def test_choice_takes_gold_as_letter_or_text() -> None:
    for gold in ("B", "a dog", "B. a dog"):
        assert choice(call("<answer>(b)</answer>", choices=OPTIONS, answers=(gold,))) == 1.0
        assert choice(call("<answer>A</answer>", choices=OPTIONS, answers=(gold,))) == 0.0
    assert choice(call("<answer>A</answer>", choices=OPTIONS, answers=("a horse",))) is None
