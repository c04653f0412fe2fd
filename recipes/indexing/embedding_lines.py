"""What a command prints while pages are embedded."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime

from rsgrpo.run.progress import end_time

_LINE_SECONDS = 10.0


def embedding_lines() -> Callable[[int, int], None]:
    """Make a function that prints, every ten seconds at most, how many pages are embedded and when the rest will be.

    Returns:
        The function; it takes how many pages are embedded, and how many are to be embedded in all.
    """
    begin = last_line = time.monotonic()

    def tell(num_embedded: int, num_wanted: int) -> None:
        nonlocal last_line
        now = time.monotonic()
        if now - last_line >= _LINE_SECONDS:
            last_line = now
            print(embedding_line(num_embedded, num_wanted, now - begin, datetime.now()), flush=True)

    return tell


def embedding_line(num_embedded: int, num_wanted: int, seconds: float, now: datetime) -> str:
    """Write the progress of embedding as one line.

    Args:
        num_embedded: how many pages are embedded.
        num_wanted: how many pages are to be embedded in all.
        seconds: the time since the first page, in seconds.
        now: the current local time, from which the time of the end is calculated.

    Example:
        ``310/1,240 pages embedded, 5.2 pages/s, ends 14:03 (in 2 min 59 s)``
    """
    speed = num_embedded / seconds
    left = (num_wanted - num_embedded) / speed
    return f"{num_embedded:,}/{num_wanted:,} pages embedded, {speed:.1f} pages/s, {end_time(left, now)}"
