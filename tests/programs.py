"""Programs that tests start as processes of their own, and how they are interrupted."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
TIMEOUT_SECONDS = 120


def heed_interrupts() -> None:
    """For ``preexec_fn``: what a shell starts in the background ignores Ctrl-C, and so would all that it starts."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)


def start_python(code: str, *arguments: str, stdin: int | None = None) -> subprocess.Popen[str]:
    """A small program from the repository's folder, in the background; it heeds Ctrl-C.

    Args:
        code: Python.
        arguments: ``sys.argv[1:]``.
        stdin: what it reads from, as ``subprocess`` names it; None: what this process reads from.
    """
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=heed_interrupts,
    )
