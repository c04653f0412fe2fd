"""How a command begins and ends: one line on standard error and an exit status, whatever happened."""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import NoReturn

from rsgrpo.errors import RsgrpoError, shown
from rsgrpo.failures.sentences import MAX_SENTENCE, explain

TRACEBACK_VARIABLE = "RSGRPO_TRACEBACK"
"""Set to 1, a command that fails shows its traceback as well."""

LOG_NAME = "error.log"

_USAGE_STATUS = 2
_INTERRUPTED_STATUS = 130  # as a shell gives it for Ctrl-C
_ENDED_STATUS = 143
_ENDED = "ended by SIGTERM; the same command with resume=auto goes on from the newest checkpoint"


class UsageError(RsgrpoError):
    """The command cannot be called like this."""


class CommandParser(argparse.ArgumentParser):
    """Argparse's parser, whose complaints are one sentence."""

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing the usage and leaving.

        Raises:
            UsageError: always.
        """
        raise UsageError(f"{shown(message, 300)}; {self.prog} --help shows what there is")


def run_command(
    command: Callable[[], int | None], *, log_folder: Callable[[], Path | None] = lambda: None, error_status: int = 1
) -> int:
    """Run a command to its end; every failure becomes one line on standard error.

    Args:
        command: the work; returns the exit status, None for 0.
        log_folder: asked after a failure that nobody foresaw: where to write ``error.log``; None: the system's folder
            for temporary files.
        error_status: exit status after an error.

    Returns:
        The exit status: what the command returned; ``error_status`` after an error, 2 after a mistake in the call,
        130 after Ctrl-C, 143 after SIGTERM.
    """
    requests: list[int] = []
    before = _catch_termination(requests)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that only knows ASCII is no reason to stop
    try:
        _check_current_folder()
        status = command() or 0
        if sys.stdout is not None:  # None: it was closed before the start
            sys.stdout.flush()
        return status
    except KeyboardInterrupt as error:
        if requests:
            return _say(_ENDED, _ENDED_STATUS)
        return _say(explain(error).sentence, _INTERRUPTED_STATUS)
    except BrokenPipeError:
        # Nobody reads on (`… | head`): nothing more may be written, also not when Python flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return error_status
    except Exception as error:
        failure = explain(error)
        sentence = failure.sentence
        if os.environ.get(TRACEBACK_VARIABLE) == "1":
            traceback.print_exc()
        elif not failure.is_foreseen:
            sentence = f"{sentence}; {_kept_traceback(error, log_folder())}"
        return _say(f"error: {sentence}", _USAGE_STATUS if isinstance(error, UsageError) else error_status)
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)


def _check_current_folder() -> None:
    try:
        Path.cwd()
    except OSError as error:
        raise RsgrpoError("the current folder is gone; cd to one that exists, and start again") from error


def _catch_termination(
    requests: list[int],
) -> signal.Handlers | Callable[[int, FrameType | None], object] | int | None:
    """Let SIGTERM end the work as Ctrl-C does, and note it: Ray raises a plain KeyboardInterrupt for either."""
    if threading.current_thread() is not threading.main_thread():
        return None

    def end(number: int, frame: FrameType | None) -> NoReturn:
        requests.append(number)
        raise KeyboardInterrupt

    return signal.signal(signal.SIGTERM, end)


def _say(sentence: str, status: int) -> int:
    line = sentence.encode("utf-8", "replace").decode("utf-8")
    with contextlib.suppress(OSError, ValueError):  # standard error may be closed
        print(line, file=sys.stderr, flush=True)
    return status


def _kept_traceback(error: Exception, folder: Path | None) -> str:
    """Write the traceback down; says where it is."""
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
