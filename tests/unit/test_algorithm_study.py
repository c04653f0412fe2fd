"""The study of algorithms goes on from the numbers of finished runs alone."""

from __future__ import annotations

import importlib
import json
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def study(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("algorithm_study")


def test_what_has_a_result_is_not_run_and_differences_are_paired_by_seed(
    study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    accuracies = {"grpo": (0.60, 0.80), "causal_rs_grpo": (0.63, 0.85)}
    for arm, values in accuracies.items():
        for seed, accuracy in enumerate(values):
            result = study.RunResult(
                before=dict.fromkeys(study.SHOWN, 0.5),
                after={**dict.fromkeys(study.SHOWN, 0.9), "accuracy": accuracy},
                steps=[20],
                curves={name: [0.7] for name in study.CURVES},
                rl_seconds=60.0,
            )
            (tmp_path / f"result-{arm}-{seed}.json").write_text(json.dumps(asdict(result)))
    monkeypatch.setattr(study, "_train", lambda *_: pytest.fail("nothing is to be trained"))
    given = ["--folder", str(tmp_path / "runs"), "--results", str(tmp_path), "--seeds", "0", "1", "--arms", *accuracies]
    monkeypatch.setattr(sys, "argv", ["algorithm_study.py", *given])
    study.main()
    table = capsys.readouterr().out.splitlines()
    # Differences of 3 and 5 points: mean 4, standard error 1, t(0.975, 1) = 12.706; p of t = 4: 2 arctan(1/4) / pi.
    assert [cell.strip() for cell in table[3].split("|")][1:8] == [
        "causal_rs_grpo",
        "50.0",
        "74.0 ± 139.8",  # standard error 11 times 12.706
        "+24.0 ± 139.8",
        "0.900 ± 0.000",
        "+4.0 ± 12.7",
        "0.156",
    ]
    assert json.loads((tmp_path / "runs" / "study.json").read_text())["steps"] == 20
