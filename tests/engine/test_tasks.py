"""Benchmarks by name as a user starts them, on a real engine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rsgrpo.run.summary import read_summary
from tests.benchmark_data import write_evisrag, write_haystacks, write_mig_bench, write_milebench
from tests.engine.train_process import finish, start
from tests.tiny_model import build_tiny_model

pytestmark = pytest.mark.engine

SMALL = (
    "stage=eval",
    "eval.sampling.max_response_tokens=8",
    "rollout.max_num_sequences=32",
    "rollout.max_model_tokens=3072",
    "data.max_prompt_tokens=3000",
    "logging.wandb_mode=disabled",
    "logging.tensorboard=false",
)


def _run(folder: Path, *overrides: str) -> str:
    return finish(start(f"run_dir={folder}", *SMALL, *overrides))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_model(tmp_path_factory.mktemp("model"), hidden=128)


def test_benchmarks_are_answered_scored_and_kept(checkpoint: Path, tmp_path: Path) -> None:
    data, run = tmp_path / "data", tmp_path / "run"
    for write in (write_evisrag, write_milebench, write_haystacks, write_mig_bench):
        write(data)
    tasks = "[evisrag/chartqa,milebench/ActionSequence,vhs/single,vhs/positional,mig_bench]"
    command = (f"eval.tasks={tasks}", f"eval.data_root={data}", f"eval.checkpoint={checkpoint}")
    output = _run(run, *command)
    assert "task " in output
    assert "official" in output
    benchmarks = read_summary(run / "summary.json").benchmarks
    assert {name: (benchmark.num_questions, benchmark.num_answered) for name, benchmark in benchmarks.items()} == {
        "evisrag/chartqa": (2, 2),
        "milebench/ActionSequence": (2, 2),
        "vhs/single@2": (2, 2),
        "vhs/single@3": (2, 2),
        "vhs/positional@2": (4, 4),
        "vhs/positional@3": (6, 6),
        "mig_bench": (2, 2),
    }
    journal = run / "benchmarks" / "mig_bench" / "answers.jsonl"
    rows = [json.loads(line) for line in journal.read_text().splitlines()]
    assert all(row["finish_reason"] in ("stop", "length") and not row["failure"] for row in rows)

    # Killed with one answer unwritten: only that one is asked again, and it comes out the same.
    journal.write_text("".join(json.dumps(row) + "\n" for row in rows[:1]))
    output = _run(run, *command, "resume=auto")
    assert "mig_bench: 1/1 answered" in output.replace("Answering mig_bench …\n  ", "mig_bench: ")
    assert "vhs/single@2: all 2 answers are there" in output
    again = [json.loads(line) for line in journal.read_text().splitlines()]
    assert {row["id"]: row["text"] for row in again} == {row["id"]: row["text"] for row in rows}
