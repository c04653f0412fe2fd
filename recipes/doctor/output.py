"""How the doctor's findings are shown: lines for people, and the same as JSON."""

from __future__ import annotations

import dataclasses
import json
import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TextIO

from rich.console import Console
from rich.text import Text

from recipes.doctor.check import Check
from recipes.doctor.examination import Line
from rsgrpo.errors import RsgrpoError

MAX_COLUMNS = 118
_NAME_COLUMNS = 18
_INDENT = " " * (2 + 8 + 1 + _NAME_COLUMNS + 1)
_COLOURS = {"ok": "green", "warning": "yellow", "problem": "bold red"}


class OutputError(RsgrpoError):
    """The findings cannot be written."""


def check_lines(check: Check) -> list[str]:
    """A check as lines of at most ``MAX_COLUMNS``: mark, name, what was found; then what to do.

    Example:
        ``  ok       shared memory      12.00 GiB free at /dev/shm``
    """
    head = f"  {check.status:<8} {check.name:<{_NAME_COLUMNS}} "
    lines = _wrapped(check.found, head)
    if check.advice:
        lines += _wrapped(check.advice, f"{_INDENT}do: ")
    return lines


def _wrapped(text: str, head: str) -> list[str]:
    return textwrap.wrap(
        " ".join(text.split()),
        MAX_COLUMNS,
        initial_indent=head,
        subsequent_indent=_INDENT,
        break_on_hyphens=False,
    ) or [head.rstrip()]


def verdict(checks: Iterable[Check], seconds: float) -> str:
    """The last line: whether a run would start, and how many problems and warnings there are."""
    counts = Counter(check.status for check in checks)
    total = f"{sum(counts.values())} checks in {seconds:.1f} s"
    warnings = f"{counts['warning']} {'warning' if counts['warning'] == 1 else 'warnings'}"
    if counts["problem"]:
        problems = f"{counts['problem']} {'problem' if counts['problem'] == 1 else 'problems'}"
        return f"{total}: {problems} and {warnings}; a run would not go well before the problems are fixed"
    return f"{total}: no problem, {warnings}; the run can start"


def show(found: Iterable[Line], file: TextIO) -> Iterator[Line]:
    """Print each line as it comes, and pass it on.

    Args:
        found: the lines of :func:`recipes.doctor.examination.examine`.
        file: where to print; colours are used only on a terminal.
    """
    console = Console(file=file, highlight=False, markup=False, soft_wrap=True)
    title = ""
    for line in found:
        if line.title != title:
            title = line.title
            print_plain(console, title)
        first, *rest = check_lines(line.check)
        styled = Text(first)
        styled.stylize(_COLOURS[line.check.status], 2, 10)
        console.print(styled) if console.is_terminal else print_plain(console, first)
        for further in rest:
            print_plain(console, further)
        yield line


def print_plain(console: Console, text: str) -> None:
    """A line without markup, flushed: the next check may take seconds."""
    print(text, file=console.file, flush=True)


def write_json(file: Path, found: Iterable[Line], overrides: list[str], seconds: float) -> None:
    """Write the findings as data.

    Args:
        file: the file to write.
        found: all lines of the examination.
        overrides: the settings that were examined, as given on the command line.
        seconds: how long the examination took, in seconds.

    Raises:
        OutputError: the file cannot be written.
    """
    checks = [{"group": line.title, **dataclasses.asdict(line.check)} for line in found]
    content = {
        "overrides": overrides,
        "seconds": round(seconds, 3),
        "has_problem": any(check["status"] == "problem" for check in checks),
        "checks": checks,
    }
    try:
        file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise OutputError(f"--json {file} cannot be written: {error.strerror or error}; name another file") from error
