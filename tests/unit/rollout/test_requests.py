"""Who answers which question: the queue from which engines draw."""

from __future__ import annotations

import heapq
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollout.engine import RolloutError
from rollout.requests import EnginePace, RequestQueue, RolloutRequest, longest_first, request_seed, requests_for
from rsgrpo.config import SamplingConfig
from rsgrpo.types import ChatPrompt, ImageRef, PromptedSample, Sample
from tests.examples import examples


def _requests(shapes: list[tuple[int, int]]) -> list[RolloutRequest]:
    """Requests with so many pages and characters."""
    prompted = [
        PromptedSample(
            sample=Sample(sample_id=f"q{index}"),
            prompt=ChatPrompt(
                sample_id=f"q{index}",
                text="x" * length,
                images=tuple(ImageRef(path=str(page)) for page in range(pages)),
            ),
        )
        for index, (pages, length) in enumerate(shapes)
    ]
    return requests_for(prompted, num_samples=2, sampling=SamplingConfig(), seed=0)


def _ids(requests: list[RolloutRequest]) -> list[str]:
    return [request.sample_id for request in requests]


def _even(number: int) -> list[RolloutRequest]:
    return _requests([(1, 10)] * number)


def test_many_pages_come_before_few_and_long_prompts_before_short() -> None:
    assert _ids(longest_first(_requests([(1, 5), (3, 1), (1, 9), (1, 5)]))) == ["q1", "q2", "q0", "q3"]


def test_two_questions_with_one_id_are_refused() -> None:
    twice = _even(2) + _even(1)
    with pytest.raises(RolloutError, match="3 questions have 2 different sample ids"):
        RequestQueue(twice, [0], capacity=4)


def test_an_engine_alone_is_dealt_what_keeps_it_busy_and_then_one_for_one() -> None:
    queue = RequestQueue(_even(6), [0], capacity=4)
    assert _ids(queue.deal(now_seconds=0.0)[0]) == ["q0", "q1", "q2", "q3"]
    assert _ids(queue.answered(0, {"q1": 5}, now_seconds=1.0)) == ["q4"]
    assert queue.answered(0, {}, now_seconds=2.0) == []
    assert _ids(queue.answered(0, {"q0": 5, "q4": 5}, now_seconds=3.0)) == ["q5"]
    assert queue.answered(0, {"q2": 1, "q3": 1}, now_seconds=4.0) == []
    assert (queue.num_open, queue.num_held(0)) == (1, 1)
    queue.answered(0, {"q5": 1}, now_seconds=5.0)
    assert queue.num_open == 0


def test_engines_that_nothing_is_known_of_get_three_quarters_of_equal_shares() -> None:
    # 16 requests, 2 engines: 0.75 · 8 = 6 each, in turns.
    dealt = RequestQueue(_even(16), [0, 1], capacity=99).deal(now_seconds=0.0)
    assert _ids(dealt[0]) == ["q0", "q2", "q4", "q6", "q8", "q10"]
    assert _ids(dealt[1]) == ["q1", "q3", "q5", "q7", "q9", "q11"]


def test_a_slow_engine_is_dealt_less() -> None:
    paces = {
        0: EnginePace(tokens_per_second=100.0, request_seconds=2.0),
        1: EnginePace(tokens_per_second=300.0, request_seconds=1.0),
    }
    # Unevenness 2/3: the most is held back. 0.75 · 16 = 12, of which a quarter and three quarters.
    dealt = RequestQueue(_even(16), [0, 1], capacity=99, paces=paces).deal(now_seconds=0.0)
    assert [len(dealt[0]), len(dealt[1])] == [3, 9]
    # Engines that were alike share 0.9 · 20 = 18.
    alike = dict.fromkeys([0, 1], EnginePace(tokens_per_second=100.0, request_seconds=1.0))
    dealt = RequestQueue(_even(20), [0, 1], capacity=99, paces=alike).deal(now_seconds=0.0)
    assert [len(dealt[0]), len(dealt[1])] == [9, 9]


def test_a_slow_engine_leaves_the_last_requests_to_the_others() -> None:
    # Engine 0 takes 10 s a request, engine 1 takes 1 s.
    queue = RequestQueue(_even(6), [0, 1], capacity=2)
    queue.deal(now_seconds=0.0)
    assert _ids(queue.answered(1, {"q1": 9}, now_seconds=1.0)) == ["q4"]
    # One request waits. Engine 1 holds two: 2 a second, so that q5 is answered after 0.5 + 1 s.
    assert queue.answered(0, {"q0": 9}, now_seconds=10.0) == []
    # That engine alone cannot leave anything to others.
    queue.lost(1)
    assert _ids(queue.draw(0, now_seconds=11.0)) == ["q3"]


def test_what_a_dead_engine_held_goes_first() -> None:
    queue = RequestQueue(_even(8), [0, 1], capacity=2)
    queue.deal(now_seconds=0.0)
    queue.lost(0)
    assert queue.num_held(0) == 0
    assert _ids(queue.answered(1, {"q1": 1}, now_seconds=1.0)) == ["q0"]
    assert _ids(queue.draw(2, now_seconds=2.0)) == ["q2", "q4"]


def test_paces_are_tokens_over_the_busy_time_and_the_mean_wait() -> None:
    earlier = {1: EnginePace(tokens_per_second=7.0, request_seconds=3.0)}
    queue = RequestQueue(_even(4), [0, 1], capacity=2, paces=earlier)
    queue.deal(now_seconds=100.0)
    queue.answered(0, {"q0": 30}, now_seconds=102.0)
    # Given at 100 and 102 (q3 in q0's place), answered at 102 and 106: waits of 2 and 4 s; 50 tokens in 6 s.
    queue.answered(0, {"q3": 20}, now_seconds=106.0)
    assert queue.paces() == {0: EnginePace(tokens_per_second=50 / 6, request_seconds=3.0), **earlier}


@given(
    st.integers(1, 60),
    st.integers(1, 5),
    st.integers(1, 12),
    st.lists(st.integers(0, 4), max_size=3),
    st.integers(0, 10**6),
)
@examples(80)
def test_every_request_is_answered_once_whatever_dies(
    num_requests: int, num_engines: int, capacity: int, deaths: list[int], seed: int
) -> None:
    chance = random.Random(seed)
    queue = RequestQueue(_even(num_requests), range(num_engines), capacity=capacity)
    held = {number: _ids(given_) for number, given_ in queue.deal(now_seconds=0.0).items()}
    answered: list[str] = []
    now = 0.0
    while queue.num_open:
        now += chance.random()
        if deaths and chance.random() < 0.3:
            number = deaths.pop() % num_engines
            queue.lost(number)
            held.pop(number)
            for other in [*held, number]:
                held.setdefault(other, []).extend(_ids(queue.draw(other, now_seconds=now)))
            continue
        number = chance.choice([number for number in held if held[number]])
        done = {held[number].pop(chance.randrange(len(held[number]))): 1}
        answered.extend(done)
        held[number].extend(_ids(queue.answered(number, done, now_seconds=now)))
        assert all(queue.num_held(engine) == len(held[engine]) <= capacity for engine in held)
        # Work is never left lying while nobody works.
        assert not queue.num_open or any(held.values())
    assert sorted(answered) == sorted(f"q{index}" for index in range(num_requests))


def _makespan(queue: RequestQueue, steps: list[list[int]], speeds: list[float], batch_cost: float) -> float:
    """Seconds until engines that decode in steps have answered everything.

    A step takes 1 + ``batch_cost`` times the responses that run, over the engine's speed.
    """
    running: dict[int, list[tuple[list[int], str]]] = {
        number: [(list(steps[int(sample_id[1:])]), sample_id) for sample_id in _ids(dealt)]
        for number, dealt in queue.deal(now_seconds=0.0).items()
    }
    clock = [(0.0, number) for number in running]
    end = 0.0
    while queue.num_open:
        now, number = heapq.heappop(clock)
        batch = running[number]
        now += (1 + batch_cost * sum(len(left) for left, _ in batch)) / speeds[number]
        batch = [([steps_left - 1 for steps_left in left if steps_left > 1], sample_id) for left, sample_id in batch]
        done = {sample_id: sum(steps[int(sample_id[1:])]) for left, sample_id in batch if not left}
        running[number] = [entry for entry in batch if entry[0]]
        drawn = queue.answered(number, done, now_seconds=now)
        running[number] += [(list(steps[int(sample_id[1:])]), sample_id) for sample_id in _ids(drawn)]
        if running[number]:
            heapq.heappush(clock, (now, number))
        end = now
    return end


def test_with_one_of_four_engines_at_half_speed_nearly_all_of_their_speed_is_used() -> None:
    chance = random.Random(0)
    # 256 questions, 4 responses each of log-normal length; engines that run 8 questions at a time.
    steps = [[max(5, int(30 * chance.lognormvariate(0, 0.5))) for _ in range(4)] for _ in range(256)]

    def seconds(speeds: list[float], paces: dict[int, EnginePace]) -> tuple[float, dict[int, EnginePace]]:
        queue = RequestQueue(_even(256), range(len(speeds)), capacity=8, paces=paces)
        return _makespan(queue, steps, speeds, 0.05), queue.paces()

    even, _ = seconds([1.0] * 4, {})
    slowed = [0.5, 1.0, 1.0, 1.0]
    first, paces = seconds(slowed, {})
    second, _ = seconds(slowed, paces)
    # Four whole engines take ``even``; three and a half of them ideally 4 / 3.5 of that.
    ideal = even * 4 / 3.5
    assert ideal / first > 0.9
    assert ideal / second > 0.9
    # Dealt beforehand, a quarter each, everybody waits twice as long.
    assert second < 0.6 * 2 * even


def test_a_requests_seed_is_the_same_everywhere() -> None:
    # blake2b of "0/q7", first 8 bytes, modulo 2**31 - 1: fixed, or responses would change between versions.
    assert request_seed(0, "q7") == request_seed(0, "q7") != request_seed(1, "q7")
    assert 0 <= request_seed(0, "q7") < 2**31 - 1
