"""A run's clock goes on where the last process left it."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from rsgrpo.io.timers import StageClock


@pytest.fixture
def ticking(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, in seconds, that the clock under test reads."""
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    return now


def test_a_second_process_adds_to_the_first(tmp_path: Path, ticking: list[float]) -> None:
    file = tmp_path / "seconds.json"
    first = StageClock(file)
    with first.stage("sft"):
        ticking[0] += 5.0
    second = StageClock(file)
    with second.stage("sft"):
        ticking[0] += 2.0
    with second.stage("rl"):
        ticking[0] += 1.0
    assert second.seconds == {"sft": 7.0, "rl": 1.0}


def test_a_killed_process_counts_up_to_its_last_checkpoint(tmp_path: Path, ticking: list[float]) -> None:
    file = tmp_path / "seconds.json"
    killed = StageClock(file)
    stage = killed.stage("rl")
    stage.__enter__()
    ticking[0] += 3.0
    killed.keep()
    ticking[0] += 10.0  # lost with the process
    assert StageClock(file).seconds == {"rl": 3.0}
