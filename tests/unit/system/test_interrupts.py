"""Ctrl-C and SIGTERM end every program in time, with the right status, one line, and nothing left behind."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.programs import REPOSITORY, TIMEOUT_SECONDS, start_python

GRACE = 0.5  # in place of the 15 seconds, where the end is forced
PROGRAM = f"""
import ctypes, os, signal, sys, threading, time
from rsgrpo.system import interrupts
from rsgrpo.failures import run_program
interrupts.GRACE_SECONDS = {GRACE}
libc = ctypes.CDLL(None)

def ready():
    print("ready")

def hang_in_c():
    lock = ctypes.create_string_buffer(64)
    libc.pthread_mutex_lock(lock)
    ready()
    libc.pthread_mutex_lock(lock)  # its own lock once more: no signal wakes it

def wait():
    ready()
    threading.Event().wait()

def fail_on_the_way_out():
    try:
        wait()
    finally:
        raise ValueError("a worker is gone")

def swallow():
    while True:
        try:
            ready()
            time.sleep(60)
        except KeyboardInterrupt:
            pass

def close_slowly():
    try:
        wait()
    finally:
        time.sleep(60)

def leave_a_file():
    interrupts.at_forced_end(lambda: open(sys.argv[2], "w").close())
    hang_in_c()

def hanging_cleaning():
    interrupts._CLEANING_SECONDS = 0.5
    interrupts.at_forced_end(threading.Event().wait)
    hang_in_c()

def fork():
    child = os.fork()
    if not child:
        signal.pause()
    time.sleep(0.2)
    os.kill(child, signal.SIGTERM)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGTERM
    time.sleep(0.2)
    assert not interrupts.received()

def own_reason():
    try:
        interrupts.interrupt_main_thread()
        time.sleep(60)
    except KeyboardInterrupt:
        assert not interrupts.received()
    time.sleep(interrupts.GRACE_SECONDS + 1)

def ignored():
    signal.raise_signal(signal.SIGINT)
    ready()

if sys.argv[1] == "ignored":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
run_program(globals()[sys.argv[1]])
"""


def waiting(name: str, argument: str = "", grace: float = GRACE) -> subprocess.Popen[str]:
    """A program that has begun to wait: its main thread sleeps, S in ``man 5 proc``."""
    process = start_python(PROGRAM.replace(f"= {GRACE}", f"= {grace}"), name, argument)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n", process.communicate(timeout=TIMEOUT_SECONDS)[1]
    while Path(f"/proc/{process.pid}/stat").read_text().rpartition(") ")[2][0] != "S":
        time.sleep(0.01)
    return process


def interrupted(name: str, number: signal.Signals, argument: str = "", grace: float = GRACE) -> tuple[int, str, float]:
    """Start, signal, and say how it ended: status, standard error, seconds after the signal."""
    process = waiting(name, argument, grace)
    begun = time.monotonic()
    process.send_signal(number)
    _, errors = process.communicate(timeout=TIMEOUT_SECONDS)
    return process.returncode, errors, time.monotonic() - begun


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("name", ["wait", "fail_on_the_way_out", "swallow", "close_slowly", "hang_in_c"])
def test_whatever_the_main_thread_does_the_end_comes_in_time_and_in_one_line(
    name: str, number: signal.Signals, status: int
) -> None:
    is_forced = name in ("swallow", "close_slowly", "hang_in_c")
    # An orderly end comes before its time is up, on a busy machine too; a forced one after it.
    grace = GRACE if is_forced else 60.0
    found, errors, seconds = interrupted(name, number, grace=grace)
    assert found == status
    assert len(errors.splitlines()) == 1
    assert errors.startswith("ended by SIGTERM; " if number == signal.SIGTERM else "interrupted; ")
    assert "resume=auto" in errors
    assert (seconds > 0.9 * grace) == is_forced
    assert seconds < 30  # of the 60 that a program would sleep


def test_a_second_signal_ends_at_once_with_the_status_of_the_first() -> None:
    process = waiting("close_slowly", grace=600.0)
    process.send_signal(signal.SIGTERM)
    time.sleep(1.0)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert (process.returncode, len(errors.splitlines())) == (143, 1)


def test_one_key_that_arrives_twice_is_no_second_one() -> None:
    # The terminal tells `uv run` and what it started, and `uv run` passes it on.
    process = waiting("hang_in_c", grace=1.0)
    begun = time.monotonic()
    process.send_signal(signal.SIGINT)
    time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=TIMEOUT_SECONDS)
    assert process.returncode == 130
    assert time.monotonic() - begun > 0.9


def test_a_forced_end_cleans_up_first(tmp_path) -> None:
    assert interrupted("leave_a_file", signal.SIGINT, argument=str(tmp_path / "cleaned"))[0] == 130
    assert (tmp_path / "cleaned").exists()


def test_a_cleaning_that_hangs_does_not_hold_up_the_end() -> None:
    # The cleaning would wait for ever.
    assert interrupted("hanging_cleaning", signal.SIGTERM)[0] == 143


@pytest.mark.parametrize("name", ["fork", "own_reason", "ignored"])
def test_what_is_not_meant_for_the_run_does_not_end_it(name: str) -> None:
    process = start_python(PROGRAM, name)
    _, errors = process.communicate(timeout=TIMEOUT_SECONDS)
    assert (process.returncode, errors) == (0, "")


def test_nothing_that_takes_long_is_imported_before_signals_are_heeded() -> None:
    code = "import sys, train; print([name for name in ('hydra', 'omegaconf', 'torch', 'ray') if name in sys.modules])"
    ended = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert ended.stdout == "[]\n"
