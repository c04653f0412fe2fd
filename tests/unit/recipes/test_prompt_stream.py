"""The order of questions is a pure function of seed, epoch and position."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recipes.prompt_stream import PromptStream
from rsgrpo.errors import RsgrpoError
from rsgrpo.types import ChatPrompt, PromptedSample, Sample
from tests.examples import examples


def _prompts(count: int) -> list[PromptedSample]:
    return [
        PromptedSample(sample=Sample(sample_id=f"q{index}"), prompt=ChatPrompt(sample_id=f"q{index}", text=""))
        for index in range(count)
    ]


def _ids(taken: list[PromptedSample]) -> list[str]:
    return [prompted.sample.sample_id for prompted in taken]


def test_without_shuffling_the_file_order_repeats() -> None:
    stream = PromptStream(_prompts(3), seed=0, shuffle=False)
    assert [_ids(stream.take(2)) for _ in range(3)] == [["q0", "q1"], ["q2", "q0"], ["q1", "q2"]]


@examples(50)
@given(count=st.integers(2, 30), sizes=st.lists(st.integers(1, 2), min_size=1, max_size=40), seed=st.integers(0, 9))
def test_going_on_from_a_position_equals_never_stopping(count: int, sizes: list[int], seed: int) -> None:
    whole = PromptStream(_prompts(count), seed=seed, shuffle=True)
    resumed = PromptStream(_prompts(count), seed=seed, shuffle=True)
    for size in sizes:
        expected = _ids(whole.take(size))
        assert _ids(resumed.take(size)) == expected
        assert len(set(expected)) == size
        resumed = PromptStream(_prompts(count), seed=seed, shuffle=True, position=resumed.position)


def test_an_epoch_shows_every_question_once() -> None:
    stream = PromptStream(_prompts(12), seed=3, shuffle=True)
    first = _ids(stream.take(4)) + _ids(stream.take(4)) + _ids(stream.take(4))
    assert sorted(first) == sorted(f"q{index}" for index in range(12))
    second = _ids(stream.take(12))
    assert sorted(second) == sorted(first)
    assert second != first


def test_questions_carried_over_are_passed_over() -> None:
    stream = PromptStream(_prompts(4), seed=0, shuffle=False)
    assert _ids(stream.take(2, without={"q0", "q2"})) == ["q1", "q3"]


def test_too_few_questions_are_refused() -> None:
    stream = PromptStream(_prompts(3), seed=0, shuffle=True)
    with pytest.raises(RsgrpoError, match="needs 4 different questions, the data set has 3"):
        stream.take(4)


def test_pages_are_searched_again_every_so_many_steps_also_by_a_process_that_goes_on() -> None:
    numbers: list[int] = []

    def search_again(number: int) -> tuple[list[PromptedSample], dict[str, float]]:
        numbers.append(number)
        return [replace(prompt, prompt=replace(prompt.prompt, text=f"{number}")) for prompt in _prompts(3)], {
            "n": number
        }

    stream = PromptStream(_prompts(3), seed=0, shuffle=False)
    stream.search_every(2, search_again)
    found = [dict(stream.find_pages(step)) for step in range(5)]
    assert found == [{}, {}, {"n": 1}, {}, {"n": 2}] and numbers == [1, 2]
    # Steps 0 and 1 show what was found before them, steps 2 and 3 the first search, step 4 the second.
    assert stream.take(1)[0].prompt.text == "2"
    resumed = PromptStream(_prompts(3), seed=0, shuffle=False)
    resumed.search_every(2, search_again)
    assert resumed.find_pages(3) == {"n": 1}


def test_a_search_that_gives_other_questions_is_refused() -> None:
    stream = PromptStream(_prompts(3), seed=0, shuffle=False)
    stream.search_every(1, lambda number: (_prompts(2), {}))
    with pytest.raises(ValueError, match="gave other questions"):
        stream.find_pages(1)
