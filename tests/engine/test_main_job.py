"""The main job as a user starts it: all stages on real engines, killed in the middle, resumed to the bit."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from rsgrpo.run.folder import read_settings
from rsgrpo.run.logger import METRICS_FILE, read_metrics
from rsgrpo.run.summary import read_summary
from tests.engine.train_process import finish, interrupt_once, kill_once_there, start
from tests.pickles import pickled_files

pytestmark = pytest.mark.engine

SMALL = (
    "quickstart.num_sft_samples=96",
    "quickstart.num_rl_samples=32",
    "quickstart.num_test_samples=12",
    "sft.max_steps=4",
    "sft.samples_per_step=8",
    "sft.save_every_steps=2",
    "rl.max_steps=4",
    "rl.prompts_per_step=4",
    "rl.samples_per_prompt=3",
    "rl.save_every_steps=2",
    "rl.updates_per_batch=2",
    "rollout.sampling.max_response_tokens=24",
    "rollout.sampling.temperature=1.2",  # engine and trainer must agree at any
    "eval.sampling.max_response_tokens=24",
    "logging.wandb_mode=disabled",
)


# A GPU, as far as Ray knows: the CPU build of vLLM, which these tests need, leaves it alone.
ONE_GPU = {"RAY_OVERRIDE_RESOURCES": '{"GPU": 1}'}


def _start(folder: Path, *overrides: str, environment: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
    return start(
        f"run_dir={folder}",
        *SMALL,
        *overrides,
        environment={"TORCH_EXTENSIONS_DIR": str(folder.parent / "extensions"), **(environment or {})},
    )


def _metrics(folder: Path) -> list[dict[str, object]]:
    """All rows without what depends on the clock."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [
        {key: value for key, value in row.items() if "seconds" not in key and not key.startswith("time/")}
        for row in rows
    ]


def _num_rl_steps(folder: Path) -> int:
    return max((row.step for row in read_metrics(folder / METRICS_FILE) if row.stage == "rl"), default=0)


def test_whole_job_then_killed_and_resumed_equals_uninterrupted(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    output = finish(_start(whole, environment=ONE_GPU))
    assert "this machine has 1 GPU, the installed vLLM is its CPU build: running on the CPU" in " ".join(output.split())
    assert "`uv run --no-group cpu --extra gpu train.py` uses the GPU" in output
    decided = read_settings(whole / "config.yaml").cluster
    assert (decided.device, decided.topology) == ("cpu", "disaggregated")
    (attention,) = json.loads((whole / "attention.json").read_text())  # of the one rank
    assert (attention["setting"], attention["device"]) == ("sdpa", "cpu")
    passed_over = {entry["setting"]: entry["reason"] for entry in attention["passed_over"]}
    assert passed_over == {"flash": "the device is cpu", "flex": "the device is cpu"}
    summary = read_summary(whole / "summary.json")
    assert set(summary.evaluations) == {"before_sft", "after_sft", "after_rl"}
    assert summary.rl is not None
    assert summary.rl.num_steps == 4
    assert summary.rl.logprob_gap_max is not None
    assert summary.rl.logprob_gap_max < 1e-4
    assert "</html>" in (whole / "report.html").read_text()
    assert len(list((whole / "checkpoints").rglob("*.safetensors"))) == 3 * len(list((whole / "checkpoints").iterdir()))
    assert pickled_files(whole) == []
    assert (whole / "models" / "rl" / "model.safetensors").exists()
    assert not (tmp_path / "extensions").exists()  # nothing was compiled: no compiler is needed, no lock can stay

    kill_once_there(_start(killed), killed / "checkpoints" / "rl-000002")

    # The checkpoint that it just wrote loses half of a file with the node: the one before it, or the stage's start.
    newest = max((killed / "checkpoints").glob("rl-*"))
    share = newest / "policy" / "optimizer-00000.safetensors"
    content = share.read_bytes()
    share.write_bytes(content[: len(content) // 2])
    if newest.name == "rl-000002":
        refused = finish(_start(killed, "resume=auto"), exit_status=1)
        assert f"rl-000002: policy/{share.name} has {len(content) // 2} bytes instead of {len(content)}" in refused
        share.write_bytes(content)

    # Ctrl-C behind the checkpoint that it goes on from, in the middle of a step.
    going_on = _start(killed, "resume=auto")
    newest_step = int(max((killed / "checkpoints").glob("rl-*")).name[-6:])
    if newest_step < 4:
        seconds = interrupt_once(going_on, lambda: _num_rl_steps(killed) > newest_step)
        assert seconds < 20
        killed = killed.rename(tmp_path / "moved")  # what it goes on from knows no absolute path
        going_on = _start(killed, "resume=auto")
    assert "going on from rl-00000" in finish(going_on)
    weights = [folder / "models" / "rl" / "model.safetensors" for folder in (whole, killed)]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    assert _metrics(whole) == _metrics(killed)
    # The killed process's time up to its checkpoint counts too.
    assert read_summary(killed / "summary.json").stage_seconds.keys() == summary.stage_seconds.keys()
