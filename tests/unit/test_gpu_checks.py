"""The script of GPU checks runs anywhere, also where little is installed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]


def run(stage: str) -> dict[str, Any]:
    """A stage's JSON line, with torch and transformers alone."""
    script = REPOSITORY / "benchmarks" / "gpu_checks.py"
    command = [sys.executable, str(REPOSITORY / "tests" / "bare_python.py"), str(script), stage, "--shape", "tiny"]
    command += ["--prompt-tokens", "96", "--response-tokens", "8", "--num-responses", "2", "--repeats", "1"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY)
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_the_trainers_stage_runs_on_a_cpu_with_torch_and_transformers_alone():
    result = run("trainer")
    checks = {check["check"]: check["result"] for check in result["checks"]}
    for dtype in ("float32", "bfloat16"):
        assert checks[f"gradient shared = unshared, torch.{dtype}, backend tiled"] == "ok"
    # 96 + 2 · 8 tokens stand in one row; without sharing there are two
    assert [(row["path"], row["rows"]) for row in result["rows"]] == [("shared", 1), ("unshared", 2)]
    # On a busy machine the product may be timed slower than it is, so that nothing bounds the share from above.
    assert all(row["share of the matrix product"] > 0 for row in result["rows"])


def test_a_stage_says_what_it_lacks():
    (check,) = run("deepspeed")["checks"]
    assert (check["result"], check["detail"]) == ("-", "DeepSpeed is not installed")
