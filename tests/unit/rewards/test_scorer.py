from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from rewards.base import DeclaredReward, RewardCall, RewardError, needs_gold
from rewards.plugins import LoadedReward
from rewards.scorer import Scorer
from rsgrpo.config import RewardConfig, ScopeConfig
from rsgrpo.types import ImageRef, RolloutGroup, Sample, TokenSpan
from tests.unit.reward_calls import character_group

WHOLE = ScopeConfig(start="begin", stop="end")
THINK = ScopeConfig(start="<think>", stop="end")
LINES = ScopeConfig(evidence_line=True)


def loaded(
    name: str,
    function: Callable[..., Any],
    scope: ScopeConfig = WHOLE,
    *,
    is_batch: bool = False,
    timeout: float = 60.0,
    kwargs: dict[str, Any] | None = None,
    gold_sections: tuple[str, ...] = (),
) -> LoadedReward:
    return LoadedReward(
        name=name,
        config=RewardConfig(
            function=f"tests:{name}", scope=scope, timeout_seconds=timeout, kwargs={} if kwargs is None else kwargs
        ),
        function=function,
        is_async=asyncio.iscoroutinefunction(function),
        is_batch=is_batch,
        gold_sections=gold_sections,
    )


def group(sample_id: str, *texts: str, num_images: int = 2) -> RolloutGroup:
    images = tuple(ImageRef(path=f"{n}.png") for n in range(num_images))
    return character_group(Sample(sample_id=sample_id, images=images), *texts)


def length(call: RewardCall) -> float:
    return float(len(call.text))


def failure(*rewards: LoadedReward, groups: list[RolloutGroup] | None = None) -> str:
    with pytest.raises(RewardError) as caught:
        Scorer(rewards).score([group("q0", "a", "bb"), group("q1", "ccc")] if groups is None else groups)
    return str(caught.value)


def test_values_and_spans_meet_in_the_scored_rollout() -> None:
    scorer = Scorer([loaded("length", length), loaded("think", length, THINK)])
    scored = scorer.score([group("q0", "ab<think>c", "ab")])
    assert scored[0].sample_id == "q0"
    first, second = scored[0].rollouts
    assert [(reward.name, reward.value, reward.spans, reward.scope_found) for reward in first.rewards] == [
        ("length", 10.0, (TokenSpan(start=0, stop=11),), True),
        ("think", 10.0, (TokenSpan(start=2, stop=11),), True),
    ]
    # the scope is absent: no tokens, but the value still counts in the group's mean
    assert [(reward.value, reward.spans, reward.scope_found) for reward in second.rewards] == [
        (2.0, (TokenSpan(start=0, stop=3),), True),
        (2.0, (), False),
    ]


def test_a_call_carries_what_a_reward_may_need() -> None:
    seen: list[RewardCall] = []

    def look(call: RewardCall, word: str) -> None:
        seen.append(call)
        assert word == "x"

    scored = Scorer([loaded("look", look, kwargs={"word": "x"})]).score([group("q0", "a", "<answer>b</answer>")])
    assert [entry.value for rollout in scored[0].rollouts for entry in rollout.rewards] == [None, None]
    call = seen[1]
    assert (call.sample.sample_id, call.response_index, call.num_tokens, call.finish_reason) == ("q0", 1, 19, "stop")
    assert call.parsed.content("answer") == "b"
    assert len(call.token_ids) == 19


def test_evidence_lines_give_one_entry_an_image_in_the_same_order_for_all_siblings() -> None:
    def per_image(call: RewardCall) -> list[float | None]:
        return [1.0 if call.parsed.evidence_lines else 0.0, None]

    scored = Scorer([loaded("lines", per_image, LINES)]).score([group("q0", "<evidence>[2]: b</evidence>", "x")])
    keys = [[entry.key for entry in rollout.rewards] for rollout in scored[0].rollouts]
    assert keys == [[("lines", 0), ("lines", 1)]] * 2
    first, second = scored[0].rollouts
    # `[2]: b` stands at characters 10 to 16; `[1]:` is left out: the closing tag and the end of turn behind it
    assert [(entry.value, entry.spans) for entry in first.rewards] == [
        (1.0, (TokenSpan(start=16, stop=28),)),
        (None, (TokenSpan(start=10, stop=16),)),
    ]
    assert [(entry.value, entry.scope_found) for entry in second.rewards] == [(0.0, False), (None, False)]


def test_batch_and_async_functions_give_the_same_as_plain_ones() -> None:
    async def served(call: RewardCall) -> float:
        await asyncio.sleep(0.001 * (3 - len(call.text)))  # later calls end first
        return float(len(call.text))

    async def served_together(calls: list[RewardCall]) -> list[float]:
        return [float(len(call.text)) for call in calls]

    def together(calls: list[RewardCall]) -> list[float]:
        return [float(len(call.text)) for call in calls]

    scorer = Scorer(
        [
            loaded("plain", length),
            loaded("served", served),
            loaded("together", together, is_batch=True),
            loaded("served_together", served_together, is_batch=True),
        ]
    )
    scored = scorer.score([group("q0", "a", "bb"), group("q1", "ccc")])
    values = [[entry.value for entry in rollout.rewards] for judged in scored for rollout in judged.rollouts]
    assert values == [[1.0] * 4, [2.0] * 4, [3.0] * 4]


def test_async_calls_run_at_once() -> None:
    in_flight = most = 0

    async def served(call: RewardCall) -> float:
        nonlocal in_flight, most
        in_flight += 1
        most = max(most, in_flight)
        while most < 6:  # until the last of them has begun
            await asyncio.sleep(0.001)
        in_flight -= 1
        return 0.0

    Scorer([loaded("one", served), loaded("two", served)]).score([group("q0", "a", "b", "c")])
    assert most == 6


def test_nothing_to_score_calls_nothing() -> None:
    assert Scorer([loaded("length", length)]).score([]) == []


@pytest.mark.parametrize(
    "value", [float("nan"), float("inf"), -float("inf"), "1.0", b"1", [1.0], {"a": 1}, 1j, 10**400, np.zeros(1)]
)
def test_what_is_no_finite_number_is_refused_and_shown(value: object) -> None:
    message = failure(loaded("odd", lambda call: value if call.text == "bb" else 0.0))
    assert "reward 'odd' (tests:odd)" in message
    assert "sample 'q0' rollout 1" in message
    assert type(value).__name__ in message


@pytest.mark.parametrize(("value", "number"), [(1, 1.0), (True, 1.0), (np.float32(0.5), 0.5), (np.int64(2), 2.0)])
def test_any_kind_of_number_is_taken_as_a_float(value: object, number: float) -> None:
    scored = Scorer([loaded("fine", lambda call: value)]).score([group("q0", "a")])
    returned = scored[0].rollouts[0].rewards[0].value
    assert returned == number
    assert type(returned) is float


@pytest.mark.parametrize("value", [1.0, None, "ab", [1.0], [1.0, 2.0, 3.0], [1.0, float("nan")], [1.0, "x"]])
def test_wrong_values_an_image_are_refused(value: object) -> None:
    message = failure(loaded("lines", lambda call: value, LINES))
    assert "sample 'q0' rollout 0" in message
    assert "one per image" in message or "finite number" in message


def test_an_exception_never_becomes_a_reward() -> None:
    def fragile(call: RewardCall) -> float:
        return 1.0 / (len(call.text) - 3)

    with pytest.raises(RewardError) as caught:
        Scorer([loaded("fragile", fragile)]).score([group("q0", "a", "bb"), group("q1", "ccc")])
    assert "reward 'fragile' (tests:fragile) on sample 'q1' rollout 0 raised ZeroDivisionError" in str(caught.value)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)

    async def fragile_too(call: RewardCall) -> float:
        await asyncio.sleep(0)
        return fragile(call)

    assert "'fragile_too' (tests:fragile_too) on sample 'q1' rollout 0 raised ZeroDivisionError" in failure(
        loaded("fragile_too", fragile_too)
    )


def test_a_function_that_leaves_the_program_is_an_error_too() -> None:
    def leaves(call: RewardCall) -> float:
        raise SystemExit(3)

    assert "on sample 'q0' rollout 0 raised SystemExit: 3" in failure(loaded("leaves", leaves))


@pytest.mark.parametrize("values", [[1.0], [1.0] * 4, None, "abc", 3.0])
def test_a_batch_function_must_answer_every_call(values: object) -> None:
    message = failure(loaded("together", lambda calls: values, is_batch=True))
    assert "batch reward 'together'" in message
    assert "for 3 calls" in message


def test_a_hung_plain_function_is_found_while_it_hangs() -> None:
    release = threading.Event()

    def hangs(call: RewardCall) -> float:
        if call.text == "ccc":
            release.wait(20.0)
        return 0.0

    start = time.monotonic()
    message = failure(loaded("hangs", hangs, timeout=0.5))
    release.set()
    assert time.monotonic() - start < 10.0
    assert "reward 'hangs' (tests:hangs) on sample 'q1' rollout 0 took longer than" in message
    assert "rewards.hangs.timeout_seconds=0.5" in message
    assert "threading.py" in message  # where it stands


def test_the_timeout_is_for_each_call_not_for_their_sum() -> None:
    def slow(call: RewardCall) -> float:
        time.sleep(0.15)
        return 0.0

    assert Scorer([loaded("slow", slow, timeout=1.0)]).score([group("q0", *"abcdefgh")])  # 1.2 s in all


def test_a_hung_async_function_is_found() -> None:
    async def hangs(call: RewardCall) -> float:
        await asyncio.sleep(20.0 if call.text == "bb" else 0.0)
        return 0.0

    start = time.monotonic()
    message = failure(loaded("hangs", hangs, timeout=0.5))
    assert time.monotonic() - start < 10.0
    assert "sample 'q0' rollout 1 took longer than rewards.hangs.timeout_seconds=0.5" in message


def test_an_async_function_that_blocks_the_event_loop_is_found() -> None:
    release = threading.Event()

    async def blocks(call: RewardCall) -> float:
        await asyncio.sleep(0)
        if call.text == "bb":
            release.wait(20.0)
        return 0.0

    start = time.monotonic()
    message = failure(loaded("blocks", blocks, timeout=0.5))
    release.set()
    assert time.monotonic() - start < 10.0
    assert "sample 'q0' rollout 1 took longer than" in message
    assert "without giving the event loop a turn" in message


def test_an_async_reward_may_time_out_by_itself() -> None:
    async def gives_up(call: RewardCall) -> float:
        raise TimeoutError("the judge is down")

    assert "raised TimeoutError: the judge is down" in failure(loaded("gives_up", gives_up))


GOLD = "<evidence>[1]: x</evidence><answer>x</answer>"


@pytest.mark.parametrize(
    ("sample", "sections", "problem"),
    [
        (Sample(sample_id="s", gold_response=GOLD), ("answer", "evidence"), ""),
        (Sample(sample_id="s", answers=("x",)), ("answer",), ""),
        (Sample(sample_id="s", is_sufficient=False), ("answer",), ""),  # a refusal is right
        (Sample(sample_id="s"), ("answer",), "neither a gold response nor answers"),
        (Sample(sample_id="s", answers=("x",)), ("evidence",), "it has no gold response"),
        (Sample(sample_id="s", gold_response="<answer>x", answers=("x",)), ("answer",), "has no <answer>"),
        (Sample(sample_id="s", gold_response="<evidence>x</evidence>"), ("evidence",), "no line that starts with"),
        (
            Sample(sample_id="s", gold_response="<evidence>[3]: x</evidence>", images=(ImageRef(path="0.png"),)),
            ("evidence",),
            r"evidence \[3\]: but the sample has 1 images",
        ),
        (Sample(sample_id="s"), (), ""),
    ],
)
def test_samples_are_checked_before_training(sample: Sample, sections: tuple[str, ...], problem: str) -> None:
    scorer = Scorer([loaded("mine", length, gold_sections=sections)])
    fine = Sample(sample_id="fine", gold_response=GOLD)
    if not problem:
        scorer.check_samples([fine, sample])
        return
    with pytest.raises(RewardError, match=f"reward 'mine' cannot judge 1 of 2 samples .*'s': .*{problem}"):
        scorer.check_samples([fine, sample])


def test_evidence_lines_need_images() -> None:
    with pytest.raises(RewardError, match="no images"):
        Scorer([loaded("lines", length, LINES)]).check_samples([Sample(sample_id="s")])


def test_a_declared_reward_stays_a_function() -> None:
    declared = needs_gold("answer")(length)
    assert isinstance(declared, DeclaredReward)
    scored = Scorer([loaded("declared", declared.function)]).score([group("q0", "abc")])
    assert scored[0].rollouts[0].rewards[0].value == 3.0


def test_an_exception_is_named_with_the_line_of_the_reward_file() -> None:
    def words_of(text: str) -> int:
        return int(text)  # the last line of this file that the exception goes through

    def fragile(call: RewardCall) -> float:
        return float(words_of(call.text))

    line = words_of.__code__.co_firstlineno + 1
    assert f"(line {line} of test_scorer.py); fix the function" in failure(loaded("fragile", fragile))
