"""Call reward functions under a timeout, and say which call is to blame when one fails.

Plain functions run in one daemon thread a reward, not one a call: the thread notes when each call
starts, the main thread watches. A hung call is left behind with its thread, which ends with the process.
"""

from __future__ import annotations

import asyncio
import sys
import threading
import time
import traceback
from collections.abc import Coroutine, Sequence
from types import FrameType
from typing import Any

from rewards.base import RewardCall, RewardError
from rewards.capture import Capture
from rewards.plugins import LoadedReward

# Calls in flight in the event loop at a time; more would only queue at the judge behind them.
_MAX_CONCURRENT_CALLS = 256
# How much later than the event loop itself the watcher looks: the loop names a slow call by itself,
# the watcher only one that does not let the loop run.
_WATCHER_GRACE_SECONDS = 0.25


def run_plain(reward: LoadedReward, calls: Sequence[RewardCall]) -> Sequence[Any]:
    """Values of a plain reward, one for each call.

    Raises:
        RewardError: a call raised or took longer than ``timeout_seconds``; for a batch function, or
            it returned no list of one value a call.
    """
    if reward.is_batch:
        batches: Sequence[Any] = [list(calls)]
        return _batch_values(reward, calls, _watched(reward, batches)[0])
    return _watched(reward, calls)


def run_async(rewards: Sequence[LoadedReward], calls: Sequence[RewardCall]) -> list[Sequence[Any]]:
    """Values of asynchronous rewards, all calls of all rewards at once in one event loop.

    Raises:
        RewardError: as ``run_plain``; also where a call blocks the event loop.
    """
    if not rewards:
        return []
    jobs: list[tuple[LoadedReward, Any]] = []
    for reward in rewards:
        jobs.extend((reward, argument) for argument in ([list(calls)] if reward.is_batch else calls))
    returned = _Loop(jobs).run()
    columns: list[Sequence[Any]] = []
    first = 0
    for reward in rewards:
        count = 1 if reward.is_batch else len(calls)
        values = returned[first : first + count]
        columns.append(_batch_values(reward, calls, values[0]) if reward.is_batch else values)
        first += count
    return columns


def _batch_values(reward: LoadedReward, calls: Sequence[RewardCall], values: Any) -> Sequence[Any]:
    if isinstance(values, str | bytes) or not isinstance(values, Sequence) or len(values) != len(calls):
        got = f"{len(values)} values" if isinstance(values, Sequence) else type(values).__name__
        raise RewardError(
            f"batch reward {reward.name!r} ({reward.config.function}) returned {got} for {len(calls)} calls; "
            "it must return a list with one value for each call, in order"
        )
    return values


def _place(reward: LoadedReward, argument: RewardCall | list[RewardCall]) -> str:
    """Name a call in a message."""
    if isinstance(argument, RewardCall):
        call, where = argument, "on"
    else:
        call, where = argument[0], f"on {len(argument)} calls, of which the first is"
    return (
        f"reward {reward.name!r} ({reward.config.function}) {where} sample {call.sample.sample_id!r} "
        f"rollout {call.rollout_index}"
    )


def _raised(reward: LoadedReward, argument: Any, error: BaseException) -> RewardError:
    failure = RewardError(
        f"{_place(reward, argument)} raised {type(error).__name__}: {error}; mend the function, or let it return "
        "None where it does not apply"
    )
    failure.__cause__ = error
    return failure


def _too_slow(reward: LoadedReward, argument: Any, where: str = "") -> RewardError:
    return RewardError(
        f"{_place(reward, argument)} took longer than rewards.{reward.name}.timeout_seconds="
        f"{reward.config.timeout_seconds:g}{where}; raise the timeout or mend the function"
    )


def _standing_in(frame: FrameType | None) -> str:
    """The source line that a thread stands in."""
    if frame is None:
        return ""
    last = traceback.extract_stack(frame)[-1]
    return f" and stands in {last.filename}:{last.lineno} ({last.name})"


def _watched(reward: LoadedReward, arguments: Sequence[Any]) -> list[Any]:
    """Call ``reward`` on each argument in a thread of its own, and watch that it gets on."""
    values: list[Any] = []
    capture = Capture()
    is_done = threading.Event()
    # Start of the call in progress; the number of values says which call that is.
    started = [time.monotonic()]
    function, kwargs = reward.function, reward.config.kwargs

    def work() -> None:
        with capture:
            for argument in arguments:
                started[0] = time.monotonic()
                values.append(function(argument, **kwargs))
        is_done.set()

    thread = threading.Thread(target=work, name=f"reward-{reward.name}", daemon=True)
    thread.start()
    timeout = reward.config.timeout_seconds
    while not is_done.wait(max(0.0, started[0] + timeout - time.monotonic()) + 0.001):
        num_done = len(values)
        if time.monotonic() - started[0] > timeout and num_done == len(values) < len(arguments):
            frame = sys._current_frames().get(thread.ident or 0)
            raise _too_slow(reward, arguments[num_done], _standing_in(frame))
    if capture.error is not None:
        raise _raised(reward, arguments[len(values)], capture.error)
    return values


class _Loop:
    """One event loop in a thread of its own, for one round of calls."""

    def __init__(self, jobs: Sequence[tuple[LoadedReward, Any]]) -> None:
        self.jobs = jobs
        self.values: list[Any] = [None] * len(jobs)
        self.failure: RewardError | None = None
        self.last_beat = time.monotonic()
        self.is_done = threading.Event()

    def run(self) -> list[Any]:
        """All values, in the order of the jobs."""
        capture = Capture()

        def work() -> None:
            with capture:
                asyncio.run(self._main())
            self.is_done.set()

        thread = threading.Thread(target=work, name="rewards-async", daemon=True)
        thread.start()
        patience = min(reward.config.timeout_seconds for reward, _ in self.jobs)
        while not self.is_done.wait(min(patience, 1.0) / 4 + 0.001):
            frame = sys._current_frames().get(thread.ident or 0)
            stuck = self._stuck_job(frame)
            if stuck is not None:
                reward, argument = stuck
                if time.monotonic() - self.last_beat > reward.config.timeout_seconds + _WATCHER_GRACE_SECONDS:
                    where = _standing_in(frame)
                    raise _too_slow(reward, argument, f" without giving the event loop a turn{where}")
        if self.failure is not None:
            raise self.failure
        if capture.error is not None:
            raise capture.error
        return self.values

    def _stuck_job(self, frame: FrameType | None) -> tuple[LoadedReward, Any] | None:
        """The call whose code the loop's thread is running right now, None between calls."""
        while frame is not None:
            if frame.f_code is _Loop._one.__code__:
                job: tuple[LoadedReward, Any] = self.jobs[frame.f_locals["index"]]
                return job
            frame = frame.f_back
        return None

    async def _main(self) -> None:
        slots = asyncio.Semaphore(_MAX_CONCURRENT_CALLS)
        beat = asyncio.create_task(self._beat())
        tasks = [asyncio.create_task(self._one(index, slots)) for index in range(len(self.jobs))]
        try:
            await _first_failure(tasks)
        except RewardError as error:
            self.failure = error
        finally:
            beat.cancel()
            for task in tasks:
                task.cancel()

    async def _beat(self) -> None:
        """Note that the loop still turns."""
        while True:
            self.last_beat = time.monotonic()
            await asyncio.sleep(0.02)

    async def _one(self, index: int, slots: asyncio.Semaphore) -> None:
        reward, argument = self.jobs[index]
        capture = Capture()
        async with slots:
            with capture:
                async with asyncio.timeout(reward.config.timeout_seconds) as limit:
                    self.values[index] = await reward.function(argument, **reward.config.kwargs)
        if capture.error is None:
            return
        if limit.expired():
            raise _too_slow(reward, argument)
        if isinstance(capture.error, asyncio.CancelledError):
            raise capture.error
        raise _raised(reward, argument, capture.error)


async def _first_failure(tasks: Sequence[asyncio.Task[None]]) -> None:
    """Wait for all tasks; raise what the first of them raised, as soon as it does."""
    waiting: Coroutine[Any, Any, Any] = asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
    done, _ = await waiting
    for task in tasks:
        if task in done:
            task.result()
