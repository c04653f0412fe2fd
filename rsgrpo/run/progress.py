"""What a person sees while a long step runs: a live bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import TextIO

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as RichProgress

MAX_COLUMNS = 120
_DAY_SECONDS = 86_400.0


class Phase:
    """One running phase; made by :meth:`Progress.phase`."""

    def __init__(self, progress: Progress, task: TaskID | None) -> None:
        self._progress = progress
        self._task = task

    def advance(self, message: str = "", *, count: int = 1) -> None:
        """Count on, and print one line.

        Args:
            message: the line to print, cut at 120 columns; empty: print none.
            count: how many steps were done since the last call.
        """
        self._progress._advance(self._task, count)
        if message:
            self._progress.line(message)


class Progress:
    """Shows phases. Phases may be nested; the inner one stands below the outer one.

    Args:
        enabled: whether anything is shown at all.
        file: the stream to write to; None: standard output.

    Example:
        >>> with Progress(True).phase("Supervised training", total=2) as phase:
        ...     phase.advance("step 1/2  loss 2.31")
        ...     phase.advance("step 2/2  loss 2.02")
        Supervised training …
          step 1/2  loss 2.31
          step 2/2  loss 2.02
        Supervised training: done in 0.0 s
    """

    def __init__(self, enabled: bool, file: TextIO | None = None) -> None:
        self._enabled = enabled
        self._console = Console(file=file or sys.stdout, highlight=False, markup=False)
        self._is_live = enabled and self._console.is_terminal
        self._display: RichProgress | None = None
        self._num_open = 0

    @contextmanager
    def phase(self, title: str, total: int | None = None) -> Iterator[Phase]:
        """Show a phase for the length of the block, and how long it took.

        Args:
            title: what is being done.
            total: how often it will advance; None: unknown.

        Yields:
            The phase, to be advanced inside the block.
        """
        begin = time.perf_counter()
        task = self._open(title, total)
        ending = "stopped after"
        try:
            yield Phase(self, task)
            ending = "done in"
        finally:
            self._close(task)
            self.line(f"{title}: {ending} {readable_seconds(time.perf_counter() - begin)}", indent=0)

    def line(self, text: str, *, indent: int = 2) -> None:
        """Print one line of at most 120 columns, above the live bar if there is one."""
        if not self._enabled:
            return
        flat = " " * indent + " ".join(text.split("\n"))
        cut = flat if len(flat) <= MAX_COLUMNS else flat[: MAX_COLUMNS - 1] + "…"
        if self._is_live:
            self._console.print(cut, soft_wrap=True)
        else:
            # Not through rich: a pipe gets the text and nothing else.
            print(cut, file=self._console.file, flush=True)

    def _open(self, title: str, total: int | None) -> TaskID | None:
        if not self._is_live:
            self.line(f"{title} …", indent=0)
            return None
        if self._display is None:
            self._display = RichProgress(
                SpinnerColumn(),
                TextColumn("{task.description}"),
                BarColumn(bar_width=30),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                console=self._console,
                transient=True,
                refresh_per_second=4,
            )
            self._display.start()
        self._num_open += 1
        return self._display.add_task(escape(title), total=total)

    def _close(self, task: TaskID | None) -> None:
        if self._display is None or task is None:
            return
        self._display.remove_task(task)
        self._num_open -= 1
        if self._num_open == 0:
            self._display.stop()
            self._display = None

    def _advance(self, task: TaskID | None, count: int) -> None:
        if self._display is not None and task is not None:
            self._display.advance(task, count)


def readable_seconds(seconds: float) -> str:
    """A duration for people.

    Example:
        >>> readable_seconds(4.2), readable_seconds(75.0), readable_seconds(7384.0)
        ('4.2 s', '1 min 15 s', '2 h 03 min')
    """
    if seconds < 59.95:  # what would print as 60.0 s is a minute
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def end_time(seconds_left: float, now: datetime) -> str:
    """The time at which something will be done, for people.

    Args:
        seconds_left: the time that it still takes, in seconds.
        now: the current local time.

    Example:
        >>> end_time(179.0, datetime(2026, 11, 20, 14, 0))
        'ends 14:02 (in 2 min 59 s)'
    """
    end = now + timedelta(seconds=seconds_left)
    is_today = seconds_left < _DAY_SECONDS
    return f"ends {end:{'%H:%M' if is_today else '%Y-%m-%d %H:%M'}} (in {readable_seconds(seconds_left)})"


def step_line(stage: str, step: int, total: int, values: Mapping[str, float]) -> str:
    """One training step in one line; what does not fit into 120 columns is left out from the end.

    Args:
        stage: the name of the stage, such as ``rl``.
        step: how many steps are done so far.
        total: how many steps the stage has.
        values: the numbers that matter most, most important first, by the name to print.

    Returns:
        The line of at most 120 columns.

    Example:
        >>> step_line("rl", 7, 100, {"accuracy": 0.51234, "lr": 1e-6, "tokens/s": 12345.0})
        'rl   7/100  accuracy 0.512  lr 1.00e-06  tokens/s 12345'
    """
    line = f"{stage} {step:>{len(str(total))}}/{total}"
    for name, value in values.items():
        field = f"  {name} {_short(value)}"
        if len(line) + len(field) > MAX_COLUMNS - 2:  # 2 for the indent
            break
        line += field
    return line


def _short(value: float) -> str:
    size = abs(value)
    if size and (size < 1e-3 or size >= 1e7):
        return f"{value:.2e}"
    if size >= 1000 or (size >= 1 and value.is_integer()):
        return f"{value:.0f}"
    return f"{value:.3g}" if size >= 1 else f"{value:.3f}"
