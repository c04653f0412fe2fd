"""Four engines, one of them at half speed: how much of their speed the queue of requests makes use of.

The queue, the calls and the actors are the real ones; the engines only wait as long as an engine would that decodes
all of its responses token by token, a step taking ``1 + responses / 20`` units, so that four of them run on any
machine. Lengths of responses are log-normal. The ideal is 3.5 / 4 of the rate of four engines that are all at full
speed, asked in turn with the slowed ones. ``of_endless`` compares with 3.5 times one engine that never runs out of
requests: it counts the end of a call too, when the last responses run by themselves, which slows four alike engines as
well. In the first call nothing is known of the engines' speeds, in the others, as in every step but a run's first, they
are known from the call before.

    uv run python benchmarks/slow_engine.py
"""

from __future__ import annotations

import argparse
import random
import statistics
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import ray
from json_line import report

from rollout.requests import EnginePace, RequestQueue, RolloutRequest, requests_for
from rollout.sampling import SamplingCall
from rsgrpo.config import SamplingConfig
from rsgrpo.types import ChatPrompt, Group, PromptedSample, Rollout, RolloutGroup, Sample

SAMPLES = 4
RUNNING = 8  # questions that an engine decodes at a time
CAPACITY = RUNNING + 4
MIN_STEPS, MAX_STEPS = 8, 64  # as rollout/vllm_engine.py
SHARE_OF_A_RESPONSE = 0.05


def lengths(sample_id: str) -> list[int]:
    """Lengths of a question's responses in tokens, always the same ones."""
    chance = random.Random(sample_id)
    return [max(5, int(60 * chance.lognormvariate(0, 0.5))) for _ in range(SAMPLES)]


class WaitingEngine:
    """Decodes nothing, as slowly as an engine would.

    Args:
        step_seconds: how long a step without responses takes, in seconds.
    """

    def __init__(self, step_seconds: float) -> None:
        self._step_seconds = step_seconds
        self._waiting: list[RolloutRequest] = []
        self._running: list[tuple[RolloutRequest, list[int]]] = []
        self.num_tokens = 0

    def advance(self, requests: Sequence[RolloutRequest]) -> list[RolloutGroup]:
        """As ``VllmEngine.advance``."""
        self._waiting += requests
        groups: list[RolloutGroup] = []
        num_steps, seconds = 0, 0.0
        while (self._waiting or self._running) and num_steps < (MIN_STEPS if groups else MAX_STEPS):
            while self._waiting and len(self._running) < RUNNING:
                request = self._waiting.pop(0)
                self._running.append((request, lengths(request.sample_id)))
            num_responses = sum(len(left) for _, left in self._running)
            seconds += self._step_seconds * (1 + SHARE_OF_A_RESPONSE * num_responses)
            self.num_tokens += num_responses
            self._running = [
                (request, [remaining - 1 for remaining in left if remaining > 1]) for request, left in self._running
            ]
            groups += [answer(request) for request, left in self._running if not left]
            self._running = [entry for entry in self._running if entry[1]]
            num_steps += 1
        time.sleep(seconds)
        return groups

    def clear(self) -> None:
        """Give up all requests."""
        self._waiting, self._running = [], []

    def tokens_per_second(self, num_steps: int) -> float:
        """Tokens a second with enough requests: of a call that ends before the first engine runs out of them."""
        prompts = requests(10 * RUNNING, "alone")
        begin, tokens = time.perf_counter(), self.num_tokens
        self.advance(prompts)
        for _ in range(num_steps):
            self.advance(())
        rate = (self.num_tokens - tokens) / (time.perf_counter() - begin)
        self.clear()
        return rate


def answer(request: RolloutRequest) -> RolloutGroup:
    rollouts = tuple(
        Rollout(
            sample_id=request.sample_id,
            response_index=index,
            token_ids=np.zeros(length, dtype=np.int32),
            logprobs=np.zeros(length, dtype=np.float32),
            text="",
            token_char_starts=np.zeros(length, dtype=np.int32),
            finish_reason="stop",
            policy_version=0,
        )
        for index, length in enumerate(lengths(request.sample_id))
    )
    return Group(
        sample=request.prompted.sample,
        prompt=request.prompted.prompt,
        prompt_token_ids=np.zeros(1, dtype=np.int32),
        rollouts=rollouts,
    )


def requests(number: int, name: str) -> list[RolloutRequest]:
    ids = [f"{name}-{index}" for index in range(number)]
    prompted = [
        PromptedSample(sample=Sample(sample_id=sample_id), prompt=ChatPrompt(sample_id=sample_id, text=""))
        for sample_id in ids
    ]
    return requests_for(prompted, num_samples=SAMPLES, sampling=SamplingConfig(), seed=0)


def timed_call(
    workers: Mapping[int, Any], asked: Sequence[RolloutRequest], paces: Mapping[int, EnginePace]
) -> tuple[float, dict[int, EnginePace]]:
    """Tokens a second of a call to all engines, and how fast each was."""
    queue = RequestQueue(asked, list(workers), capacity=CAPACITY, paces=paces)
    call = SamplingCall(
        workers,
        queue,
        timeout_seconds=600.0,
        sending=threading.RLock(),
        replaced=lambda number, died, others_live: None,
    )
    begin = time.perf_counter()
    tokens = sum(len(rollout.token_ids) for group in call.groups() for rollout in group.rollouts)
    return tokens / (time.perf_counter() - begin), queue.paces()


def measure(num_questions: int, num_calls: int, step_seconds: float) -> dict[str, object]:
    actor = ray.remote(num_cpus=0)(WaitingEngine)
    slowed = {number: actor.remote(step_seconds * (2.0 if number == 0 else 1.0)) for number in range(4)}
    alike = {number: actor.remote(step_seconds) for number in range(4)}
    alone = ray.get(alike[0].tokens_per_second.remote(6))
    rates: dict[str, list[float]] = {"alike": [], "slowed": []}
    paces: dict[str, dict[int, EnginePace]] = {"alike": {}, "slowed": {}}
    for call in range(num_calls):
        for side, workers in (("alike", alike), ("slowed", slowed)):
            asked = requests(num_questions, f"call{call}")
            rate, paces[side] = timed_call(workers, asked, paces[side])
            rates[side].append(rate)
    ratios = [slow / (fast * 3.5 / 4) for slow, fast in zip(rates["slowed"], rates["alike"], strict=True)]
    return {
        "questions": num_questions,
        "samples": SAMPLES,
        "alike_tokens_per_second": round(statistics.median(rates["alike"])),
        "slowed_tokens_per_second": round(statistics.median(rates["slowed"])),
        "first_call_of_ideal": round(ratios[0], 3),
        "later_calls_of_ideal": round(statistics.median(ratios[1:]), 3),
        "alike_of_endless": round(statistics.median(rates["alike"]) / (4 * alone), 3),
        "slowed_of_endless": round(statistics.median(rates["slowed"]) / (3.5 * alone), 3),
        "target": 0.9,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=512)
    parser.add_argument("--calls", type=int, default=4)
    parser.add_argument("--step-seconds", type=float, default=0.004)
    options = parser.parse_args(arguments)
    ray.init(address="local", include_dashboard=False, log_to_driver=False, num_cpus=2)
    report("slow_engine", measure(options.prompts, options.calls, options.step_seconds))
    ray.shutdown()


if __name__ == "__main__":
    main()
