from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import rewards.functions.upstream as reference
from rewards.base import RewardCall
from rewards.functions.accuracy import accuracy
from rewards.functions.copying import observe_citation, think_copy
from rewards.functions.evidence import evidence, evidence_per_image
from rewards.functions.format import format as well_formed
from rewards.functions.format import line_per_image
from rewards.functions.format import sections as only
from rewards.functions.length import overlong, overlong_penalty
from rsgrpo.config import EVISRAG, ResponseFormat, SectionRule
from rsgrpo.text.normalise import normalize_answer, set_f1
from rsgrpo.text.sections import parse_response
from rsgrpo.types import ImageRef, Sample
from tests.unit.reward_calls import make_call

Parity = Callable[[str], list[dict[str, Any]]]


def tagged(evidence: str = "", answer: str = "", observe: str = "o", think: str = "t") -> str:
    return (
        f"<observe>{observe}</observe>\n<evidence>\n{evidence}\n</evidence>\n<think>{think}</think>\n"
        f"<answer>{answer}</answer>"
    )


def call(
    text: str,
    *,
    num_tokens: int = 300,
    num_images: int = 3,
    response_format: ResponseFormat = EVISRAG,
    opened: str = "",
    **sample: Any,
) -> RewardCall:
    images = tuple(ImageRef(path=f"{index}.png") for index in range(num_images))
    parsed = parse_response(text, response_format, opened)
    return make_call(Sample(sample_id="q", images=images, **sample), text, parsed=parsed, num_tokens=num_tokens)


NONE = "no relevant information"
FACT = "From the bar chart 16% of users feel inspired and 13% feel depressed"
GOLD = tagged(f"[1]: {FACT}\n[2]: {NONE}\n[3]: {NONE}", "3%")


# --- the public rewards, number for number ---


def test_reference_rewards_equal_the_original(parity: Parity) -> None:
    num_compared = 0
    for vector in parity("evisrag_rewards"):
        inputs, expected = vector["inputs"], vector["expected"]
        if "op" in inputs:
            continue
        scores = reference.score_reference(
            inputs["response"],
            inputs["ground_truth"],
            inputs["response_length"],
            max_response_tokens=inputs["max_response_length"],
            buffer_tokens=inputs["overlong_buffer_length"],
            min_response_tokens=inputs["min_response_length"],
        )
        names = {"isObserve": "is_observe", "isThink": "is_think"}
        crashes = expected.get("component_raises", {})
        for official, value in expected["components"].items():
            # where the original crashes the score is 0, and counted
            assert getattr(scores, names.get(official, official)) == pytest.approx(value or 0.0, abs=1e-12), vector[
                "id"
            ]
        assert scores.anomalies == tuple(names.get(name, name) for name in crashes), vector["id"]
        if not crashes:
            assert scores.overall == pytest.approx(expected["sum_all"]["overall"], abs=1e-9), vector["id"]
        num_compared += 1
    assert num_compared > 100


def test_reference_helpers_equal_the_original(parity: Parity) -> None:
    helpers = [vector for vector in parity("evisrag_rewards") if vector["inputs"].get("op") == "helpers"]
    assert helpers
    for vector in helpers:
        response, gold, expected = vector["inputs"]["response"], vector["inputs"]["ground_truth"], vector["expected"]
        assert normalize_answer(response) == expected["norm_response"]
        assert normalize_answer(gold) == expected["norm_gt"]
        assert reference.contains_normalized(response, gold) == expected["substring_em"]
        assert set_f1(normalize_answer(response).split(), normalize_answer(gold).split()) == pytest.approx(
            expected["token_set_f1"], abs=1e-12
        )


def test_overlong_equals_the_original(parity: Parity) -> None:
    vectors = [vector for vector in parity("evisrag_rewards") if vector["inputs"].get("op") == "overlong"]
    assert vectors
    for vector in vectors:
        inputs = vector["inputs"]
        lengths = [inputs[f"{name}_length"] for name in ("response", "max_response", "overlong_buffer", "min_response")]
        assert overlong_penalty(*lengths) == pytest.approx(vector["expected"], abs=1e-12)


def test_reference_sections_end_at_a_second_opening_tag_too() -> None:
    # the original splits at the tag and takes the second piece
    assert reference.reference_think("<think>3<think>4</think><answer>3</answer>") == -1.0
    assert reference.reference_accuracy("<answer>3<answer>4</answer>", "<answer>3</answer>") == 1.0
    gold = "<evidence>[1]: no relevant information</evidence>"
    assert reference.reference_evidence("<evidence><evidence>[1]: no relevant information</evidence>", gold) == 0.0


def test_gold_without_tags_is_an_anomaly() -> None:
    scores = reference.score_reference(tagged("[1]: x", "x"), "no tags", 300)
    assert (scores.accuracy, scores.evidence) == (0.0, 0.0)
    assert scores.anomalies == ("accuracy", "evidence")


def test_reference_plugins_give_the_same_numbers() -> None:
    reward_call = call(GOLD, gold_response=GOLD, num_tokens=1280)
    values = [
        reference.accuracy(reward_call),
        reference.evidence(reward_call),
        reference.format(reward_call),
        reference.overlong(reward_call),
        reference.is_observe(reward_call),
        reference.is_think(reward_call),
    ]
    assert values == [1.0, 1.0, 1.0, -0.5, 0.0, 0.0]


# --- the rewards to train with ---


@pytest.mark.parametrize(
    ("answer", "gold", "value"),
    [
        ("3%", "3%", 1.0),
        ("3 percent", "3%", 2 / 3),  # p = 1/2, r = 1
        ("Alice, Bob, Carol and Dave", "Alice and Bob", 0.75),  # p = 3/5, r = 1
        ("3.5", "35", 0.0),  # the public reward gives 1
        ("-3", "3", 0.0),
        ("", "3", 0.0),
        ("insufficient to answer", "insufficient to answer", 1.0),
    ],
)
def test_accuracy_against_gold(answer: str, gold: str, value: float) -> None:
    assert accuracy(call(tagged(answer=answer), gold_response=tagged(answer=gold))) == pytest.approx(value)


def test_accuracy_without_a_gold_response_takes_the_best_answer() -> None:
    assert accuracy(call(tagged(answer="Paris"), answers=("Lyon", "Paris"))) == 1.0
    # unanswerable: what the data set writes as an answer does not count, a refusal does
    assert accuracy(call(tagged(answer="Paris"), answers=("Paris",), is_sufficient=False)) == 0.0
    assert accuracy(call(tagged(answer="Insufficient to answer."), answers=("Paris",), is_sufficient=False)) == 1.0


@pytest.mark.parametrize("text", ["3%", "</answer><answer>3%", "<answer>3%", "3%</answer>"])
def test_accuracy_needs_the_answer_section(text: str) -> None:
    assert accuracy(call(text, gold_response=GOLD)) == 0.0


@pytest.mark.parametrize(
    ("lines", "value"),
    [
        (f"[1]: {FACT}\n[2]: {NONE}\n[3]: {NONE}", 1.0),
        (f"[1]: {FACT}", 0.6),  # 3 of 3 + 1 + 1
        (f"[1]: {NONE}\n[2]: {NONE}\n[3]: {NONE}", 0.4),  # 2 of 5: the price of the constant answer
        (f"[1]: {FACT} {NONE}\n[2]: x {NONE}\n[3]: y {NONE}", 3 * 0.88 / 5),  # p = 11/14, r = 1: F1 = 22/25
        (f"[1]: {FACT}\n[2]: {NONE}\n[3]: {NONE}\n[4]: x\n[5]: y", 5 / 7),  # two labels without an image
        ("", 0.0),
    ],
)
def test_evidence_by_hand(lines: str, value: float) -> None:
    # FACT has 11 different normalised words (the article goes, "feel" stands twice)
    assert evidence(call(tagged(lines), gold_response=GOLD)) == pytest.approx(value)


@pytest.mark.parametrize("num_images", [1, 2, 5, 6, 8, 12])
def test_perfect_evidence_is_worth_one_for_any_number_of_images(num_images: int) -> None:
    # the public reward gives 14 for six images
    gold = tagged("\n".join(f"[{n}]: {NONE if n % 3 else f'value {n}'}" for n in range(1, num_images + 1)))
    assert evidence(call(gold, gold_response=gold, num_images=num_images)) == pytest.approx(1.0)


def test_evidence_needs_the_whole_section() -> None:
    assert evidence(call(f"</evidence><evidence>[1]: {FACT}", gold_response=GOLD)) == 0.0


def test_a_label_gap_in_gold_hides_nothing() -> None:
    gold = tagged("[1]: one\n[3]: three")
    reward_call = call(tagged("[1]: one\n[2]: whatever\n[3]: two"), gold_response=gold)
    assert evidence(reward_call) == pytest.approx(0.5)
    assert evidence_per_image(reward_call) == [1.0, None, 0.0]


def test_evidence_weights_are_settings() -> None:
    reward_call = call(tagged(f"[1]: {NONE}\n[2]: {NONE}\n[3]: {NONE}"), gold_response=GOLD)
    assert evidence(reward_call, relevant_weight=1.0) == pytest.approx(2 / 3)


def test_each_image_scores_by_itself() -> None:
    reward_call = call(tagged(f"[1]: {FACT}\n[2]: a chart"), gold_response=GOLD)
    assert evidence_per_image(reward_call) == [1.0, 0.0, 0.0]
    assert evidence_per_image(call(tagged(), gold_response=GOLD, num_images=4)) == [0.0, 0.0, 0.0, None]


def test_format_is_one_or_nothing() -> None:
    assert well_formed(call(GOLD)) == 1.0
    assert well_formed(call(f"{GOLD}\n")) == 1.0  # the public reward gives 0
    assert well_formed(call(GOLD + "<answer>3%</answer>")) == 0.0


@pytest.mark.parametrize(
    ("num_tokens", "penalty"), [(199, -1.0), (200, 0.0), (1024, 0.0), (1280, -0.5), (1536, -1.0), (1537, -1.0)]
)
def test_overlong_by_hand(num_tokens: int, penalty: float) -> None:
    reward_call = call("", num_tokens=num_tokens)
    assert overlong(reward_call, max_response_tokens=1536, buffer_tokens=512, min_response_tokens=200) == penalty


def test_overlong_without_a_buffer_is_a_step() -> None:
    assert [overlong_penalty(n, 10, 0) for n in (0, 10, 11)] == [0.0, 0.0, -1.0]


@pytest.mark.parametrize(
    ("observe", "penalty"),
    [("two pages", 0.0), ("[1] shows", -1.0), ("as in [12]", -1.0), ("[a] [²] [ 1 ] [1", 0.0), ("", 0.0)],
)
def test_citations_in_observe_cost_one(observe: str, penalty: float) -> None:
    assert observe_citation(call(tagged(observe=observe))) == penalty


def test_citations_outside_observe_cost_nothing() -> None:
    assert observe_citation(call("[1] <evidence>[1]: x</evidence>")) == 0.0


@pytest.mark.parametrize(
    ("think", "penalty"), [("3%", -1.0), (" The 3 %. ", -1.0), ("so 3%", 0.0), ("3.0", 0.0), ("", 0.0)]
)
def test_copying_the_answer_into_think_costs_one(think: str, penalty: float) -> None:
    assert think_copy(call(tagged(think=think, answer="3%"))) == penalty


ANY_TEXT = st.lists(
    st.sampled_from([*EVISRAG.tags, "\n", "x ", "3.5", "-", "[1]: ", "[2]: ", "[9]: ", NONE, FACT, "é", "[", "<"]),
    max_size=25,
).map("".join)


@given(ANY_TEXT, ANY_TEXT)
def test_values_stay_in_their_range_for_any_text(response: str, gold: str) -> None:
    reward_call = call(response, gold_response=gold)
    assert 0.0 <= accuracy(reward_call) <= 1.0
    assert 0.0 <= evidence(reward_call) <= 1.0
    assert all(value is None or 0.0 <= value <= 1.0 for value in evidence_per_image(reward_call))
    assert well_formed(reward_call) in (0.0, 1.0)
    assert set(line_per_image(reward_call)) <= {0.0, 1.0}
    assert observe_citation(reward_call) in (-1.0, 0.0)
    assert think_copy(reward_call) in (-1.0, 0.0)
    scores = reference.score_reference(response, gold, 300)
    assert scores.overall >= -3.0


# --- one line for every image ---


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (f"[1]: {FACT}\n[2]: {NONE}\n[3]: {NONE}", [1.0, 1.0, 1.0]),
        (f"[3]: {NONE}\n[1]: {FACT}", [1.0, 0.0, 1.0]),
        (f"[1]: {FACT}\n[2]:\n[3]: {NONE}\n[3]: {FACT}", [1.0, 0.0, 0.0]),
        (f"[1]: {FACT}\n[2]: {NONE}\n[3]: {NONE}\n[4]: {NONE}", [1.0, 1.0, 1.0]),
        ("", [0.0, 0.0, 0.0]),
    ],
    ids=["all", "left out", "empty and twice", "of no image", "none"],
)
def test_every_image_has_exactly_one_line_that_says_something(lines: str, expected: list[float]) -> None:
    assert line_per_image(call(tagged(lines))) == expected
    looked = f"<look>{lines}</look><final>3%</final>"
    assert line_per_image(call(looked, response_format=LOOKS)) == expected


def test_lines_are_counted_by_the_numbers_of_pages_where_a_filter_left_some_out() -> None:
    parsed = parse_response(tagged(f"[2]: {FACT}\n[1]: {NONE}"), page_numbers=(2, 5))
    images = (ImageRef(path="1.png"), ImageRef(path="4.png"))
    sample = Sample(sample_id="q", images=images, page_numbers=(2, 5))
    assert line_per_image(make_call(sample, parsed.text, parsed=parsed)) == [1.0, 0.0]


# --- other sections than EVisRAG's ---

LOOKS = ResponseFormat(
    sections=(
        SectionRule(name="look", order=0, repeatable=True, per_image_lines=True),
        SectionRule(name="final", order=1),
    ),
    answer_section="final",
)
LOOKED = f"<look>[1]: {FACT}</look>\n<look>[2]: {NONE}</look><look>[3]: {NONE}</look>\n<final>3%</final>"


def test_rewards_read_the_sections_that_are_declared() -> None:
    gold = f"<look>[1]: {FACT}\n[2]: {NONE}\n[3]: {NONE}</look><final>3%</final>"
    looked = call(LOOKED, response_format=LOOKS, gold_response=gold)
    assert well_formed(looked) == 1.0
    assert accuracy(looked) == accuracy(looked, section="final") == 1.0
    assert accuracy(looked, section="look") == 1.0  # gold's look says the same
    assert evidence(looked) == 1.0
    assert evidence_per_image(looked) == [1.0, 1.0, 1.0]
    assert observe_citation(looked, section="final") == 0.0
    assert observe_citation(looked, section="look") == -1.0
    assert think_copy(looked, section="look") == 0.0
    assert think_copy(looked, section="final") == -1.0  # the answer is a copy of itself
    # the second look is left out: its image scores 0, (3 + 1) / 5 are left
    without = LOOKED.replace(f"<look>[2]: {NONE}</look>", "")
    assert evidence(call(without, response_format=LOOKS, gold_response=gold)) == pytest.approx(0.8)


def test_the_opened_section_counts_as_written() -> None:
    whole = tagged(f"[1]: {FACT}", "3%")
    behind = whole.removeprefix("<observe>")
    assert (well_formed(call(behind)), well_formed(call(behind, opened="observe"))) == (0.0, 1.0)
    assert well_formed(call(whole, opened="observe")) == 0.0  # the tag a second time
    names = list(EVISRAG.names)
    assert (only(call(behind), names), only(call(behind, opened="observe"), names)) == (0.0, 1.0)
    assert only(call("t</think><answer>3</answer>", opened="think"), ["think", "answer"]) == 1.0
    assert think_copy(call("3</think><answer>3</answer>", opened="think")) == -1.0
    # the public code's look at the response alone
    assert reference.format(call(behind, opened="observe")) == 0.0
