"""``rsgrpo distill-relevance --samples`` on a real engine: what was sampled is kept and not asked for again."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from recipes.distilling.asking import SAMPLED_STAGE
from recipes.distilling.distill_command import main
from rsgrpo.run.recorder import read_groups, record_sampled
from rsgrpo.types import ScoredRollout
from tests.benchmark_data import write_evisrag
from tests.programs import REPOSITORY
from tests.tiny_model import build_tiny_model
from tests.unit.report_run import make_group, make_run, make_sample

pytestmark = pytest.mark.engine

SMALL = ("rollout.sampling.max_response_tokens=8", "rollout.max_num_sequences=32", "rollout.max_model_tokens=3072")


def test_only_what_was_not_answered_before_is_asked_and_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path / "run", num_steps=10)
    shutil.copytree(build_tiny_model(tmp_path / "model", hidden=128), run / "models" / "rl")
    write_evisrag(tmp_path)  # two questions, q0 and q1
    asked = (str(run), "--questions", str(tmp_path / "EVisRAG-Test-ChartQA"), "--samples", "3", *SMALL)
    file = run / "distilled" / "rollouts.jsonl"
    answered = make_group(make_sample("q0"), 1.0, 0)
    scored = [ScoredRollout(rollout=one.rollout, rewards=one.rewards) for one in answered.rollouts]
    record_sampled(file, SAMPLED_STAGE, [answered.with_rollouts(scored)])
    before = file.read_bytes()
    command = [sys.executable, "-m", "recipes.commands.program", "distill-relevance", *asked]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=600, check=False)
    # Weights drawn at random answer nothing; all that they said was kept, and it is told why no pair came of it.
    assert done.returncode == 1 and "none of 2 questions gives a pair" in done.stderr, done.stderr
    assert "1 of 2 questions were answered before" in done.stdout
    assert file.read_bytes().startswith(before)
    groups = {group.sample_id: group for group in read_groups(file)}
    assert len({rollout.text for rollout in groups["q1"].rollouts}) == 3  # drawn, not repeated
    assert json.loads((run / "distilled" / "counts.json").read_text())["responses"] == 8 + 3

    assert main([*asked, "seed=5"]) == 1
    assert "sampled with another seed" in capsys.readouterr().err
