"""Recipes with sections of their own: responses written by hand, and the credit of every one of their tokens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from rewards.plugins import load_rewards
from rewards.scorer import Scorer
from rsgrpo.algorithm.advantages import credit_groups
from rsgrpo.config import Config
from rsgrpo.text.sections import opened_section
from rsgrpo.text.token_offsets import TokenTable
from rsgrpo.types import ChatPrompt, CreditedGroup, Group, ImageRef, Rollout, RolloutGroup, Sample
from tests.unit.composition import composed

SAMPLE = Sample(
    sample_id="q",
    question="For the image with a truck, is there a dog?",
    images=(ImageRef(path="1.png"), ImageRef(path="2.png")),
    answers=("yes",),
    positive_images=(1,),
)
NONE = "no relevant information"
SEEN = "a truck and a dog"
# A = ±1/sqrt(2) for values 1 and 0 of two siblings: mean 1/2, unbiased standard deviation sqrt(1/2)
ADVANTAGE = 0.5 / np.sqrt(0.5)


def group(*responses: Sequence[str], opened: str = "") -> RolloutGroup:
    """Siblings, one token a piece and one for the end of sequence."""
    rollouts = []
    for index, pieces in enumerate(responses):
        text, starts = TokenTable([*(piece.encode() for piece in pieces), b""]).decode(range(len(pieces) + 1))
        rollouts.append(
            Rollout(
                sample_id="q",
                response_index=index,
                token_ids=np.arange(len(pieces) + 1, dtype=np.int32),
                logprobs=np.zeros(len(pieces) + 1, dtype=np.float32),
                text=text,
                token_char_starts=starts,
                finish_reason="stop",
                policy_version=0,
            )
        )
    return Group(
        sample=SAMPLE,
        prompt=ChatPrompt(sample_id="q", text="", images=SAMPLE.images, opened_section=opened),
        prompt_token_ids=np.zeros(1, dtype=np.int32),
        rollouts=tuple(rollouts),
    )


def credited(config: Config, sampled: RolloutGroup) -> CreditedGroup:
    response_format = config.response.format
    scorer = Scorer(load_rewards(config.rewards, Path.cwd(), response_format), None, response_format)
    scorer.check_samples([SAMPLE])
    weights = {name: reward.weight for name, reward in config.rewards.items()}
    return credit_groups(scorer.score([sampled]), weights, config.rl.credit)[0]


def values(found: CreditedGroup, index: int) -> dict[tuple[str, int], float | None]:
    return {reward.key: reward.value for reward in found.rollouts[index].rewards}


def spans(found: CreditedGroup, index: int, name: str, image_index: int = -1) -> list[tuple[int, int]]:
    (reward,) = (reward for reward in found.rollouts[index].rewards if reward.key == (name, image_index))
    return [(span.start, span.stop) for span in reward.spans]


PLANNED = [
    "<plan>", "find the truck", "</plan>", "<look>", "[1]: ", NONE, "\n[2]:", SEEN, "</look>", "<answer>", "yes",
    "</answer>",
]  # fmt: skip


def test_plan_look_answer_credits_the_lines_of_look_and_the_answer() -> None:
    wrong = [NONE if piece == SEEN else "no" if piece == "yes" else piece for piece in PLANNED]
    found = credited(composed("recipe=rl_plan_look"), group(PLANNED, wrong))
    assert values(found, 0) == {
        ("yes_no", -1): 1.0, ("needle", 0): 1.0, ("needle", 1): 1.0, ("format", -1): 1.0, ("overlong", -1): 0.0,
        ("plan_citation", -1): 0.0, ("plan_copy", -1): 0.0,
    }  # fmt: skip
    assert values(found, 1) == {**values(found, 0), ("yes_no", -1): 0.0, ("needle", 1): 0.0}
    # [2]: begins inside token 6, behind the line break that belongs to line 1: line 1 is tokens 4 to 6, line 2 token 7
    assert spans(found, 0, "needle", 0) == [(4, 7)]
    assert spans(found, 0, "needle", 1) == [(7, 8)]
    assert spans(found, 0, "plan_copy") == spans(found, 0, "plan_citation") == [(0, 3)]
    assert spans(found, 0, "yes_no") == [(9, 13)]  # to the end: the end of sequence is the answer's
    # Only yes_no and line 2 vary: W = 3 + 3. N of yes_no 2 × 4 tokens, of needle 2 × (3 + 1), all images' lines.
    expected = np.zeros(13)
    expected[7] = 3 / 6 * ADVANTAGE / 8
    expected[9:13] = 3 / 6 * ADVANTAGE / 8
    right, other = found.rollouts
    np.testing.assert_allclose(right.positive_weights, expected, rtol=1e-5)
    np.testing.assert_allclose(other.negative_weights, expected, rtol=1e-5)
    assert not right.negative_weights.any() and not other.positive_weights.any()


def test_a_plan_that_is_the_answer_or_cites_an_image_pays_on_the_plan_alone() -> None:
    copied = ["yes [2]" if piece == "find the truck" else piece for piece in PLANNED]
    found = credited(composed("recipe=rl_plan_look"), group(PLANNED, copied))
    assert values(found, 1)[("plan_citation", -1)] == -1.0
    # values 0 and -1 on tokens 0 to 2 of both siblings, nothing else varies: W = 1, N = 6
    expected = np.zeros(13)
    expected[:3] = ADVANTAGE / 6
    np.testing.assert_allclose(found.rollouts[0].positive_weights, expected, rtol=1e-5)
    np.testing.assert_allclose(found.rollouts[1].negative_weights, expected, rtol=1e-5)


IN_TURN = [
    "<think>", "the first", "</think>", "<look>", f"[1]: {NONE}", "</look>",
    "<think>", "the other", "</think>", "<look>", f"[2]: {SEEN}", "</look>",
    "<answer>", "yes", "</answer>",
]  # fmt: skip


@pytest.mark.parametrize("opened", ["", "think"])
def test_a_reward_on_a_repeated_section_credits_every_place_where_it_stands(opened: str) -> None:
    blind = [f"[2]: {NONE}" if SEEN in piece else piece for piece in IN_TURN]
    # The chat template may open the first think: the same tokens but that one, one place further to the front.
    shift = 1 if opened else 0
    config = composed("recipe=rl_looks")
    assert opened_section("assistant\n<think>\n", config.response.format) == "think"
    found = credited(config, group(IN_TURN[shift:], blind[shift:], opened=opened))
    assert values(found, 0) == {
        ("yes_no", -1): 1.0, ("found", -1): 1.0, ("needle", 0): 1.0, ("needle", 1): 1.0, ("format", -1): 1.0,
        ("overlong", -1): 0.0, ("think_copy", -1): 0.0,
    }  # fmt: skip
    assert values(found, 1) == {**values(found, 0), ("found", -1): 0.0, ("needle", 1): 0.0}
    assert spans(found, 0, "found") == [(3 - shift, 6 - shift), (9 - shift, 12 - shift)]
    assert spans(found, 0, "think_copy") == [(0, 3 - shift), (6 - shift, 9 - shift)]
    assert spans(found, 0, "needle", 0) == [(4 - shift, 5 - shift)]
    assert spans(found, 0, "needle", 1) == [(10 - shift, 11 - shift)]
    # found and line 2 vary: W = 3 + 3. N of found 2 × 6 tokens, of needle 2 × 2.
    expected = np.zeros(16 - shift)
    for start, stop in spans(found, 0, "found"):
        expected[start:stop] = 3 / 6 * ADVANTAGE / 12
    expected[10 - shift] += 3 / 6 * ADVANTAGE / 4
    np.testing.assert_allclose(found.rollouts[0].positive_weights, expected, rtol=1e-5)
    np.testing.assert_allclose(found.rollouts[1].negative_weights, expected, rtol=1e-5)


def test_a_look_behind_the_answer_is_malformed_and_two_looks_in_a_row_are_not() -> None:
    late = [*IN_TURN[:9], *IN_TURN[12:], *IN_TURN[9:12]]
    in_a_row = [*IN_TURN[:6], *IN_TURN[9:]]
    found = credited(composed("recipe=rl_looks"), group(late, in_a_row))
    assert [values(found, index)[("format", -1)] for index in (0, 1)] == [0.0, 1.0]
