"""Hydra's command line, so that its complaints come as exceptions and not as lines that it prints itself."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from hydra._internal.utils import get_args_parser

from rsgrpo.config import ConfigError
from rsgrpo.errors import shown
from rsgrpo.failures.command import CommandParser
from rsgrpo.failures.sentences import explain, reason

_VARIABLE = "HYDRA_FULL_ERROR"


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
        raise ConfigError(f"hydra cannot compose {shown(' '.join(sys.argv[1:]))!r}: {told}") from error
    finally:
        if before is None:
            del os.environ[_VARIABLE]
        else:
            os.environ[_VARIABLE] = before


def check_call(arguments: Sequence[str]) -> None:
    """Refuse options that hydra does not have, and combinations that it would refuse with a traceback.

    Args:
        arguments: behind the program's name.

    Raises:
        UsageError: names the option.
    """
    parser = get_args_parser()
    parser.__class__ = CommandParser
    parser.prog = "train.py"
    given = parser.parse_args(arguments)
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
