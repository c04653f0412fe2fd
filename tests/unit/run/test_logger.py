"""Numbers reach metrics.jsonl, TensorBoard and wandb, and a resumed run forgets what it did twice."""

from __future__ import annotations

import math
import sys
from contextlib import suppress
from pathlib import Path
from types import ModuleType

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rsgrpo.config import Config, LoggingConfig
from rsgrpo.run.logger import MetricRow, RunLogger, read_metrics
from tests.unit.report_run import make_group, make_sample, run_config


def test_rows_read_back_in_order(tmp_path: Path) -> None:
    with RunLogger(tmp_path, run_config()) as log:
        log.log("sft", 1, {"policy/loss": 2.5})
        log.log("rl", 1, {"reward/accuracy": 0.5, "policy/entropy": math.nan})
    first, second = read_metrics(tmp_path / "metrics.jsonl")
    assert first == MetricRow(stage="sft", step=1, values={"policy/loss": 2.5})
    assert second.values["reward/accuracy"] == 0.5
    assert math.isnan(second.values["policy/entropy"])
    assert "NaN" not in (tmp_path / "metrics.jsonl").read_text()


def test_a_resumed_run_has_the_lines_of_an_uninterrupted_one(tmp_path: Path) -> None:
    straight, resumed = tmp_path / "a", tmp_path / "b"
    with RunLogger(straight, run_config()) as log:
        for step in (1, 2, 3):
            log.log("rl", step, {"x/y": step / 7})
    with RunLogger(resumed, run_config()) as log:
        for step in (1, 2):
            log.log("rl", step, {"x/y": step / 7})
    with RunLogger(resumed, run_config()) as log:
        log.truncate_after("rl", 1)
        for step in (2, 3):
            log.log("rl", step, {"x/y": step / 7})
    assert (straight / "metrics.jsonl").read_bytes() == (resumed / "metrics.jsonl").read_bytes()


def test_tensorboard_shows_each_step_once_after_a_resume(tmp_path: Path) -> None:
    with RunLogger(tmp_path, run_config(tensorboard=True)) as log:
        for step in (1, 2, 3):
            log.log("rl", step, {"reward/accuracy": 0.1 * step})
    with RunLogger(tmp_path, run_config(tensorboard=True)) as log:
        log.truncate_after("rl", 1)
        log.log("rl", 2, {"reward/accuracy": 0.9})
    events = EventAccumulator(str(tmp_path / "tensorboard" / "rl")).Reload()
    # steps 2 and 3 of the first part are purged
    shown = [(event.step, event.value) for event in events.Scalars("reward/accuracy")]
    assert shown == [(1, pytest.approx(0.1)), (2, pytest.approx(0.9))]


def test_wandb_offline_writes_inside_the_run_folder_under_one_id(tmp_path: Path) -> None:
    config = run_config(wandb_mode="offline")
    for step in (1, 2):
        with RunLogger(tmp_path, config) as log:
            log.log("sft", step, {"policy/loss": 1.0})
            log.log("rl", step, {"reward/accuracy": 0.5})
            log.log("after_rl", 0, {"eval/em": 0.5})
            log.log_rollouts(step, [make_group(make_sample(), 0.5, seed=1, size=2)])
    run_id = (tmp_path / "wandb_id").read_text()
    records = list((tmp_path / "wandb").glob("offline-run-*/*.wandb"))
    assert records
    assert {file.name for file in records} == {f"run-{run_id}.wandb"}
    assert b"rollouts/groups" in b"".join(file.read_bytes() for file in records)


def test_wandb_prints_nothing_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "openai", ModuleType("openai"))  # vLLM imports it, and wandb recommends its Weave
    with RunLogger(tmp_path, run_config(wandb_mode="offline")) as log:
        log.log("rl", 1, {"reward/accuracy": 0.5})
    assert "wandb" not in "".join(capfd.readouterr())


def test_disabled_wandb_leaves_nothing(tmp_path: Path) -> None:
    with RunLogger(tmp_path, run_config()) as log:
        log.log("rl", 1, {"reward/accuracy": 0.5})
        log.log_rollouts(1, [make_group(make_sample(), 0.5, seed=1, size=2)])
    assert sorted(file.name for file in tmp_path.iterdir()) == ["metrics.jsonl"]


def test_no_process_of_wandb_outlives_the_logger(tmp_path: Path) -> None:
    # It would be ended with the run's other processes, and wandb's last word would be a traceback.
    def children() -> set[str]:
        found: set[str] = set()
        for task in Path("/proc/self/task").iterdir():
            with suppress(FileNotFoundError):  # a thread that ended since
                found |= set((task / "children").read_text().split())
        return found

    before = children()
    config = Config(stage="sft", logging=LoggingConfig(wandb_mode="offline", tensorboard=False))
    for _ in range(2):  # a resumed run begins anew in the same process
        with RunLogger(tmp_path, config, None) as logger:
            logger.log("sft", 1, {"policy/loss": 1.0})
            assert children() - before
        assert not children() - before
