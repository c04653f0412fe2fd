"""Append-only JSON lines that survive a killed writer."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any


def append_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Add one line a row and flush them to the file.

    A half-written last line, left by a killed run, is cut off first: what follows it would be lost with it.

    Args:
        path: the file; its folder is made if need be.
        rows: JSON objects without NaN or infinity.

    Raises:
        ValueError: a row holds NaN or infinity, which JSON cannot say.
    """
    lines = "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as file:
        _cut_half_line(file.fileno())
        file.write(lines.encode())
        file.flush()


def _cut_half_line(descriptor: int) -> None:
    size = end = os.fstat(descriptor).st_size
    block = 1 << 16
    while end:
        begin = max(0, end - block)
        found = os.pread(descriptor, end - begin, begin).rfind(b"\n")
        if found >= 0:
            end = begin + found + 1
            break
        end = begin
    if end < size:
        os.ftruncate(descriptor, end)


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Every whole line of a file that :func:`append_rows` wrote.

    Args:
        path: the file; a missing one holds no rows.

    Yields:
        The rows; a last line without its line break is left out.

    Raises:
        ValueError: a whole line is not a JSON object; the message names the file and the line.
    """
    if not path.exists():
        return
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                return
            try:
                row = json.loads(line)
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: not JSON ({error}); remove the line") from error
            if not isinstance(row, dict):
                raise ValueError(
                    f"{path}, line {number}: got {type(row).__name__}, expected an object; remove the line"
                )
            yield row


def keep_rows(path: Path, should_keep: Callable[[dict[str, Any]], bool]) -> int:
    """Rewrite a file without the rows that fail a test, all at once.

    Args:
        path: the file; a missing one is left missing.
        should_keep: asked of every row.

    Returns:
        How many rows were dropped.
    """
    if not path.exists():
        return 0
    num_dropped = 0
    partial = path.with_name(path.name + ".partial")
    with partial.open("w", encoding="utf-8") as file:
        for row in read_rows(path):
            if should_keep(row):
                file.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")
            else:
                num_dropped += 1
    partial.replace(path)
    return num_dropped
