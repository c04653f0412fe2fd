"""``train.py`` as a process of its own, as a user starts it, and as a power cut ends it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from rsgrpo.cluster.ray_cluster import REPOSITORY
from rsgrpo.system import interrupts
from tests.programs import heed_interrupts

TIMEOUT_SECONDS = 600
_SHOWN_CHARACTERS = 4000


def start(*overrides: str, environment: dict[str, str] | None = None) -> subprocess.Popen[str]:
    """A run with these settings, in the background.

    Args:
        overrides: as on the command line.
        environment: variables beside this process's own.
    """
    return subprocess.Popen(
        [sys.executable, "train.py", *overrides],
        cwd=REPOSITORY,
        env=os.environ | (environment or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        preexec_fn=heed_interrupts,
    )


def finish(process: subprocess.Popen[str], *, exit_status: int = 0) -> str:
    """Wait for the end, check how it ended, and return what was printed."""
    output, _ = process.communicate(timeout=TIMEOUT_SECONDS)
    assert process.returncode == exit_status, output[-_SHOWN_CHARACTERS:]
    return output


def wait_for(process: subprocess.Popen[str], happened: Callable[[], bool]) -> None:
    """Wait until something has happened, while the process runs."""
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while not happened():
        assert process.poll() is None, process.communicate()[0][-_SHOWN_CHARACTERS:]
        assert time.monotonic() < deadline
        time.sleep(0.01)


def kill_once_there(process: subprocess.Popen[str], path: Path) -> None:
    """Kill the process and all its children as soon as ``path`` exists."""
    wait_for(process, path.exists)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def interrupt_once(process: subprocess.Popen[str], happened: Callable[[], bool]) -> float:
    """Ctrl-C as a terminal sends it, to all of the process group; the seconds that the end took."""
    wait_for(process, happened)
    begun = time.monotonic()
    os.killpg(process.pid, signal.SIGINT)
    output = finish(process, exit_status=130)
    assert "Traceback" not in output
    assert [line for line in output.splitlines() if "interrupted" in line] == [interrupts.sentence()]
    return time.monotonic() - begun
