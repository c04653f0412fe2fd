"""Evidence judged by what right answers of the group say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.base import RewardCall
from rewards.functions.consensus import consensus_evidence
from rewards.lab.lint import lint
from rewards.plugins import load_rewards
from rewards.scorer import Scorer
from rsgrpo.algorithm.advantages import credit_groups
from rsgrpo.config import CreditConfig, RewardConfig, ScopeConfig
from rsgrpo.text.normalise import IRRELEVANT, REFUSAL
from rsgrpo.text.sections import parse_response
from rsgrpo.types import ImageRef, Sample
from tests.unit.reward_calls import character_group, make_call

CONFIG = RewardConfig(function="rewards.functions.consensus:consensus_evidence", scope=ScopeConfig(evidence_line=True))
SAMPLE = Sample(
    sample_id="s",
    question="?",
    images=(ImageRef(path="1.png"), ImageRef(path="2.png")),
    answers=("7",),
    is_sufficient=True,
)
LINES = st.sampled_from([None, IRRELEVANT, "red seven", "red nine", "blue one"])
RESPONSES = st.lists(st.tuples(LINES, LINES, st.sampled_from(["7", "9"])), min_size=1, max_size=5)


def response(lines: Sequence[str | None], answer: str = "7") -> str:
    """A response with these lines, None for a page without one."""
    evidence = "\n".join(f"[{number}]: {line}" for number, line in enumerate(lines, 1) if line is not None)
    return f"<observe>o</observe>\n<evidence>{evidence}</evidence>\n<think>t</think>\n<answer>{answer}</answer>"


def calls_of(texts: Sequence[str], sample: Sample = SAMPLE) -> list[RewardCall]:
    siblings = tuple(parse_response(text) for text in texts)
    return [
        replace(make_call(sample, parsed.text, parsed=parsed), siblings=siblings, response_index=index)
        for index, parsed in enumerate(siblings)
    ]


def scores_of(texts: Sequence[str], sample: Sample = SAMPLE) -> list[list[float | None]]:
    return [list(consensus_evidence.function(call)) for call in calls_of(texts, sample)]


def test_lines_are_compared_with_those_of_right_answers() -> None:
    texts = [
        response(["red seven", IRRELEVANT]),
        response(["red nine", "blue one"], "9"),  # set-F1 of "red nine" and "red seven": 1/2
        response([None, IRRELEVANT], "9"),
    ]
    assert scores_of(texts) == [[1.0, 1.0], [0.5, 0.0], [0.0, 1.0]]


def test_right_answers_that_contradict_each_other_share_the_score() -> None:
    texts = [response(["red seven", IRRELEVANT])] * 2 + [response([IRRELEVANT, None])]
    # of page 1 two of three right answers say seven and one nothing; of page 2 only two have a line
    expected = [[2 / 3, 1.0], [2 / 3, 1.0], [1 / 3, 0.0]]
    assert scores_of(texts) == [pytest.approx(scores) for scores in expected]


def test_a_right_refusal_counts_as_a_right_answer() -> None:
    unanswerable = replace(SAMPLE, answers=(), is_sufficient=False)
    texts = [response([IRRELEVANT] * 2, REFUSAL), response(["red seven", IRRELEVANT])]
    assert scores_of(texts, unanswerable) == [[1.0, 1.0], [0.0, 1.0]]


@given(RESPONSES)
def test_scores_are_shares_and_say_nothing_without_a_right_answer_to_compare_with(
    drawn: list[tuple[str | None, str | None, str]],
) -> None:
    scores = scores_of([response(lines, answer) for *lines, answer in drawn])
    for page in (0, 1):
        is_known = len(drawn) > 1 and any(one[2] == "7" and one[page] is not None for one in drawn)
        for score in (of_response[page] for of_response in scores):
            assert (score is not None) == is_known
            assert score is None or 0.0 <= score <= 1.0


@given(RESPONSES, st.randoms())
def test_the_order_of_siblings_changes_nothing(drawn: list[tuple[str | None, str | None, str]], random: Random) -> None:
    texts = [response(lines, answer) for *lines, answer in drawn]
    order = list(range(len(texts)))
    random.shuffle(order)
    scores = scores_of(texts)
    assert scores_of([texts[index] for index in order]) == [
        [None if score is None else pytest.approx(score) for score in scores[index]] for index in order
    ]


def test_only_the_misread_page_of_a_wrong_answer_is_blamed() -> None:
    texts = [response(["red seven", "blue one"]), response(["red seven", "blue two"], "9")]
    (group,) = Scorer(load_rewards({"lines": CONFIG}, Path.cwd())).score([character_group(SAMPLE, *texts)])
    assert [[reward.value for reward in rollout.rewards] for rollout in group.rollouts] == [[1, 1], [1, 0.5]]
    (credited,) = credit_groups([group], {"lines": 1.0}, CreditConfig())
    for text, rollout, is_right in zip(texts, credited.rollouts, (True, False), strict=True):
        first, second, end = (text.index(label) for label in ("[1]", "[2]", "</evidence>"))
        assert not rollout.positive_weights[first:second].any()
        assert not rollout.negative_weights[first:second].any()
        blamed = rollout.positive_weights if is_right else rollout.negative_weights
        assert blamed[second:end].all()


def test_no_trick_of_the_lab_pays() -> None:
    found = lint("consensus", load_rewards({"lines": CONFIG}, Path.cwd()))
    assert found.honest == 1.0
    assert not found.paying
