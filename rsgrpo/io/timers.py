"""Seconds spent in each named phase of a step, and in each stage of a run that may be interrupted."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rsgrpo.errors import shown
from rsgrpo.io.atomic_files import FileError, read_json_object, shown_value, write_json

_MAX_SECONDS = 1e12


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
        """Seconds since the stopwatch was made."""
        return time.perf_counter() - self._begin


class StageClock:
    """Wall-clock seconds by stage, kept in a file, so that a resumed run counts what went before.

    Args:
        file: a JSON object of seconds by stage; need not exist.

    Attributes:
        problem: why the seconds before this process are not known; empty: they are known, or there are none.

    Example:
        >>> clock = StageClock(Path("run/stage_seconds.json"))
        >>> with clock.stage("rl"):
        ...     clock.keep()  # with every checkpoint: a process that is killed loses what came after it
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._before: dict[str, float] = {}
        self.problem = ""
        if file.exists():
            try:
                self._before = _read_seconds(file)
            except FileError as error:
                self.problem = str(error)
        self._begin: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count the block's time under ``name``, on top of what earlier processes spent on it."""
        self._begin[name] = time.perf_counter()
        try:
            yield
        finally:
            self._before = self.seconds
            del self._begin[name]
            self.keep()

    @property
    def seconds(self) -> dict[str, float]:
        """The seconds of each stage, of open ones up to now."""
        now = time.perf_counter()
        running = {name: self._before.get(name, 0.0) + now - begin for name, begin in self._begin.items()}
        return self._before | running

    def keep(self) -> None:
        """Write the file; it appears complete or not at all."""
        write_json(self._file, self.seconds)


def _read_seconds(file: Path) -> dict[str, float]:
    seconds = {}
    for name, value in read_json_object(file).items():
        if not isinstance(value, int | float) or not 0 <= value < _MAX_SECONDS:
            raise FileError(f"{shown(file)}: {shown_value(name)} is {shown_value(value)}, expected seconds")
        seconds[name] = float(value)
    return seconds
