"""Hydra's command line, so that its complaints come as exceptions and not as lines that it prints itself."""

from __future__ import annotations

import io
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from traceback import walk_tb

from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from rsgrpo.config import ConfigError
from rsgrpo.errors import shown
from rsgrpo.failures.command import CommandParser
from rsgrpo.failures.sentences import explain, reason

_VARIABLE = "HYDRA_FULL_ERROR"
_STRAIGHT_TEXT = re.compile(r"""(?<=[=\[,:({])\s*(?:"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')""")
_CURLY_QUOTE = re.compile(r"(?:^|[=\[,:({])\s*([“”„‟‘’‚‛«»])")
"""A curly quote where a text begins; inside of a text it is meant."""


@contextmanager
def hydra_raises() -> Iterator[None]:
    """Let hydra raise what it would print, for the length of the block."""
    before = os.environ.get(_VARIABLE)
    os.environ[_VARIABLE] = "1"
    try:
        yield
    except Exception as error:
        if explain(error).is_foreseen:
            raise
        # Whatever fails here fails on what was typed, or on a settings file: nothing else has been read yet.
        told = "settings files choose each other in a circle" if isinstance(error, RecursionError) else reason(error)
        if isinstance(error, UnicodeDecodeError):
            told = f"{shown(_file_being_read(error))} is no UTF-8 text; save it as UTF-8"
        raise ConfigError(f"hydra cannot compose {shown(' '.join(sys.argv[1:]))!r}: {told}") from error
    finally:
        if before is None:
            del os.environ[_VARIABLE]
        else:
            os.environ[_VARIABLE] = before


def _file_being_read(error: UnicodeDecodeError) -> str:
    """Which file an exception came from: it holds bytes only, the frames that it went through hold the open file."""
    for frame, _ in walk_tb(error.__traceback__):
        for value in frame.f_locals.values():
            if isinstance(value, io.TextIOBase) and isinstance(name := getattr(value, "name", None), str):
                return name
    return "a settings file"


def check_call(arguments: Sequence[str], program: str) -> list[str]:
    """Refuse options that hydra does not have, and combinations that it would refuse with a traceback.

    Args:
        arguments: the arguments behind the program's name.
        program: the program's name, for messages.

    Returns:
        The same arguments with the overrides in front: hydra does not see those that stand behind an option.

    Raises:
        UsageError: an option is not one of hydra's, or does not go with the others; the message names it.
    """
    parser = get_args_parser()
    parser.__class__ = CommandParser
    parser.prog = program
    given = parser.parse_intermixed_args(arguments)
    if given.experimental_rerun:
        parser.error("--experimental-rerun would run what a pickle holds; give the overrides of that run instead")
    modes = {
        "--run": given.run,
        "--cfg": given.cfg is not None,
        "--multirun": given.multirun,
        "--shell-completion": given.shell_completion,
        "--info": given.info is not None,
    }
    chosen = [name for name, is_given in modes.items() if is_given]
    if len(chosen) > 1:
        parser.error(f"{' and '.join(chosen)} do not go together; give one of them")
    if given.resolve and given.cfg is None and not given.help:
        parser.error("--resolve only goes with --cfg")
    for override in given.overrides:
        curly = _CURLY_QUOTE.search(_STRAIGHT_TEXT.sub("", override))
        if curly is not None:
            raise ConfigError(
                f"{shown(override, 200)} has the curly quote {curly[1]}, as word processors write it, which would be a "
                "part of the value; write straight quotes, \" or '"
            )
        if given.multirun and re.search(r"=\s*(range|choice)\(", override) and not _num_runs(override):
            parser.error(f"{shown(override, 120)} sweeps over nothing; give it at least one value")
    options = list(arguments)
    for override in given.overrides:
        # From behind: the value of an option, which stands in front of its own overrides as a rule, may read the same.
        del options[len(options) - 1 - options[::-1].index(override)]
    return [*given.overrides, *options]


def _num_runs(override: str) -> int:
    """How many values a sweep goes through; what cannot be read is left to hydra."""
    try:
        parsed = OverridesParser.create().parse_override(override)
        return sum(1 for _ in parsed.sweep_iterator()) if parsed.is_sweep_override() else 1
    except HydraException:
        return 1
