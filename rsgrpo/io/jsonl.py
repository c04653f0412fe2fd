"""Append-only JSON lines that survive a killed writer."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from rsgrpo.errors import shown
from rsgrpo.io.atomic_files import FileError, json_bytes, parse_json, replacing, shown_error


def append_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Add one line per row and flush them to the file.

    A half-written last line, left by a killed run, is cut off first: what follows it would be lost with it.

    Args:
        path: the file; its folder is made if need be.
        rows: JSON objects without NaN or infinity.

    Raises:
        ValueError: a row holds NaN or infinity, which JSON cannot say.
    """
    lines = b"".join(json_bytes(row) for row in rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as file:
        _cut_half_line(file.fileno())
        file.write(lines)
        file.flush()


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Replace a file by one line per row, all at once.

    Args:
        path: the file; its folder is made if need be.
        rows: JSON objects without NaN or infinity.

    Raises:
        ValueError: a row holds NaN or infinity; the file is as it was.
    """
    with replacing(path) as file:
        for row in rows:
            file.write(json_bytes(row))


def _cut_half_line(descriptor: int) -> None:
    size = os.fstat(descriptor).st_size
    end = _end_of_whole_lines(descriptor, size)
    if end < size:
        os.ftruncate(descriptor, end)


def _end_of_whole_lines(descriptor: int, size: int) -> int:
    """Where the last line break ends, in bytes."""
    end = size
    block = 1 << 16
    while end:
        begin = max(0, end - block)
        found = os.pread(descriptor, end - begin, begin).rfind(b"\n")
        if found >= 0:
            return begin + found + 1
        end = begin
    return 0


def cut_line_note(path: Path) -> str:
    """What to say of a last line that was cut off: readers leave it out, and the next writer removes it.

    Args:
        path: a file of JSON lines; a missing one has no cut line.

    Returns:
        One line for people; empty where the last line is whole.

    Raises:
        FileError: the file cannot be read.

    Example:
        ``dropped 1 cut line of rollouts.jsonl (its last 1234 bytes)``
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            num_lost = size - _end_of_whole_lines(file.fileno(), size)
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise FileError(f"{shown(path)} cannot be read ({shown_error(error)})") from error
    return f"dropped 1 cut line of {path.name} (its last {num_lost} bytes)" if num_lost else ""


def line_problem(path: Path, number: int, problem: object) -> str:
    """The sentence for a line that does not belong there.

    Args:
        path: the file of JSON lines.
        number: the number of the line, from 1.
        problem: what is wrong with it.
    """
    return (
        f"{shown(path)}, line {number}: {problem}; remove the line (sed -i {number}d {path.name}), or put the "
        "file back from a copy"
    )


def refuse(error: FileError) -> None:
    """Raise the problem of a line; a caller that wants to leave such lines out passes another function."""
    raise error


def numbered_rows(path: Path, on_problem: Callable[[FileError], None] = refuse) -> Iterator[tuple[int, dict[str, Any]]]:
    """Every whole line of a file that :func:`append_rows` wrote, with its number.

    Args:
        path: the file; a missing one holds no rows.
        on_problem: is called with a line's problem; if it returns, the line is left out.

    Yields:
        The number of each line, from 1, and its row; a last line without its line break is left out
        (:func:`cut_line_note` says so).

    Raises:
        FileError: the file cannot be read; by default also if a whole line is not a JSON object. The message names
            file and line.
    """
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return
    except OSError as error:
        raise FileError(f"{shown(path)} cannot be read ({shown_error(error)})") from error
    with file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                return
            try:
                row = parse_json(line)
            except ValueError as error:
                on_problem(FileError(line_problem(path, number, f"not JSON ({shown_error(error)})")))
                continue
            if isinstance(row, dict):
                yield number, row
            else:
                on_problem(FileError(line_problem(path, number, f"got {type(row).__name__}, expected an object")))


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Every whole line of a file that :func:`append_rows` wrote, as :func:`numbered_rows` gives them.

    Raises:
        FileError: the file cannot be read, or a whole line is not a JSON object.
    """
    return (row for _, row in numbered_rows(path))


def keep_rows(path: Path, should_keep: Callable[[dict[str, Any]], bool]) -> int:
    """Rewrite a file without the rows that fail a test, all at once.

    Args:
        path: the file; a missing one is left missing.
        should_keep: decides of every row whether it is kept.

    Returns:
        How many rows were dropped.
    """
    if not path.exists():
        return 0
    num_dropped = 0
    with replacing(path) as file:
        for row in read_rows(path):
            if should_keep(row):
                file.write(json_bytes(row))
            else:
                num_dropped += 1
    return num_dropped
