"""What the stages of ``gpu_checks.py`` share: a line of the table of checks, and the time that is left."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """A line of the table of checks; ``passed`` is None where the check cannot be made."""

    name: str
    passed: bool | None
    detail: str


class Clock:
    """Progress with the time since the start, and whether something new may still begin.

    Args:
        limit_seconds: the time after which nothing new begins, in seconds.
    """

    def __init__(self, limit_seconds: float) -> None:
        self._limit_seconds = limit_seconds
        self._start = time.perf_counter()

    def note(self, text: str) -> None:
        """Print a line of progress."""
        print(f"{time.perf_counter() - self._start:7.1f} s  {text}", file=sys.stderr, flush=True)

    def has_time(self, text: str) -> bool:
        """Whether this may begin; a line says so, or that it is left out."""
        is_in_time = time.perf_counter() - self._start < self._limit_seconds
        self.note(text if is_in_time else f"{text}: left out, no time")
        return is_in_time
