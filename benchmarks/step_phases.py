"""Where a step's time goes, from any run's folder.

Every run writes seconds by phase into ``metrics.jsonl`` (and their means into ``summary.json``); this shows medians
and shares. "Controller" is everything but sampling and the policy's own work: parsing, scopes, rewards, credit,
telemetry and the weight update.

    uv run python benchmarks/step_phases.py runs/quickstart --skip 5
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path

from json_line import report

from rsgrpo.run.logger import METRICS_FILE, MetricRow, read_metrics

CONTROLLER = ("score", "credit", "telemetry", "weights")


def phases(rows: Sequence[MetricRow], skip: int) -> dict[str, object]:
    """Medians and shares over the reinforcement stage's steps.

    Args:
        rows: the rows of ``metrics.jsonl``.
        skip: how many steps at the beginning are left out.
    """
    steps = [row.values for row in rows if row.stage == "rl" and row.step > skip and "time/step" in row.values]
    if not steps:
        raise SystemExit("the run has no steps of reinforcement learning behind the skipped ones")
    names = sorted({name for step in steps for name in step if name.startswith("time/") and name != "time/step"})
    total = sum(step["time/step"] for step in steps)
    share = {name.removeprefix("time/"): sum(step.get(name, 0.0) for step in steps) / total for name in names}
    median = {name.removeprefix("time/"): statistics.median(step.get(name, 0.0) for step in steps) for name in names}
    return {
        "steps": len(steps),
        "step_seconds": round(statistics.median(step["time/step"] for step in steps), 4),
        "phase_seconds": {name: round(value, 4) for name, value in median.items()},
        "share": {name: round(value, 4) for name, value in share.items()},
        "weights_share": round(share.get("weights", 0.0), 4),
        "controller_share": round(sum(share.get(name, 0.0) for name in CONTROLLER), 4),
        "target_of_both": 0.05,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of a run")
    parser.add_argument("--skip", type=int, default=5, help="steps at the beginning that are not counted")
    options = parser.parse_args(arguments)
    report("step_phases", phases(read_metrics(options.folder / METRICS_FILE), options.skip))


if __name__ == "__main__":
    main()
