"""A part of Ray dies, or somebody ends the run: one sentence, and nothing that was started stays."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest

from rsgrpo.cluster.ray_cluster import REPOSITORY
from rsgrpo.system.processes import is_alive, marked_processes
from tests.programs import heed_interrupts

pytestmark = pytest.mark.engine

TIMEOUT_SECONDS = 120


@pytest.mark.parametrize(
    ("killed", "number", "status", "told"),
    [
        ("raylet", signal.SIGKILL, 1, "Ray's raylet process"),
        ("gcs_server", signal.SIGKILL, 1, "Ray's gcs_server process"),
        ("run", signal.SIGTERM, 143, "ended by SIGTERM"),
        ("run", signal.SIGINT, 130, "interrupted"),
        ("run", signal.SIGKILL, -9, "this run's"),
    ],
)
def test_a_death_is_named_and_leaves_nothing(killed: str, number: int, status: int, told: str) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.engine.watched_run"],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=heed_interrupts,
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, process.communicate(timeout=TIMEOUT_SECONDS)[1]
    begun = json.loads(line)
    os.kill(begun["ids"][killed], number)
    # It returns once the guard has closed standard error too.
    _, errors = process.communicate(timeout=TIMEOUT_SECONDS)
    assert process.returncode == status
    sentences = [error_line for error_line in errors.splitlines() if told in error_line]
    assert len(sentences) == 1
    assert "resume=auto" in sentences[0]
    assert len(sentences[0]) < 500
    assert "Traceback" not in errors
    assert marked_processes(begun["mark"]) == []
    assert not any(is_alive(pid) for pid in begun["ids"].values())
