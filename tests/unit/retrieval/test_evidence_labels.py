"""Laws of labels made of evidence lines: what wrong answers, agreement, order and repetition may change."""

from __future__ import annotations

import dataclasses
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rsgrpo.config.checks import ConfigError
from rsgrpo.config.distill import DistillConfig
from rsgrpo.retrieval.training.evidence_labels import JudgedResponse, QuestionLabels, label_pages, page_statements
from rsgrpo.text.sections import parse_response

_PAGES = 3
_RESPONSES = st.lists(
    st.builds(
        JudgedResponse,
        correctness=st.sampled_from([0.0, 0.2, 0.5, 2 / 3, 0.9, 1.0]),
        helps=st.tuples(*[st.sampled_from([True, False, None])] * _PAGES),
    ),
    max_size=10,
)
_SETTINGS = st.builds(
    DistillConfig,
    min_correctness=st.sampled_from([0.1, 0.5, 1.0]),
    min_correct_frac=st.sampled_from([0.0, 0.25, 0.6]),
    min_agreement=st.sampled_from([0.51, 2 / 3, 0.8, 1.0]),
    prior_responses=st.sampled_from([0.0, 1.0, 3.0]),
    min_weight=st.sampled_from([0.0, 0.25, 0.5]),
)


def _weights(labels: QuestionLabels, decision: str) -> dict[int, float]:
    """Weights of the pages that were decided so; empty where the question gives no pair."""
    if labels.left_out:
        return {}
    return {i: page.weight for i, page in enumerate(labels.pages) if page.decision == decision}


def _responses(count: int, *helps: bool | None, correctness: float = 1.0) -> list[JudgedResponse]:
    return [JudgedResponse(correctness=correctness, helps=helps)] * count


def test_the_weights_of_the_docstring() -> None:
    # M = 7 + 1 = 8: the eighth cites page 2, so it is weighed. S_0 = 7, D_0 = 1, 7 >= 0.8 * 8 = 6.4: 7 / (8 + 1).
    # Page 1: S = 1, D = 7, 7 >= 6.4: a negative of the same weight. Page 2 is mentioned by nobody.
    group = _responses(7, True, False, None) + _responses(1, False, True, None)
    labels = label_pages(group, _PAGES, DistillConfig())
    assert [page.decision for page in labels.pages] == ["positive", "negative", "unmentioned"]
    assert [page.weight for page in labels.pages] == pytest.approx([7 / 9, 7 / 9, 0.0])
    assert (labels.pages[0].num_for, labels.pages[0].num_against) == (7, 1)
    assert (labels.num_responses, labels.num_correct, labels.num_weighed, labels.left_out) == (8, 8, 8, "")


def test_partly_correct_answers_weigh_as_much_as_they_are_correct() -> None:
    # M = 1 + 0.5, S_0 = 1.5: 1.5 / (1.5 + 1); page 1: S = 0.5, D = 1, and 1 < 0.8 * 1.5: disputed
    group = _responses(1, True, False) + _responses(1, True, True, correctness=0.5)
    labels = label_pages(group, 2, DistillConfig())
    assert labels.pages[0].weight == pytest.approx(1.5 / 2.5)
    assert labels.pages[1].decision == "disputed"


def test_few_mentions_are_weak() -> None:
    # Five correct responses cite page 0, one of them page 1: S_1 = 1, w_1 = 1 / (5 + 1) < 0.25
    group = _responses(4, True, None) + _responses(1, True, True)
    assert [page.decision for page in label_pages(group, 2, DistillConfig()).pages] == ["positive", "weak"]


@pytest.mark.parametrize(
    ("group", "is_sufficient", "reason"),
    [
        pytest.param(_responses(4, True, False), False, "unanswerable", id="unanswerable"),
        pytest.param(_responses(4, True, False, correctness=0.2), True, "no correct response", id="all_wrong"),
        pytest.param([], True, "no correct response", id="no_response"),
        pytest.param(
            _responses(1, True, False) + _responses(4, True, False, correctness=0.0),
            True,
            "few correct responses",  # 1 of 5 is less than a quarter
            id="lucky",
        ),
        pytest.param(_responses(4, False, False), True, "no evidence cited", id="answered_without_evidence"),
        pytest.param(_responses(2, True, False) + _responses(2, False, True), True, "no positive", id="all_disputed"),
    ],
)
def test_questions_that_give_no_pair_say_why(group: list[JudgedResponse], is_sufficient: bool, reason: str) -> None:
    assert label_pages(group, 2, DistillConfig(), is_sufficient=is_sufficient).left_out == reason


@given(_RESPONSES, _RESPONSES, _SETTINGS)
def test_wrong_responses_make_and_change_no_label(
    right: list[JudgedResponse], others: list[JudgedResponse], settings: DistillConfig
) -> None:
    wrong = [one for one in others if one.correctness < settings.min_correctness]
    alone = label_pages(wrong, _PAGES, settings)
    assert not _weights(alone, "positive") and not _weights(alone, "negative")
    assert label_pages(right + wrong, _PAGES, settings).pages == label_pages(right, _PAGES, settings).pages


@given(_RESPONSES, _SETTINGS, st.sampled_from(["positive", "negative"]), st.sampled_from([0.0, 0.5, 1.0]), st.data())
def test_one_more_correct_response_that_agrees_never_lowers_a_weight(
    group: list[JudgedResponse], settings: DistillConfig, decision: str, share: float, data: st.DataObject
) -> None:
    before = _weights(label_pages(group, _PAGES, settings), decision)
    labels = label_pages(group, _PAGES, settings)
    correctness = settings.min_correctness + share * (1.0 - settings.min_correctness)
    # It says of every page what its label says, and of the others anything.
    said = tuple(
        {"positive": True, "negative": False}.get(page.decision, data.draw(st.sampled_from([True, False, None])))
        for page in labels.pages
    )
    after = _weights(
        label_pages([*group, JudgedResponse(correctness=correctness, helps=said)], _PAGES, settings), decision
    )
    for page, weight in before.items():
        assert after[page] >= weight - 1e-9


@given(_RESPONSES, _SETTINGS, st.randoms())
def test_order_does_not_matter(group: list[JudgedResponse], settings: DistillConfig, order: random.Random) -> None:
    shuffled = group.copy()
    order.shuffle(shuffled)
    assert label_pages(shuffled, _PAGES, settings) == label_pages(group, _PAGES, settings)


@given(_RESPONSES, _SETTINGS)
def test_a_weight_lies_within_0_and_1_and_only_labelled_pages_have_one(
    group: list[JudgedResponse], settings: DistillConfig
) -> None:
    for page in label_pages(group, _PAGES, settings).pages:
        assert 0.0 <= page.weight <= 1.0
        assert (page.weight > 0.0) == (page.decision in ("positive", "negative"))
        if page.decision == "positive":
            assert page.num_for > 0
        if page.decision == "negative":
            assert page.num_against > 0


@given(_RESPONSES, _SETTINGS)
def test_saying_the_opposite_turns_positives_into_negatives(
    group: list[JudgedResponse], settings: DistillConfig
) -> None:
    # No page is both: swapping what is said of page 0 swaps its label, where the same responses are weighed. A page
    # of its own that every response cites keeps them weighed.
    def shown(page: bool | None, one: JudgedResponse) -> JudgedResponse:
        return dataclasses.replace(one, helps=(page, True, None))

    swapped = {True: False, False: True, None: None}
    first = label_pages([shown(one.helps[0], one) for one in group], _PAGES, settings).pages[0]
    second = label_pages([shown(swapped[one.helps[0]], one) for one in group], _PAGES, settings).pages[0]
    opposite = {"positive": "negative", "negative": "positive"}
    assert second.decision == opposite.get(first.decision, first.decision)
    assert second.weight == first.weight


def test_statements_of_a_response() -> None:
    text = "<evidence>[1]: No relevant information.\n[2]: the digit is 7\n[2]: no relevant information\n[4]:\n[9]: x"
    # Page 2: its first line counts. Page 3 has no line, page 4 an empty one, and there is no page 9.
    assert page_statements(parse_response(text + "</evidence>"), 4) == (False, True, None, None)


def test_a_response_of_other_pages_or_an_odd_correctness_is_refused() -> None:
    with pytest.raises(ValueError, match="2 pages, the question has 3"):
        label_pages(_responses(1, True, False), 3, DistillConfig())
    with pytest.raises(ValueError, match=r"1\.5 lies outside"):
        label_pages(_responses(1, True, correctness=1.5), 1, DistillConfig())


@pytest.mark.parametrize(
    ("name", "value"),
    [("min_agreement", 0.5), ("min_agreement", float("nan")), ("min_correctness", 0.0), ("prior_responses", -1.0)],
)
def test_bounds_under_which_the_laws_would_not_hold_are_refused(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"distill.{name}"):
        DistillConfig(**{name: value})  # type: ignore[arg-type]  # a float for each of the names above
