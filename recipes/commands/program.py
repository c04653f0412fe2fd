"""``rsgrpo COMMAND …``: find the command and run it. Each is imported when it is called, so that help is quick."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from recipes.commands.table import COMMANDS
from rsgrpo import __version__
from rsgrpo.errors import shown
from rsgrpo.failures.command import UsageError, run_program

_EXAMPLES = """\
examples:
  uv run rsgrpo train                           # the quickstart on a CPU: makes its data and model, ends with a report
  uv run rsgrpo doctor recipe=evisrag_3b        # what would that run need, and is it there?
  uv run rsgrpo lab lint rewards.functions.accuracy:accuracy"""
_USAGE_STATUS = 2


def main() -> NoReturn:
    """The console script ``rsgrpo``."""
    run_program(lambda: run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run one command.

    Args:
        arguments: the command's name and what belongs to it.

    Returns:
        The command's exit status; 2 where none is named.

    Raises:
        UsageError: there is no such command; the message names the nearest.
    """
    if not arguments:
        print(overview(), file=sys.stderr)
        return _USAGE_STATUS
    name, *rest = arguments
    if name in ("-h", "--help"):
        print(overview())
        return 0
    if name == "--version":
        print(f"rsgrpo {__version__}")
        return 0
    if name not in COMMANDS:
        raise UsageError(_no_such_command(name))
    module, _, function = COMMANDS[name].entry.partition(":")
    entry: Callable[[Sequence[str]], int] = getattr(importlib.import_module(module), function)
    return entry(rest)


def overview() -> str:
    """What ``rsgrpo --help`` prints: every command with one line."""
    width = max(map(len, COMMANDS))
    listed = "\n".join(f"  {name:{width}}  {command.summary}" for name, command in COMMANDS.items())
    return (
        "usage: rsgrpo COMMAND [arguments]\n\n"
        "Reward-Scoped GRPO for vision-language models that find and read evidence in many page images.\n\n"
        f"commands:\n{listed}\n\n"
        "options:\n"
        "  --help     this text; `rsgrpo COMMAND --help` explains one command\n"
        "  --version  the version of rsgrpo\n\n"
        f"{_EXAMPLES}"
    )


def _no_such_command(name: str) -> str:
    from rsgrpo.config.refusals import nearest

    if "=" in name:
        return f"{shown(name)!r} is a setting, and no command stands in front of it; write `rsgrpo train {shown(name)}`"
    likely = nearest(name, list(COMMANDS)) or f"; the commands are {', '.join(COMMANDS)}"
    return f"{shown(name)!r} is no command of rsgrpo{likely}"


if __name__ == "__main__":
    main()
