"""Going on from a run folder in which something is damaged: what is used, what is said, what is forgotten."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytest

from recipes.evaluation.evaluate import read_evaluation
from recipes.rs_grpo import Batch, RsGrpoState
from recipes.setup.job import Job
from recipes.setup.preparation import Prepared
from recipes.sft import SftState
from rsgrpo.cluster.ray_cluster import Cluster
from rsgrpo.config import Config, LoggingConfig
from rsgrpo.io.atomic_files import FileError, write_json
from rsgrpo.io.manifest import write_manifest
from rsgrpo.io.record_codec import RecordError
from rsgrpo.run.folder import RunFolder
from rsgrpo.run.logger import RunLogger, read_metrics
from rsgrpo.run.progress import Progress
from rsgrpo.trainer.checkpoint import CheckpointError, write_folder
from rsgrpo.trainer.policy import Policy
from tests.pickles import pickled_files
from tests.unit.report_run import evaluation
from tests.unit.strategies import simple_group


class FakePolicy:
    """Writes a file, and remembers which folder it was set to."""

    loaded: Path | None = None

    def save_checkpoint(self, folder: Path) -> None:
        def write(partial: Path) -> None:
            (partial / "weights.safetensors").write_bytes(b"weights" * 1000)
            write_manifest(partial)

        write_folder(folder, write)

    def load_checkpoint(self, folder: Path) -> None:
        self.loaded = folder


class Run:
    """A job that has trained two steps and kept a checkpoint of each."""

    def __init__(self, root: Path) -> None:
        self.folder = RunFolder(root=root)
        self.screen = io.StringIO()
        config = Config(name="made", stage="sft", logging=LoggingConfig(wandb_mode="disabled", tensorboard=False))
        progress = Progress(True)
        progress._console.file = self.screen
        self.job = Job(config, self.folder, cast(Prepared, None), cast(Cluster, None), progress)
        self.policy = FakePolicy()
        self.job.policy = cast(Policy, self.policy)
        self.job.logger = RunLogger(root, config)

    def train(self, steps: Sequence[int] = (1, 2)) -> None:
        for step in steps:
            self.job.logger.log("rl", step, {"policy/loss": 1.0 / step})
            self.job.save("rl", step, state(step))

    def file(self, step: int, name: str) -> Path:
        return self.folder.checkpoints / f"rl-{step:06d}" / name

    def logged(self) -> list[int]:
        return [row.step for row in read_metrics(self.folder.root / "metrics.jsonl")]


def state(step: int) -> RsGrpoState:
    group = simple_group("q1", "a", [1.0, 0.0], [2, 3])
    ahead = Batch(groups=(group,), metrics={"engine/gap": float("nan")}, seconds={"generate": 0.5})
    return RsGrpoState(
        step=step, position=7, leftover=[group], acceptance_rate=0.1 + 0.2, prefetched=ahead, kl_coefficient=0.05
    )


@pytest.fixture
def run(tmp_path: Path) -> Run:
    made = Run(tmp_path)
    made.train()
    return made


def test_the_driver_goes_on_where_it_was(run: Run) -> None:
    restored = run.job.restore("rl", RsGrpoState)
    assert restored is not None and restored.prefetched is not None
    assert (restored.step, restored.position, restored.acceptance_rate, restored.kl_coefficient) == (
        2,
        7,
        0.1 + 0.2,
        0.05,
    )
    assert [group.sample_id for group in (*restored.leftover, *restored.prefetched.groups)] == ["q1", "q1"]
    before = state(2).leftover[0].rollouts
    assert [rollout.rewards for rollout in restored.leftover[0].rollouts] == [rollout.rewards for rollout in before]
    assert run.policy.loaded == run.file(2, "policy")
    assert run.screen.getvalue() == "  going on from rl-000002\n"


def test_a_state_keeps_what_training_passed_over_by_reason(tmp_path: Path) -> None:
    run, before = Run(tmp_path), SftState(step=3)
    before.skipped.add("image", "a.png is cut")
    run.job.save("sft", 3, before)
    assert run.job.restore("sft", SftState) == before


@pytest.mark.parametrize("name", ["driver.json", "driver.safetensors", "manifest.json", "policy/weights.safetensors"])
@pytest.mark.parametrize("num_bytes", [0, 40])
def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_it_goes_on(
    run: Run, name: str, num_bytes: int
) -> None:
    file = run.file(2, name)
    file.write_bytes(file.read_bytes()[:num_bytes])
    restored = run.job.restore("rl", RsGrpoState)
    assert restored is not None and restored.step == 1
    assert run.policy.loaded == run.file(1, "policy")
    first, second, third = run.screen.getvalue().splitlines()
    assert first.startswith(f"  rl-000002: {name} ")
    assert second == "  going on from rl-000001"
    assert third == "  what was learned in steps 2 to 2 is lost: they are trained again"
    assert run.logged() == [1]  # as an uninterrupted run would read at this point


def test_going_back_to_an_older_checkpoint_removes_the_newer_unusable_one(run: Run) -> None:
    run.train([3])
    run.file(3, "driver.json").unlink()
    run.job.restore("rl", RsGrpoState)
    run.job.save("rl", 2, state(2))
    assert [path.name for path in sorted(run.folder.checkpoints.iterdir())] == ["rl-000002"]


def test_without_a_usable_checkpoint_nothing_is_forgotten(run: Run) -> None:
    for step in (1, 2):
        run.file(step, "driver.json").write_bytes(b"")
    with pytest.raises(
        CheckpointError, match=r"no checkpoint of the stage 'rl' can be used \(rl-000002: driver.json is"
    ):
        run.job.restore("rl", RsGrpoState)
    assert run.logged() == [1, 2]
    assert run.policy.loaded is None


def test_a_checkpoint_of_another_stage_under_this_name_is_refused(run: Run) -> None:
    run.job.save("rl", 3, SftState(step=3))
    with pytest.raises(RecordError, match="holds 'SftState' where 'RsGrpoState' is expected"):
        run.job.restore("rl", RsGrpoState)
    assert run.policy.loaded is None


def test_a_cut_last_line_is_dropped_and_counted(run: Run) -> None:
    with (run.folder.root / "metrics.jsonl").open("a") as file:
        file.write('{"stage": "rl", "st')
    run.job.restore("rl", RsGrpoState)
    assert "dropped 1 cut line of metrics.jsonl (its last 19 bytes)" in run.screen.getvalue()
    assert run.logged() == [1, 2]


def test_a_foreign_line_stops_the_run_before_it_trains(run: Run) -> None:
    path = run.folder.root / "metrics.jsonl"
    path.write_text('{"id": "q1", "answer": "7"}\n' + path.read_text())
    with pytest.raises(FileError, match=r"metrics\.jsonl, line 1: got stage None and step None"):
        run.job.restore("rl", RsGrpoState)


def test_nothing_that_a_job_writes_is_a_pickle(run: Run) -> None:
    assert len(list(run.folder.root.rglob("*.safetensors"))) == 4
    assert pickled_files(run.folder.root) == []


def _scored(run: Run, point: str, metrics: str | None = None) -> Path:
    folder = run.folder.evaluation(point)
    folder.mkdir(parents=True)
    write_json(folder / "rewards.json", {"accuracy": 0.5})
    plain: dict[str, Any] = {name: getattr(evaluation(0.5), name) for name in evaluation(0.5).__slots__}
    (folder / "metrics.json").write_text(json.dumps(plain) if metrics is None else metrics)
    return folder


@pytest.mark.parametrize("content", ["", "\0\0\0", "[]", "{}", '{"em": 1', '{"em": "high"}'])
def test_an_evaluation_with_damaged_metrics_is_scored_again(run: Run, content: str) -> None:
    folder = _scored(run, "after_sft", content)
    with pytest.raises(FileError, match=r"metrics\.json"):
        read_evaluation(folder)
    assert not run.job._is_scored("after_sft")
    assert "after_sft: scored again" in run.screen.getvalue()
    assert not folder.exists()


def test_a_whole_evaluation_is_not_scored_again(run: Run) -> None:
    _scored(run, "after_sft")
    assert run.job._is_scored("after_sft")
    assert not run.job._is_scored("after_rl")
    assert run.job._evaluations().keys() == {"after_sft"}


def test_an_evaluation_is_not_scored_again_with_the_weights_of_a_later_stage(run: Run) -> None:
    folder = _scored(run, "after_sft", "")
    run.folder.model("rl").mkdir(parents=True)
    assert run.job._is_scored("after_sft")
    assert "after_sft is left out: the engines hold models/rl" in run.screen.getvalue()
    assert folder.exists()
    assert run.job._evaluations() == {}
