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
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

from rewards.base import RewardCall, RewardError
from rewards.plugins import LoadedReward

# Calls in flight in the event loop at a time; more would only queue at the judge behind them.
_MAX_CONCURRENT_CALLS = 256
# How much later than the event loop itself the watcher looks: the loop names a slow call by itself,
# the watcher only one that does not let the loop run.
_WATCHER_GRACE_SECONDS = 0.25


def run_plain(reward: LoadedReward, calls: Sequence[RewardCall]) -> Sequence[Any]:
    """Values of a plain reward, one for each call.

    Raises:
        RewardError: a call raised or took longer than ``timeout_seconds``, or a batch function did not return a list of
            one value for each call.
    """
    if reward.is_batch:
        batches: Sequence[Any] = [list(calls)]
        return checked_batch(reward, calls, _watched(reward, batches)[0])
    return _watched(reward, calls)


def run_async(reward: LoadedReward, calls: Sequence[RewardCall]) -> Sequence[Any]:
    """Values of an asynchronous reward, one for each call, all calls at once.

    Raises:
        RewardError: a call raised, took longer than ``timeout_seconds`` or blocked the event loop, or a batch function
            did not return a list of one value for each call.
    """
    running = AsyncCalls()
    for argument in [list(calls)] if reward.is_batch else calls:
        running.begin(reward, argument)
    values = running.values()
    return checked_batch(reward, calls, values[0]) if reward.is_batch else values


def checked_batch(reward: LoadedReward, calls: Sequence[RewardCall], values: Any) -> Sequence[Any]:
    """The values that a batch function returned, checked to be one for each call."""
    if isinstance(values, str | bytes) or not isinstance(values, Sequence) or len(values) != len(calls):
        got = f"{len(values)} values" if isinstance(values, Sequence) else type(values).__name__
        raise RewardError(
            f"batch reward {reward.name!r} ({reward.config.function}) returned {got} for {len(calls)} calls; "
            "it must return a list with one value for each call, in order"
        )
    return values


def _place(reward: LoadedReward, argument: RewardCall | list[RewardCall]) -> str:
    """Name a call in a message: reward, sample and rollout."""
    if isinstance(argument, RewardCall):
        call, where = argument, "on"
    else:
        call, where = argument[0], f"on {len(argument)} calls, of which the first is"
    return (
        f"reward {reward.name!r} ({reward.config.function}) {where} sample {call.sample.sample_id!r} "
        f"rollout {call.response_index}"
    )


def _raised(reward: LoadedReward, argument: Any, error: BaseException) -> RewardError:
    return RewardError(
        f"{_place(reward, argument)} raised {type(error).__name__}: {error}{_raised_in(reward, error)}; fix the "
        "function, or let it return None where it does not apply"
    )


def _raised_in(reward: LoadedReward, error: BaseException) -> str:
    """The last line of the reward's own file that an exception went through; empty where it went through none."""
    code = getattr(reward.function, "__code__", None)
    if code is None:
        return ""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == code.co_filename]
    return f" (line {lines[-1]} of {Path(code.co_filename).name})" if lines else ""


def _too_slow(reward: LoadedReward, argument: Any, where: str = "") -> RewardError:
    return RewardError(
        f"{_place(reward, argument)} took longer than rewards.{reward.name}.timeout_seconds="
        f"{reward.config.timeout_seconds:g}{where}; raise the timeout or fix the function"
    )


def _standing_in(frame: FrameType | None) -> str:
    """The source line at which a thread is, for a message; empty if it is not known."""
    if frame is None:
        return ""
    last = traceback.extract_stack(frame)[-1]
    return f" and stands in {last.filename}:{last.lineno} ({last.name})"


def _watched(reward: LoadedReward, arguments: Sequence[Any]) -> list[Any]:
    """Call ``reward`` on each argument in a thread, and raise where a call takes longer than its timeout."""
    values: list[Any] = []
    failures: list[BaseException] = []
    is_done = threading.Event()
    # Start of the call in progress; the number of values says which call that is.
    started = [time.monotonic()]
    function, kwargs = reward.function, reward.config.kwargs

    def work() -> None:
        try:
            for argument in arguments:
                started[0] = time.monotonic()
                values.append(function(argument, **kwargs))
        except BaseException as error:  # a plugin's, whatever it is
            failures.append(error)
        is_done.set()

    thread = threading.Thread(target=work, name=f"reward-{reward.name}", daemon=True)
    thread.start()
    timeout = reward.config.timeout_seconds
    while not is_done.wait(max(0.0, started[0] + timeout - time.monotonic()) + 0.001):
        num_done = len(values)
        if time.monotonic() - started[0] > timeout and num_done == len(values) < len(arguments):
            frame = sys._current_frames().get(thread.ident or 0)
            raise _too_slow(reward, arguments[num_done], _standing_in(frame))
    if failures:
        raise _raised(reward, arguments[len(values)], failures[0]) from failures[0]
    return values


class AsyncCalls:
    """Calls of asynchronous rewards that may come one by one, all in one event loop in a thread of its own.

    Example:
        ::

            calls = AsyncCalls()
            calls.begin(reward, call)
            values = calls.values()
    """

    def __init__(self) -> None:
        self._jobs: list[tuple[LoadedReward, Any]] = []
        self._returned: list[Any] = []
        self._failure: BaseException | None = None
        self._last_beat = 0.0
        self._is_done = threading.Event()
        self._is_complete = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._stop = asyncio.Event()
        self._slots = asyncio.Semaphore(_MAX_CONCURRENT_CALLS)
        self._tasks: set[asyncio.Task[None]] = set()

    def begin(self, reward: LoadedReward, argument: Any) -> None:
        """Start a call.

        Args:
            reward: the asynchronous reward to call.
            argument: what its function is called with.

        Raises:
            RewardError: an earlier call failed.
        """
        if self._failure is not None:
            raise self._failure
        if self._loop is None:
            loop = self._loop = asyncio.new_event_loop()
            self._last_beat = time.monotonic()
            self._thread = threading.Thread(target=self._work, args=(loop,), name="rewards-async", daemon=True)
            self._thread.start()
        self._jobs.append((reward, argument))
        self._returned.append(None)
        self._tell(self._start, len(self._jobs) - 1)

    def values(self) -> list[Any]:
        """What the calls returned, in the order in which they were begun; waits for all of them.

        Raises:
            RewardError: a call raised, took longer than ``timeout_seconds``, or blocked the event loop.
        """
        if self._loop is None or self._thread is None:
            return []
        self._tell(self._complete)
        patience = min(reward.config.timeout_seconds for reward, _ in self._jobs)
        while not self._is_done.wait(min(patience, 1.0) / 4 + 0.001):
            frame = sys._current_frames().get(self._thread.ident or 0)
            stuck = self._stuck_job(frame)
            if stuck is not None:
                reward, argument = stuck
                if time.monotonic() - self._last_beat > reward.config.timeout_seconds + _WATCHER_GRACE_SECONDS:
                    where = _standing_in(frame)
                    raise _too_slow(reward, argument, f" without giving the event loop a turn{where}")
        if self._failure is not None:
            raise self._failure
        return self._returned

    def close(self) -> None:
        """Cancel the calls that have not ended."""
        self._tell(self._stop.set)

    def _tell(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Have the loop's thread call a function; nothing happens where the loop has ended, as after a failure."""
        with suppress(RuntimeError):
            if self._loop is not None:
                self._loop.call_soon_threadsafe(function, *arguments)

    def _work(self, loop: asyncio.AbstractEventLoop) -> None:
        try:
            with asyncio.Runner(loop_factory=lambda: loop) as runner:
                runner.run(self._main())
        except BaseException as error:
            self._failure = self._failure or error
        self._is_done.set()

    async def _main(self) -> None:
        beat = asyncio.create_task(self._beat())
        try:
            await self._stop.wait()
        finally:
            beat.cancel()
            for task in self._tasks:
                task.cancel()

    def _start(self, index: int) -> None:
        task = asyncio.ensure_future(self._one(index))
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None and self._failure is None:
            self._failure = error
        if self._failure is not None or (self._is_complete and not self._tasks):
            self._stop.set()

    def _complete(self) -> None:
        """Note that no further calls will be begun, so that the loop ends with the last one."""
        self._is_complete = True
        if not self._tasks:
            self._stop.set()

    def _stuck_job(self, frame: FrameType | None) -> tuple[LoadedReward, Any] | None:
        """The call whose code the loop's thread is running right now, None between calls."""
        while frame is not None:
            if frame.f_code is AsyncCalls._one.__code__:
                job: tuple[LoadedReward, Any] = self._jobs[frame.f_locals["index"]]
                return job
            frame = frame.f_back
        return None

    async def _beat(self) -> None:
        """Note that the loop still turns."""
        while True:
            self._last_beat = time.monotonic()
            await asyncio.sleep(0.02)

    async def _one(self, index: int) -> None:
        reward, argument = self._jobs[index]
        async with self._slots:
            try:
                async with asyncio.timeout(reward.config.timeout_seconds) as limit:
                    self._returned[index] = await reward.function(argument, **reward.config.kwargs)
            except BaseException as error:  # a plugin's, whatever it is
                if limit.expired():
                    raise _too_slow(reward, argument) from error
                if isinstance(error, asyncio.CancelledError):
                    raise
                raise _raised(reward, argument, error) from error
