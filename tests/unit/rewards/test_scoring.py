"""Groups judged while others are still sampled."""

from __future__ import annotations

import asyncio
import threading
import time
from contextlib import closing

import pytest

from rewards.base import RewardCall, RewardError
from rewards.scorer import Scorer
from tests.unit.rewards.test_scorer import group, length, loaded

WAIT_SECONDS = 20.0


def test_plain_and_asynchronous_rewards_judge_a_group_before_the_next_one_comes() -> None:
    plain, awaited = threading.Event(), threading.Event()

    def count(call: RewardCall) -> float:
        plain.set()
        return length(call)

    async def judge(call: RewardCall) -> float:
        await asyncio.sleep(0)
        awaited.set()
        return 2.0 * len(call.text)

    with closing(Scorer([loaded("count", count), loaded("judge", judge)]).scoring()) as scoring:
        scoring.add(group("q0", "a", "bb"))
        assert plain.wait(WAIT_SECONDS)
        assert awaited.wait(WAIT_SECONDS)
        scoring.add(group("q1", "ccc"))
        scored = scoring.scored()
    assert [[[reward.value for reward in rollout.rewards] for rollout in group.rollouts] for group in scored] == [
        [[1.0, 2.0], [2.0, 4.0]],
        [[3.0, 6.0]],
    ]


def test_asynchronous_rewards_of_all_groups_wait_beside_one_another_and_beside_the_sampling() -> None:
    running, answered = threading.Semaphore(0), threading.Event()

    async def judge(call: RewardCall) -> float:
        running.release()
        while not answered.is_set():
            await asyncio.sleep(0.01)
        return 1.0

    with closing(Scorer([loaded("judge", judge)]).scoring()) as scoring:
        for index in range(8):
            scoring.add(group(f"q{index}", "a", "b"))
        # All 16 calls wait for their answers before anybody asks for the scores.
        assert all(running.acquire(timeout=WAIT_SECONDS) for _ in range(16))
        answered.set()
        assert len(scoring.scored()) == 8


def test_batch_rewards_see_all_calls_of_the_step_in_the_order_of_their_groups() -> None:
    seen: list[list[str]] = []

    def rank(calls: list[RewardCall]) -> list[float]:
        seen.append([f"{call.sample.sample_id}/{call.response_index}" for call in calls])
        return [float(index) for index, _ in enumerate(calls)]

    with closing(Scorer([loaded("rank", rank, is_batch=True)]).scoring()) as scoring:
        scoring.add(group("q1", "a"))
        scoring.add(group("q0", "b", "c"))
        scored = scoring.scored()
    assert seen == [["q1/0", "q0/0", "q0/1"]]
    assert [[rollout.rewards[0].value for rollout in judged.rollouts] for judged in scored] == [[0.0], [1.0, 2.0]]


@pytest.mark.parametrize("is_async", [False, True])
def test_a_failing_reward_stops_the_step_while_others_are_still_sampled(is_async: bool) -> None:
    def fails(call: RewardCall) -> float:
        raise ValueError("the judge is away")

    async def fails_later(call: RewardCall) -> float:
        raise ValueError("the judge is away")

    reward = loaded("judge", fails_later if is_async else fails)
    with closing(Scorer([reward]).scoring()) as scoring, pytest.raises(RewardError) as caught:
        for index in range(1000):
            scoring.add(group(f"q{index}", "a"))
            time.sleep(0.02)
    assert "sample 'q0' rollout 0 raised ValueError: the judge is away" in str(caught.value)


def test_closing_in_the_middle_gives_up_what_runs() -> None:
    begun, cancelled = threading.Event(), threading.Event()

    async def judge(call: RewardCall) -> float:
        begun.set()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.set()
            raise
        return 1.0

    with closing(Scorer([loaded("judge", judge)]).scoring()) as scoring:
        scoring.add(group("q0", "a"))
        assert begun.wait(WAIT_SECONDS)
    assert cancelled.wait(WAIT_SECONDS)
