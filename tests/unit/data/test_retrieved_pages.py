"""Which gold follows when a retriever's pages stand in place of the data set's."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rsgrpo.data.files import DataError
from rsgrpo.data.retrieved_pages import can_show_found_pages, gold_pages, with_found_pages
from rsgrpo.text.sections import parse_response
from rsgrpo.types import Box, ImageRef, Sample, Turn
from tests.examples import examples

GOLD = (
    "<observe> two bills</observe>\n<evidence>\n[1]: no relevant information\n[2]: the price is 12\n</evidence>\n"
    "<think> page two says 12</think>\n<answer> 12</answer>"
)
OWN = tuple(ImageRef(path=name) for name in ("a", "b"))
STRANGER = ImageRef(path="c")
SAMPLE = Sample(
    sample_id="q", question="How much?", images=OWN, answers=("12",), gold_response=GOLD, positive_images=(1,)
)


def test_a_found_gold_page_keeps_the_answer_and_takes_its_line_along() -> None:
    shown = with_found_pages(SAMPLE, [STRANGER, OWN[1]], [None, 1])
    assert shown.images == (STRANGER, OWN[1])
    assert (shown.is_sufficient, shown.positive_images, shown.answers) == (True, (1,), ("12",))
    # Observation and thoughts were about other pages: they are no gold for these.
    assert shown.gold_response == (
        "<evidence>\n[1]: no relevant information\n[2]: the price is 12\n</evidence>\n<answer> 12</answer>"
    )


def test_without_the_gold_page_the_gold_answer_is_a_refusal() -> None:
    shown = with_found_pages(SAMPLE, [STRANGER, OWN[0]], [None, 0])
    assert (shown.is_sufficient, shown.positive_images, shown.answers) == (False, (), ("insufficient to answer",))
    assert shown.gold_response == (
        "<evidence>\n[1]: no relevant information\n[2]: no relevant information\n</evidence>\n"
        "<answer> insufficient to answer</answer>"
    )


def test_an_answer_that_needs_two_pages_is_refused_with_one_of_them_whose_evidence_stays() -> None:
    gold = GOLD.replace("[1]: no relevant information", "[1]: two of them")
    sample = replace(SAMPLE, gold_response=gold, positive_images=())
    assert gold_pages(sample) == (0, 1)  # both lines say more than that there is nothing
    shown = with_found_pages(sample, [OWN[1]], [1])
    assert not shown.is_sufficient and shown.positive_images == (0,)
    assert "[1]: the price is 12\n</evidence>" in shown.gold_response and "[2]" not in shown.gold_response


@examples(60)
@given(order=st.permutations(range(5)), count=st.integers(1, 5), gold=st.sets(st.integers(0, 4), min_size=1))
def test_every_shown_page_has_the_line_that_it_had(order: list[int], count: int, gold: set[int]) -> None:
    images = tuple(ImageRef(path=str(index)) for index in range(5))
    lines = "\n".join(
        f"[{index + 1}]: {f'says {index}' if index in gold else 'no relevant information'}" for index in range(5)
    )
    sample = replace(SAMPLE, images=images, gold_response=f"<evidence>\n{lines}\n</evidence>\n<answer> x</answer>")
    sample = replace(sample, positive_images=tuple(sorted(gold)))
    places = order[:count]
    shown = with_found_pages(sample, [images[place] for place in places], places)
    texts = [line.text for line in parse_response(shown.gold_response).evidence_lines]
    assert texts == [f"says {place}" if place in gold else "no relevant information" for place in places]
    assert shown.is_sufficient == (gold <= set(places))
    assert {places[index] for index in shown.positive_images} == gold & set(places)


def test_a_ready_prompt_gets_as_many_markers_as_there_are_pages() -> None:
    sample = replace(SAMPLE, prompt="<image><image>How much?")
    assert with_found_pages(sample, [*OWN, STRANGER], [0, 1, None]).prompt == "<image><image><image>How much?"
    spaced = replace(SAMPLE, prompt="See <image>\n<image>\nHow much?")
    assert with_found_pages(spaced, [STRANGER], [None]).prompt == "See <image>\nHow much?"


def test_a_gold_box_goes_with_its_page_or_is_gone() -> None:
    box = Box(left=0.1, top=0.1, right=0.2, bottom=0.2, image_index=1)
    sample = replace(SAMPLE, boxes=(box,))
    assert with_found_pages(sample, [OWN[1]], [1]).boxes == (replace(box, image_index=0),)
    assert with_found_pages(sample, [STRANGER], [None]).boxes == ()


def test_what_cannot_be_asked_over_other_pages_is_refused_by_name() -> None:
    refused = {
        "conversation": replace(SAMPLE, turns=(Turn(role="user", text="hi"),)),
        "names no gold page": replace(SAMPLE, is_sufficient=False),
        "words between its images": replace(SAMPLE, prompt="First <image> then <image> what?"),
    }
    for words, sample in refused.items():
        with pytest.raises(DataError, match=words):
            with_found_pages(sample, [STRANGER], [None])
    nothing = replace(SAMPLE, gold_response="", positive_images=())
    with pytest.raises(DataError, match="'q' names no gold page"):
        with_found_pages(nothing, [STRANGER], [None])


def test_a_trajectory_shows_other_pages_where_it_says_nothing_beside_evidence_and_answer() -> None:
    brief = replace(SAMPLE, gold_response=with_found_pages(SAMPLE, OWN, [0, 1]).gold_response)
    assert can_show_found_pages(brief)
    assert can_show_found_pages(replace(brief, gold_response="<answer> 12</answer>"))
    said = {
        "observation and thoughts": GOLD,
        "text in no section": f"Sure! {brief.gold_response}",
        "a section that is not declared": f"<note>two bills</note>\n{brief.gold_response}",
    }
    assert not any(can_show_found_pages(replace(brief, gold_response=text)) for text in said.values()), said
    unfit = {
        "no gold page": replace(brief, gold_response="<answer> 12</answer>", positive_images=()),
        "unanswerable": replace(brief, is_sufficient=False),
        "no trajectory": replace(brief, gold_response=""),
        "a conversation": replace(brief, turns=(Turn(role="user", text="How much?"),)),
    }
    assert not any(can_show_found_pages(sample) for sample in unfit.values())
