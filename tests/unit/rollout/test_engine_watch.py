"""What a worker does when one of its engine's processes dies; plain processes stand in for vLLM's."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from rollout.engine_watch import EngineWatch
from rsgrpo.cluster.ray_cluster import REPOSITORY
from rsgrpo.system.processes import is_alive

TIMEOUT_SECONDS = 60

# EngineCore and one of its workers; then a call that is never answered.
_WORKER = """
import json, os, subprocess, threading
from rollout.engine_watch import EngineWatch
core, child = (subprocess.Popen(["sleep", "600"]).pid for _ in range(2))
EngineWatch([(child, core)])
print(json.dumps([core, child]), flush=True)
threading.Event().wait()
"""


@pytest.fixture
def worker() -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", _WORKER], cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    yield process
    process.kill()
    process.communicate()


@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize("is_other_stopped", [False, True])
def test_a_worker_goes_with_any_process_of_its_engine_and_leaves_none(
    worker: subprocess.Popen[str], victim: int, is_other_stopped: bool
) -> None:
    assert worker.stdout is not None
    processes = json.loads(worker.stdout.readline())
    if is_other_stopped:
        os.kill(processes[1 - victim], signal.SIGSTOP)
    os.kill(processes[victim], signal.SIGKILL)
    _, errors = worker.communicate(timeout=TIMEOUT_SECONDS)
    assert worker.returncode == 1
    assert "vLLM's engine died" in errors
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while any(map(is_alive, processes)):  # a signal takes its time
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_an_engine_inside_the_worker_is_not_watched() -> None:
    # vLLM's worker is this process, and what started it is no part of the engine.
    assert EngineWatch([(os.getpid(), os.getppid())])._process_ids == []
