"""One call to the engines: requests go out as engines have room for them, groups come back as they are complete."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any

import ray

from rollout.engine import RolloutError
from rollout.requests import RequestQueue, RolloutRequest
from rollout.worker_calls import explained
from rsgrpo.types import RolloutGroup


class SamplingCall:
    """Keeps engines at work until every request is answered.

    Each engine has two calls at a time: while an answer is on its way, the engine works on the other.

    Args:
        workers: the engines' actors, by number.
        queue: the queue, which decides which engine answers what.
        timeout_seconds: how long an engine may say nothing, in seconds.
        sending: the lock that is held while requests are sent: nobody else's calls to the workers come in between.
        replaced: is called with the number and the actor of an engine that died, and whether others live; gives the
            actor that takes its place at once, or None: the others finish without it.
    """

    def __init__(
        self,
        workers: Mapping[int, Any],
        queue: RequestQueue,
        *,
        timeout_seconds: float,
        sending: threading.RLock,
        replaced: Callable[[int, Any, bool], Any | None],
    ) -> None:
        self._workers = dict(workers)
        self._queue = queue
        self._timeout_seconds = timeout_seconds
        self._sending = sending
        self._replaced = replaced
        self._calls: dict[ray.ObjectRef, int] = {}
        self._heard_seconds: dict[int, float] = {}

    def groups(self) -> Generator[RolloutGroup, None, None]:
        """Groups in the order in which they are complete. Ended early, it has the engines give up the rest.

        Raises:
            RolloutError: an engine said nothing for too long, or raised this.
        """
        try:
            for number, requests in self._queue.deal(now_seconds=time.monotonic()).items():
                self._begin(number, requests)
            while self._queue.num_open:
                number, found = self._next()
                if found is None:
                    self._lose(number)
                    continue
                num_tokens = {
                    group.sample.sample_id: sum(len(rollout.token_ids) for rollout in group.rollouts) for group in found
                }
                drawn = self._queue.answered(number, num_tokens, now_seconds=time.monotonic())
                if self._queue.num_held(number):
                    self._send(number, drawn)
                yield from found
        finally:
            if self._queue.num_open:
                for worker in self._workers.values():
                    worker.clear.remote()

    def _begin(self, number: int, requests: Sequence[RolloutRequest]) -> None:
        if requests:
            self._heard_seconds[number] = time.monotonic()
            self._send(number, requests)
            self._send(number, ())

    def _send(self, number: int, requests: Sequence[RolloutRequest]) -> None:
        with self._sending:
            self._calls[self._workers[number].advance.remote(list(requests))] = number

    def _next(self) -> tuple[int, list[RolloutGroup] | None]:
        """Wait for the next answer; gives it with its engine, None in its place where that engine died."""
        silent = min((self._heard_seconds[number], number) for number in self._calls.values())
        remaining_seconds = silent[0] + self._timeout_seconds - time.monotonic()
        ready, _ = ray.wait(list(self._calls), num_returns=1, timeout=max(0.0, remaining_seconds))
        if not ready:
            raise RolloutError(
                f"rollout worker {silent[1]} did not answer within rollout.generate_timeout_seconds="
                f"{self._timeout_seconds:g}; raise it, or look at the worker's log in Ray's session folder"
            )
        number = self._calls.pop(ready[0])
        self._heard_seconds[number] = time.monotonic()
        try:
            with explained(f"rollout worker {number}", "answer", self._timeout_seconds):
                return number, ray.get(ready[0])
        except ray.exceptions.RayActorError:
            return number, None

    def _lose(self, number: int) -> None:
        """Give the requests of an engine that died to the others, or to the one that takes its place."""
        died = self._workers.pop(number)
        self._calls = {call: other for call, other in self._calls.items() if other != number}
        self._queue.lost(number)
        worker = self._replaced(number, died, bool(self._workers))
        if worker is not None:
            self._workers[number] = worker
        for other in self._workers:
            is_idle = not self._queue.num_held(other)
            drawn = self._queue.draw(other, now_seconds=time.monotonic())
            if is_idle:
                self._begin(other, drawn)
            elif drawn:
                self._send(other, drawn)
