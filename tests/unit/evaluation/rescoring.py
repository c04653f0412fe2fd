"""Small data sets of four benchmarks, and predictions for them."""

from __future__ import annotations

import contextlib
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rsgrpo.evaluation.rescore.__main__ import main

GOOD: list[dict[str, Any]] = [{"qid": index, "pred": f"<answer>word{index}</answer>"} for index in range(4)]


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What the command did: its status, what it printed, ``scores.json``'s first run."""

    status: int
    out: str
    err: str
    run: dict[str, Any]

    def value(self, mode: str, metric: str) -> float:
        return float(self.run["modes"][mode]["metrics"][metric]["value"])

    def anomalies(self, mode: str) -> dict[str, int]:
        return dict(self.run["modes"][mode]["anomalies"])


def lines(rows: list[Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def evisrag(folder: Path) -> Path:
    """Four answerable questions with the ids 0 to 3, whose answers are word0 to word3."""
    data = folder / "EVisRAG-Test-ChartQA"
    data.mkdir(exist_ok=True)
    rows = [
        {"qid": index, "query": f"q{index}", "answer": [f"word{index}"], "image": ["x.png"], "is_sufficient": True}
        for index in range(4)
    ]
    (data / "top3_test.jsonl").write_text(lines(rows))
    return data


def haystack(folder: Path) -> Path:
    """Four questions, all of them yes."""
    file = folder / "visual_haystack_2.json"
    turns = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "yes"}]
    file.write_text(json.dumps([{"conversations": turns, "pos_image": ["a.jpg"], "neg_image": ["b.jpg"]}] * 4))
    return file


def rescored(benchmark: str, data: Path, predictions: Path, *more: str) -> Outcome:
    folder = data.parent / "out"
    scores = folder / "scores.json"
    scores.unlink(missing_ok=True)
    out, err = io.StringIO(), io.StringIO()
    arguments = ["--benchmark", benchmark, "--data", str(data), "--predictions", str(predictions), "--out", str(folder)]
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main([*arguments, *more])
    run = json.loads(scores.read_text(encoding="utf-8"))["runs"][0] if status == 0 else {}
    return Outcome(status=status, out=out.getvalue(), err=err.getvalue(), run=run)
