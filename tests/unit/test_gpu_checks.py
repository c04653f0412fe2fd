"""The script of GPU checks runs anywhere, also where little is installed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]


def test_gpu_checks_run_on_a_cpu_with_torch_and_transformers_alone():
    script = REPOSITORY / "benchmarks" / "gpu_checks.py"
    command = [sys.executable, str(REPOSITORY / "tests" / "bare_python.py"), str(script), "--shape", "tiny"]
    command += ["--prompt-tokens", "96", "--response-tokens", "8", "--num-responses", "2", "--repeats", "1"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["checks"][-1]["detail"] == "vLLM is not installed"
    checks = {one["check"]: one["result"] for one in result["checks"]}
    for dtype in ("float32", "bfloat16"):
        assert checks[f"gradient shared = unshared, torch.{dtype}, door tiled"] == "ok"
    # 96 + 2 · 8 tokens stand in one row; without sharing there are two
    assert [(row["path"], row["rows"]) for row in result["rows"]] == [("shared", 1), ("unshared", 2)]
