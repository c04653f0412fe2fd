"""Evidence judged by what the policy answers without single pages."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.base import RewardCall, RewardError, needs_counterfactuals
from rewards.functions.counterfactual import counterfactual_evidence, disputed_pages, page_values
from rewards.lab.lint import UNMOVED, lint
from rewards.plugins import load_rewards
from rewards.scorer import Scorer
from rsgrpo.algorithm.advantages import credit_groups
from rsgrpo.config import CreditConfig, RewardConfig, ScopeConfig
from rsgrpo.text.normalise import IRRELEVANT, REFUSAL
from rsgrpo.text.sections import parse_response
from rsgrpo.types import Counterfactuals, ImageRef, Sample, ScoredGroup
from tests.unit.reward_calls import character_group, make_call

CONFIG = RewardConfig(
    function="rewards.functions.counterfactual:counterfactual_evidence", scope=ScopeConfig(evidence_line=True)
)


def sample(num_images: int = 2, answer: str = "7") -> Sample:
    images = tuple(ImageRef(path=f"{index}.png") for index in range(num_images))
    return Sample(sample_id="s", question="?", images=images, answers=(answer,), is_sufficient=answer != REFUSAL)


def response(lines: Sequence[str | None], answer: str | None = "7") -> str:
    """A response with these lines, None for a page without one."""
    evidence = "\n".join(f"[{number}]: {line}" for number, line in enumerate(lines, 1) if line is not None)
    end = "" if answer is None else f"\n<answer>{answer}</answer>"
    return f"<observe>o</observe>\n<evidence>{evidence}</evidence>\n<think>t</think>{end}"


def call_of(
    lines: Sequence[str | None],
    exchanged: Sequence[Sequence[str]],
    *,
    with_all: str | None = "7",
    greedy_lines: Sequence[str] = (),
    gold: str = "7",
    others: Sequence[str] = (),
) -> RewardCall:
    """A response among ``others``, and what the policy answers greedily: with all pages, and without each."""
    text = response(lines)
    siblings = tuple(parse_response(sibling) for sibling in (text, *others))
    return replace(
        make_call(sample(len(exchanged), gold), text, parsed=siblings[0]),
        siblings=siblings,
        counterfactuals=Counterfactuals(
            with_all=response(greedy_lines, with_all),
            exchanged=tuple(tuple(response([], answer) for answer in answers) for answers in exchanged),
        ),
    )


def test_a_page_is_worth_the_share_of_exchanges_that_cost_the_answer() -> None:
    call = call_of([], [["4", REFUSAL], ["7", "7"], ["7", "4", "4", "4"], []])
    assert page_values(call) == (1.0, 0.0, 0.75, None)


@given(st.lists(st.booleans(), min_size=1, max_size=4))
def test_the_true_labels_earn_the_most(matters: list[bool]) -> None:
    exchanged = [["4", "4"] if is_needed else ["7", "7"] for is_needed in matters]
    totals = {}
    for verdicts in itertools.product((True, False), repeat=len(matters)):
        scores = counterfactual_evidence.function(
            call_of(["red seven" if speaks else IRRELEVANT for speaks in verdicts], exchanged)
        )
        assert all(0.0 <= score <= 1.0 for score in scores)
        totals[verdicts] = sum(scores)
    # every page is worth 1 or 0: a right verdict scores 1, a wrong one 0
    assert totals == {
        verdicts: sum(map(bool.__eq__, verdicts, matters))
        for verdicts in itertools.product((True, False), repeat=len(matters))
    }


def test_a_doubtful_page_gives_a_softer_score_and_an_undecided_one_none() -> None:
    exchanged = [["4", "4", "4", "7"], ["4", "7"], []]

    def score(*lines: str | None, undecided: float = 0.2) -> list[float | None]:
        return list(
            counterfactual_evidence.function(call_of(lines, exchanged), undecided=undecided, by_consensus=False)
        )

    assert score("x", "x", "x") == [0.75, None, None]
    assert score(IRRELEVANT, IRRELEVANT, "x") == [0.25, None, None]
    assert score(None, "x", "x") == [0.0, None, None]
    assert score("x", "x", "x", undecided=0.3) == [None] * 3


def test_what_exchanges_do_not_decide_is_judged_by_what_right_answers_say() -> None:
    others = [response([IRRELEVANT, "red seven"]), response(["red nine", "red nine"], "9")]
    undecided = [["4", "7"], []]
    # right are the first two responses and the greedy one: silent of page 1, and of page 2 silent or seven or seven
    greedy = [IRRELEVANT, "red seven"]
    call = call_of([IRRELEVANT, IRRELEVANT], undecided, greedy_lines=greedy, others=others)
    assert counterfactual_evidence.function(call) == pytest.approx([1.0, 1 / 3])
    assert counterfactual_evidence.function(call, by_consensus=False) == [None, None]
    wrong = replace(call, parsed=call.siblings[2], text=call.siblings[2].text)
    # set-F1 of "red nine" and "red seven" is 1/2
    assert counterfactual_evidence.function(wrong) == pytest.approx([0.0, (0.0 + 0.5 + 0.5) / 3])
    # a page that exchanges do decide is judged by them, whatever right answers say
    decided = call_of([IRRELEVANT, IRRELEVANT], [["7", "7"], ["4", "4"]], greedy_lines=greedy, others=others)
    assert counterfactual_evidence.function(decided) == [1.0, 0.0]


@pytest.mark.parametrize("answer", ["4", None], ids=["wrong", "absent"])
def test_nothing_is_known_where_the_greedy_answer_is_not_right(answer: str | None) -> None:
    call = call_of(["x", IRRELEVANT], [["4"], ["7"]], with_all=answer, others=[response([IRRELEVANT, "x"])])
    assert page_values(call) is None
    assert counterfactual_evidence.function(call, by_consensus=False) == [None, None]
    assert list(disputed_pages(call)) == []
    # without the label of the answer its own one counts, if there is any
    expected = [None, None] if answer is None else [0.0, 0.0]
    assert counterfactual_evidence.function(call, right_only=False, by_consensus=False) == expected


def test_nothing_is_known_where_the_policy_was_not_asked() -> None:
    call = make_call(sample(2), response(["x", IRRELEVANT]))
    assert page_values(call) is None
    assert counterfactual_evidence.function(call) == [None, None]


@pytest.mark.parametrize("right_only", [True, False])
def test_a_refusal_says_nothing_of_the_pages(right_only: bool) -> None:
    # no exchange costs it, though the second page may well hold one of two numbers that were to be added
    others = [response([IRRELEVANT, IRRELEVANT], REFUSAL)]
    call = call_of([IRRELEVANT, "red seven"], [[REFUSAL] * 2] * 2, with_all=REFUSAL, gold=REFUSAL, others=others)
    assert page_values(call, right_only=right_only) is None
    assert counterfactual_evidence.function(call, right_only=right_only, by_consensus=False) == [None, None]
    assert list(disputed_pages(call, right_only=right_only)) == []
    # the other response rightly refused, and is silent of both pages; without labels nobody is right
    expected = [1.0, 0.0] if right_only else [None, None]
    assert counterfactual_evidence.function(call, right_only=right_only) == expected


def test_words_of_the_right_page_are_compared_with_what_right_answers_say_of_it() -> None:
    others = [response(["red seven"]), response(["red nine"], "9"), response([IRRELEVANT])]

    def score(line: str, **kwargs: bool) -> float:
        call = call_of([line], [["4"]], greedy_lines=["red seven"], others=others)
        return float(counterfactual_evidence.function(call, **kwargs)[0])

    # the greedy response and the first sibling are right and speak for the page; the second is wrong, the third silent
    assert score("red seven") == 1.0
    assert score("red nine") == 0.5  # one word of two: precision and recall 1/2
    assert score("banana") == score(IRRELEVANT) == 0.0
    assert score("banana", compare_lines=False) == 1.0


def test_only_pages_of_which_siblings_say_different_things_are_in_question() -> None:
    others = [response(["red nine", IRRELEVANT, "x"]), response(["red nine", IRRELEVANT, None])]
    call = call_of(["red seven", IRRELEVANT, "x"], [[], [], []], others=others)
    assert list(disputed_pages(call)) == [0]
    assert list(disputed_pages(call, compare_lines=False)) == []


def scored(texts: Sequence[str], known: Counterfactuals) -> ScoredGroup:
    """A group with one token a character, scored with what the policy answers without pages."""
    scorer = Scorer(load_rewards({"lines": CONFIG}, Path.cwd()))
    with closing(scorer.scoring()) as scoring:
        scoring.add(character_group(sample(2), *texts))
        assert scoring.pages_in_question() == {"s": (0, 1)}
        scoring.take_counterfactuals({"s": known})
        (group,) = scoring.scored()
    return group


def test_lines_get_the_credit_of_their_own_page() -> None:
    texts = [response(["red seven", IRRELEVANT]), response([IRRELEVANT, "red seven"]), response([IRRELEVANT] * 2)]
    known = Counterfactuals(with_all=texts[0], exchanged=((response([], "4"),), (response([], "7"),)))
    group = scored(texts, known)
    assert [[reward.value for reward in rollout.rewards] for rollout in group.rollouts] == [[1, 1], [0, 0], [0, 1]]
    (credited,) = credit_groups([group], {"lines": 1.0}, CreditConfig())
    for text, rollout in zip(texts, credited.rollouts, strict=True):
        lines = [text.index("[1]"), text.index("[2]"), text.index("</evidence>")]
        assert not rollout.positive_weights[: lines[0]].any()
        assert not rollout.positive_weights[lines[2] :].any()
    # of the first page only the first response is right, of the second the second wrong
    positive = [[bool(rollout.positive_weights[text.index(label)]) for label in ("[1]", "[2]")]
                for text, rollout in zip(texts, credited.rollouts, strict=True)]  # fmt: skip
    assert positive == [[True, True], [False, False], [False, True]]
    # credit compares siblings: the same constant on all values of a page changes nothing
    shifted = group.with_rollouts(
        replace(
            rollout, rewards=tuple(replace(reward, value=(reward.value or 0.0) + 5.0) for reward in rollout.rewards)
        )
        for rollout in group.rollouts
    )
    (other,) = credit_groups([shifted], {"lines": 1.0}, CreditConfig())
    for one, two in zip(credited.rollouts, other.rollouts, strict=True):
        assert one.positive_weights == pytest.approx(two.positive_weights)


def test_groups_keep_what_was_answered_and_score_the_same_from_it() -> None:
    texts = [response(["red seven", IRRELEVANT]), response([IRRELEVANT, "red seven"])]
    known = Counterfactuals(with_all=texts[0], exchanged=((response([], "4"),), (response([], "7"),)))
    group = scored(texts, known)
    assert group.counterfactuals == known
    sampled = group.with_rollouts(rollout.rollout for rollout in group.rollouts)
    (again,) = Scorer(load_rewards({"lines": CONFIG}, Path.cwd())).score([sampled])
    assert [rollout.rewards for rollout in again.rollouts] == [rollout.rewards for rollout in group.rollouts]


PLUGIN = """
from rewards.base import batch_reward, needs_counterfactuals

@needs_counterfactuals(lambda call: [call.parsed.text.count("o")])
async def waits(call):
    return float(len(call.counterfactuals.with_all))

@batch_reward
@needs_counterfactuals(lambda call: [0])
def together(calls):
    return [float(len(call.counterfactuals.with_all)) for call in calls]

@needs_counterfactuals(lambda call: [2])
def beyond(call):
    return 0.0
"""


@pytest.mark.parametrize("name", ["waits", "together"])
def test_rewards_of_all_kinds_may_ask(name: str, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(PLUGIN)
    config = RewardConfig(function=f"mine.py:{name}", scope=ScopeConfig(start="begin", stop="end"))
    with closing(Scorer(load_rewards({name: config}, tmp_path)).scoring()) as scoring:
        scoring.add(character_group(sample(), "a", "b"))
        assert scoring.pages_in_question() == {"s": (0,)}
        scoring.take_counterfactuals({"s": Counterfactuals(with_all="123", exchanged=())})
        (group,) = scoring.scored()
    assert [rollout.rewards[0].value for rollout in group.rollouts] == [3.0, 3.0]


def test_a_page_that_the_sample_lacks_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(PLUGIN)
    config = RewardConfig(function="mine.py:beyond", scope=ScopeConfig(start="begin", stop="end"))
    with closing(Scorer(load_rewards({"beyond": config}, tmp_path)).scoring()) as scoring:
        scoring.add(character_group(sample(), "a"))
        with pytest.raises(RewardError, match=r"'beyond'.*returned \[2\].*indexes of the 2 images"):
            scoring.pages_in_question()


def test_the_lab_says_that_guessed_answers_pay() -> None:
    found = lint("counterfactual", load_rewards({"lines": CONFIG}, Path.cwd()))
    assert found.honest == 1.0
    assert [result.trick for result in found.paying] == [UNMOVED]


def test_a_declared_function_is_still_called_as_it_is() -> None:
    declared = needs_counterfactuals(disputed_pages)(lambda call: 1.0)
    assert declared(call_of([], [])) == 1.0
