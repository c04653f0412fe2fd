"""How a command begins and ends: one line on standard error and an exit status, whatever happened."""

from __future__ import annotations

import argparse
import atexit
import contextlib
import io
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from rsgrpo.errors import RsgrpoError, shown
from rsgrpo.failures.sentences import MAX_SENTENCE, explain
from rsgrpo.system import interrupts
from rsgrpo.system.home import HomeError, choose_home
from rsgrpo.system.processes import keep_bytecode

TRACEBACK_VARIABLE = "RSGRPO_TRACEBACK"
"""An environment variable: where it is 1, a command that fails shows its traceback as well."""

LOG_NAME = "error.log"

_USAGE_STATUS = 2


class UsageError(RsgrpoError):
    """The command cannot be called like this."""


class CommandParser(argparse.ArgumentParser):
    """Argparse's parser, whose complaints are one sentence.

    An empty text is no path: ``--out "$OUT"`` with nothing in ``OUT`` would mean the current folder.
    """

    def __init__(self, *args: Any, **keywords: Any) -> None:
        super().__init__(*args, **keywords)
        self.register("type", Path, _given_path)

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing the usage and leaving.

        Raises:
            UsageError: always.
        """
        raise UsageError(f"{shown(message, 300)}; {self.prog} --help shows what there is")


def _given_path(text: str) -> Path:
    if not text.strip():
        raise argparse.ArgumentTypeError("the path is empty; name a file or folder, . for the current one")
    return Path(text)


def run_command(
    command: Callable[[], int | None],
    *,
    log_folder: Callable[[], Path | None] = lambda: None,
    error_status: int = 1,
    way_on: str = "call it again",
) -> int:
    """Run a command to its end; every failure becomes one line on standard error.

    Args:
        command: the work; returns the exit status, None for 0.
        log_folder: tells, after a failure that nobody foresaw, where to write ``error.log``; None: the system's folder
            for temporary files.
        error_status: the exit status after an error.
        way_on: what the user can do after Ctrl-C; what :func:`run_program` runs goes on with ``resume=auto``.

    Returns:
        The exit status: what the command returned; ``error_status`` after an error, 2 after a mistake in the call,
        130 after Ctrl-C, 143 after SIGTERM.
    """
    open_standard_streams()
    with contextlib.suppress(HomeError, OSError):  # most commands do without
        choose_home()
    with interrupts.heeded(), interrupts.going_on(way_on):
        return _run(command, log_folder, error_status)


def run_program(command: Callable[[], int | None], *, log_folder: Callable[[], Path | None] = lambda: None) -> NoReturn:
    """Run a command as :func:`run_command` does, and end the process with it, also where other threads hang.

    Args:
        command: the work; what takes long to import is imported in it.
        log_folder: tells where to write ``error.log``, as for :func:`run_command`.
    """
    open_standard_streams()
    with interrupts.heeded():
        status = _run(command, log_folder, 1)
        if interrupts.received():
            # The watch over a slow end goes on; afterwards C++ destructors may wait for what is gone.
            with contextlib.suppress(BaseException):
                atexit._run_exitfuncs()
            for stream in (sys.stdout, sys.stderr):
                with contextlib.suppress(OSError, ValueError):
                    stream.flush()
            os._exit(status)
    sys.exit(status)


def open_standard_streams() -> None:
    """Open what was closed before the start (``>&-``): a file opened later would get its number, and be printed to."""
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)  # gets the number: it is the lowest that is free
            os.set_inheritable(opened, True)
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, mode, encoding="utf-8", errors="replace", closefd=False))  # noqa: SIM115


def _run(command: Callable[[], int | None], log_folder: Callable[[], Path | None], error_status: int) -> int:
    keep_bytecode()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that only knows ASCII is no reason to stop
    try:
        _check_current_folder()
        status = command() or 0
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        return _say(interrupts.sentence(), interrupts.status())
    except BrokenPipeError:
        # Nobody reads on (`… | head`): nothing more may be written, also not when Python flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return error_status
    except Exception as error:
        if interrupts.received():  # what fails on the way out is no news
            return _say(interrupts.sentence(), interrupts.status())
        failure = explain(error)
        sentence = failure.sentence
        if os.environ.get(TRACEBACK_VARIABLE) == "1":
            traceback.print_exc()
        elif not failure.is_foreseen:
            sentence = f"{sentence}; {_kept_traceback(error, log_folder())}"
        return _say(f"error: {sentence}", _USAGE_STATUS if isinstance(error, UsageError) else error_status)


def _check_current_folder() -> None:
    try:
        Path.cwd()
    except OSError as error:
        raise RsgrpoError("the current folder is gone; cd to one that exists, and start again") from error


def _say(sentence: str, status: int) -> int:
    line = sentence.encode("utf-8", "replace").decode("utf-8")
    with contextlib.suppress(OSError, ValueError):  # standard error may be closed
        print(line, file=sys.stderr, flush=True)
    return status


def _kept_traceback(error: Exception, folder: Path | None) -> str:
    """Write the traceback to a file; returns a text that says where it is."""
    text = f"--- {time.strftime('%Y-%m-%d %H:%M:%S')}  {shown(' '.join(sys.argv), MAX_SENTENCE)}\n"
    text += "".join(traceback.format_exception(error))
    places = [folder / LOG_NAME] if folder is not None and folder.is_dir() else []
    with contextlib.suppress(FileNotFoundError):  # no folder for temporary files may be there
        places.append(Path(tempfile.gettempdir()) / f"rsgrpo-{os.getpid()}-{LOG_NAME}")
    for place in places:
        try:
            with place.open("a", encoding="utf-8", errors="replace") as file:
                file.write(text)
        except OSError:
            continue
        return f"this is a mistake in rsgrpo: please report it with {shown(place)}, which holds the traceback"
    return f"this is a mistake in rsgrpo: {TRACEBACK_VARIABLE}=1 shows the traceback, please report it"
