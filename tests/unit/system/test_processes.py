"""What a run starts is found by its mark and ended with it; a guard speaks for a run that is gone without a word."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rsgrpo.system.machine import REPOSITORY
from rsgrpo.system.processes import RUN_VARIABLE, end_marked, give_way, is_alive, marked_processes, new_mark

SLEEP = [sys.executable, "-c", "import sys; sys.stdin.read()"]
GUARDED = """
import os, sys
from rsgrpo.system.processes import Guard
guard = Guard(sys.argv[1])
guard.watch({"raylet": int(sys.argv[2])})
if sys.argv[3] == "dismissed":
    guard.dismiss()
os._exit(1)
"""


def sleeper(mark: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(SLEEP, stdin=subprocess.PIPE, env={**os.environ, RUN_VARIABLE: mark})


def test_marked_processes_are_found_and_ended_and_no_others() -> None:
    mark = new_mark()
    mine, other = sleeper(mark), sleeper(new_mark())
    assert marked_processes(mark) == [mine.pid]
    assert end_marked(mark) == 1
    assert mine.wait() == -9
    assert marked_processes(mark) == []
    assert is_alive(other.pid)
    other.kill()
    other.wait()
    assert not is_alive(other.pid)


@pytest.mark.parametrize(("end", "told"), [("without a word", "Ray's raylet process"), ("dismissed", "")])
def test_a_guard_reports_and_cleans_up_only_if_the_run_itself_did_not(end: str, told: str) -> None:
    mark = new_mark()
    worker, dead = sleeper(mark), subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    run = subprocess.run(
        [sys.executable, "-c", GUARDED, mark, str(dead.pid), end],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 1
    assert (told in run.stderr) and bool(run.stderr) == bool(told)
    assert (marked_processes(mark) == []) == bool(told)
    worker.kill()
    worker.wait()


def test_a_command_and_what_it_starts_keep_their_bytecode(tmp_path: Path) -> None:
    (tmp_path / "first.py").touch()
    (tmp_path / "second.py").touch()
    program = """
import subprocess, sys
from rsgrpo.failures import run_program
def command():
    import first
    subprocess.run([sys.executable, "-c", "import second"], check=True)
run_program(command)
"""
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": f"{tmp_path}:{REPOSITORY}"}
    subprocess.run([sys.executable, "-c", program], env=environment, check=True)
    kept = {file.name.split(".")[0] for file in (tmp_path / "__pycache__").iterdir()}
    assert kept == {"first", "second"}


def test_a_process_and_its_session_give_way():
    process = subprocess.Popen(SLEEP, stdin=subprocess.PIPE, start_new_session=True)
    with process:
        own = os.getpriority(os.PRIO_PROCESS, 0)
        give_way(process.pid, 2)
        assert os.getpriority(os.PRIO_PROCESS, process.pid) == min(own + 2, 19)
        assert os.getpriority(os.PRIO_PROCESS, 0) == own
        session = Path(f"/proc/{process.pid}/autogroup")
        if session.exists():
            assert session.read_text().endswith("nice 2\n")
        process.kill()
    give_way(process.pid, 2)  # it has ended: nothing to do
