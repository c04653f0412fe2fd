"""Seconds spent in each named phase of a step."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Stopwatch:
    """Adds up wall-clock seconds by phase.

    Example:
        >>> clock = Stopwatch()
        >>> with clock.phase("generate"):
        ...     pass
        >>> list(clock.seconds)
        ['generate']
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._begin = time.perf_counter()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the block's time under ``name``; a phase entered twice adds up."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - begin

    @property
    def total_seconds(self) -> float:
        """Since the stopwatch was made."""
        return time.perf_counter() - self._begin
