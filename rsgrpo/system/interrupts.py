"""Ctrl-C and SIGTERM: an orderly end where one comes in time, a forced one where it does not.

    signal ─► C handler ─► main thread, at its next Python step: KeyboardInterrupt, everything is closed in order
                     └───► wake-up pipe ─► a thread of ours: waits, and ends the process where that takes too long,
                                           or where a second signal comes

The thread hears of a signal also while the main thread hangs in C++ (NCCL, Ray, a driver), where Python's own handlers
never run. It needs nothing of the main thread but that it does not hold Python's lock.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

GRACE_SECONDS = 15.0
"""How many seconds the orderly end may take."""

_SAME_SECONDS = 0.5  # a terminal, `uv run` and a scheduler may each pass one Ctrl-C on: together they are one
_CLEANING_SECONDS = 4.0
_FIRST_STATUS = 128  # as a shell gives it: 130 for SIGINT, 143 for SIGTERM
_HEEDED = (signal.SIGINT, signal.SIGTERM)
_STOP = b"\0"  # no signal's number
_RESUMING = "the same command with resume=auto goes on from the newest checkpoint"

_Cleaning = Callable[[], object]


class _Watch:
    """The thread that waits for signals, and what they have said so far."""

    def __init__(self) -> None:
        self.number = 0
        self.cleanings: list[_Cleaning] = []
        self.is_own = False
        self._is_raised = False
        self._is_ending = threading.Lock()
        self._reading, self._writing = os.pipe()
        os.set_blocking(self._writing, False)
        self._former_fd = signal.set_wakeup_fd(self._writing, warn_on_full_buffer=False)
        self._former = {number: signal.signal(number, self._interrupt) for number in _HEEDED}
        # Shells start what runs in the background (`nohup`, `&` in a script) like this.
        self._ignored = {number for number, handler in self._former.items() if handler is signal.SIG_IGN}
        self._thread = threading.Thread(target=self._wait, name="interrupts", daemon=True)
        self._thread.start()

    def _counts(self, number: int) -> bool:
        is_meant = number in _HEEDED and number not in self._ignored
        return is_meant and not (self.is_own and number == signal.SIGINT)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        counts = self._counts(number)
        if counts:
            if self._is_raised:
                return  # the main thread is on its way out already; the other one judges the second signal
            self._is_raised = True
            self.number = self.number or number
        if counts or self.is_own:
            raise KeyboardInterrupt

    def _wait(self) -> None:
        first = 0.0
        while True:
            left = max(0.0, first + GRACE_SECONDS - time.monotonic()) if first else None
            if not select.select([self._reading], [], [], left)[0]:
                self.end_now()
            for number in os.read(self._reading, 64):
                if number == _STOP[0]:
                    return
                if not self._counts(number):
                    continue
                if first and time.monotonic() - first > _SAME_SECONDS:
                    self.end_now()
                self.number = self.number or number
                first = first or time.monotonic()

    def end_now(self) -> NoReturn:
        """Say that the end is forced, clean up as far as that goes quickly, and end the process."""
        if self._is_ending.acquire(blocking=False):
            # What hangs here, such as a terminal that takes no more, must not hold up the end.
            last = threading.Thread(target=self._last_steps, daemon=True)
            last.start()
            last.join(_CLEANING_SECONDS)
        else:
            time.sleep(_CLEANING_SECONDS)  # another thread is at it
        os._exit(status())

    def _last_steps(self) -> None:
        for cleaning in reversed(self.cleanings):
            with contextlib.suppress(Exception):
                cleaning()
        with contextlib.suppress(OSError):  # standard error may be closed
            os.write(2, f"{sentence()}\n".encode())  # sys.stderr's lock may be the main thread's

    def stop(self) -> None:
        """End the thread, and give signals back to whoever had them."""
        os.write(self._writing, _STOP)
        self._thread.join()
        self.forget()
        for end in (self._reading, self._writing):
            os.close(end)

    def forget(self) -> None:
        """Give signals back to whoever had them."""
        signal.set_wakeup_fd(self._former_fd)
        for number, handler in self._former.items():
            # None: a handler that was not set from Python.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


_watch: _Watch | None = None
_way_on = _RESUMING


@contextmanager
def heeded() -> Iterator[None]:
    """Heed Ctrl-C and SIGTERM for the length of the block: ``KeyboardInterrupt`` first, a forced end after a while.

    Inside another such block, and in threads beside the main one, it changes nothing.
    """
    global _watch
    if _watch is not None or threading.current_thread() is not threading.main_thread():
        yield
        return
    _watch = _Watch()
    try:
        yield
    finally:
        watch, _watch = _watch, None
        if watch is not None:  # None in a child of a fork
            watch.stop()


@contextmanager
def going_on(way_on: str) -> Iterator[None]:
    """Say for the length of the block how an interrupted command goes on, where it has no ``resume=auto``.

    Args:
        way_on: what :func:`sentence` ends with.
    """
    global _way_on
    former, _way_on = _way_on, way_on
    try:
        yield
    finally:
        _way_on = former


def received() -> int:
    """The signal that asked for the end, 0 while none did."""
    return _watch.number if _watch is not None else 0


def status() -> int:
    """Exit status of an interrupted command."""
    return _FIRST_STATUS + (received() or signal.SIGINT)


def sentence() -> str:
    """What a user reads after an interrupted command."""
    return f"{'ended by SIGTERM' if received() == signal.SIGTERM else 'interrupted'}; {_way_on}"


def at_forced_end(cleaning: _Cleaning) -> _Cleaning:
    """Have something done before a forced end; it runs in another thread, and must not take long.

    Args:
        cleaning: the function to call.

    Returns:
        A function that takes the request back.
    """
    watch = _watch
    if watch is None:
        return lambda: None
    watch.cleanings.append(cleaning)
    return lambda: watch.cleanings.remove(cleaning)


def end_now() -> NoReturn:
    """End the process by force, where it turns out that an orderly end will not come."""
    if _watch is not None:
        _watch.end_now()
    os._exit(status())


def interrupt_main_thread() -> None:
    """Raise ``KeyboardInterrupt`` in the main thread for a reason of our own, which counts as no signal."""
    if _watch is not None:
        _watch.is_own = True
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)


def _leave_to_parent(*_: Any) -> None:
    """A child of a fork has the pipe's end, but what it is told is not meant for its parent."""
    global _watch
    watch, _watch = _watch, None
    if watch is not None:
        watch.forget()


os.register_at_fork(after_in_child=_leave_to_parent)
