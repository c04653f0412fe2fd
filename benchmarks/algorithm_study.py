"""Algorithms side by side on the quickstart task: same start, same seeds, same budget.

    uv run python benchmarks/algorithm_study.py --folder runs/study --seeds 0 1 2 3 4 --arms rs_grpo grpo

For each seed one supervised model is trained; every arm starts reinforcement learning from it, on the same
questions, with the same number of steps, groups and samples, and is scored on the same held-out test
questions. ``no_observe_and_evidence`` alone starts from a model of its own, taught on the same trajectories
without these sections. ``--parallel 2`` gives each of two runs at a time half of the cores. What is finished is
not run again, so an interrupted study goes on with the same command. Writes ``study.json``, ``study.png`` and
``study.html`` into the folder and prints a Markdown table.

The numbers of each finished run are one file in ``--results``, by default in the folder. Elsewhere these files are
enough to go on: what has one is not run. All arms of a seed should run on one machine, from one supervised model.
"""

from __future__ import annotations

import argparse
import base64
import concurrent.futures
import json
import os
import queue
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from rsgrpo.failures.command import run_command
from rsgrpo.io.atomic_files import write_json

REPOSITORY = Path(__file__).resolve().parent.parent
CONFIDENCE = 0.95
SHARED_START = "shared"
OWN_START = "no_observe_and_evidence"

EVIDENCE_BY_LINE = "rewards.evidence.scope={start: '', stop: '', evidence_line: true}"
LINE_PER_IMAGE = (
    "rewards.lines.function=rewards.functions.format:line_per_image",
    "rewards.lines.scope={start: '', stop: '', evidence_line: true}",
)

PAPER = ("algorithm=rs_grpo",)

ARMS: dict[str, tuple[str, ...]] = {
    "rs_grpo": PAPER,
    "grpo": ("algorithm=grpo",),
    "causal_rs_grpo": ("algorithm=causal_rs_grpo",),
    "causal_no_evidence_reward": ("algorithm=causal_rs_grpo", "rewards.evidence.weight=0"),
    "causal_line_per_image": ("algorithm=causal_rs_grpo", "rewards.evidence.weight=0", *LINE_PER_IMAGE),
    "causal_per_image_evidence": (
        "algorithm=causal_rs_grpo",
        "rewards.evidence.function=rewards.functions.evidence:evidence_per_image",
        EVIDENCE_BY_LINE,
    ),
    "consensus": (
        "algorithm=causal_rs_grpo",
        "rewards.evidence.function=rewards.functions.consensus:consensus_evidence",
        EVIDENCE_BY_LINE,
        *LINE_PER_IMAGE,
    ),
    "counterfactual": (
        "algorithm=causal_rs_grpo",
        "rewards.evidence.function=rewards.functions.counterfactual:counterfactual_evidence",
        EVIDENCE_BY_LINE,
        *LINE_PER_IMAGE,
    ),
    "dr_grpo": ("algorithm=dr_grpo",),
    "rloo": ("algorithm=rloo",),
    "asynchronous": (*PAPER, "rl.max_staleness_steps=1"),
    "no_evidence_reward": (*PAPER, "rewards.evidence.weight=0"),
    "per_image_evidence": (
        *PAPER,
        "+rewards.lines={function: 'rewards.functions.evidence:evidence_per_image', "
        "scope: {evidence_line: true}, weight: 3}",
        "rewards.evidence.weight=0",
    ),
    OWN_START: (
        *PAPER,
        "data.sft_sections=[think,answer]",
        "rewards.format.function=rewards.functions.format:sections",
        "+rewards.format.kwargs={names: [think, answer]}",
        "rewards.overlong.kwargs.min_response_tokens=8",
        "~rewards.evidence",
        "~rewards.observe_citation",
    ),
}
"""What each arm changes of the quickstart recipe."""

SHOWN = ("accuracy", "answerable_accuracy", "unanswerable_accuracy", "evidence_f1", "well_formed_frac")
CURVES = ("accuracy", "evidence_f1")


@dataclass(frozen=True, kw_only=True, slots=True)
class RunResult:
    """One arm with one seed.

    Attributes:
        before: test metrics of the model that reinforcement learning started from, by name.
        after: the same after it.
        steps: at which held-out questions were answered.
        curves: metrics of these answers, by name, one a step.
        rl_seconds: wall-clock time of the stage.
    """

    before: dict[str, float]
    after: dict[str, float]
    steps: list[int]
    curves: dict[str, list[float]]
    rl_seconds: float


@dataclass(frozen=True, kw_only=True, slots=True)
class ArmResult:
    """One arm over its seeds.

    Attributes:
        arm: its name.
        seeds: that were run.
        runs: the result of each.
    """

    arm: str
    seeds: list[int]
    runs: list[RunResult]

    @property
    def steps(self) -> list[int]:
        """The steps at which held-out questions were answered."""
        return self.runs[0].steps

    def before(self, name: str) -> NDArray[np.float64]:
        """[seeds] a test metric before reinforcement learning."""
        return np.array([run.before[name] for run in self.runs])

    def after(self, name: str) -> NDArray[np.float64]:
        """[seeds] a test metric after reinforcement learning."""
        return np.array([run.after[name] for run in self.runs])


def interval(values: NDArray[np.float64]) -> tuple[float, float]:
    """Mean and half width of the confidence interval of the mean (Student's t).

    Example:
        ``[1, 2, 3]`` has mean 2 and standard error 0.577, times t(0.975, 2) = 4.303: ±2.484.
    """
    if len(values) < 2:
        return float(values.mean()), float("nan")
    error = values.std(ddof=1) / np.sqrt(len(values))
    return float(values.mean()), float(error * stats.t.ppf(0.5 + CONFIDENCE / 2, len(values) - 1))


def _train(folder: Path, cores: list[int], overrides: list[str]) -> None:
    if (folder / "summary.json").exists():
        return
    command = [
        sys.executable,
        "train.py",
        f"run_dir={folder}",
        "resume=auto",
        "logging.wandb_mode=disabled",
        f"rollout.num_threads={len(cores)}",
        "rl.max_staleness_steps=0",
        *overrides,
    ]
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".log").open("w") as log:
        done = subprocess.run(
            ["taskset", "-c", ",".join(map(str, cores)), *command],
            cwd=REPOSITORY,
            stdout=log,
            stderr=subprocess.STDOUT,
            check=False,
        )
    if done.returncode:
        sys.exit(f"{folder.name} failed; see {folder.with_suffix('.log')}")


def _without_sections(source: Path, target: Path) -> tuple[str, ...]:
    """Copy a run's questions, their trajectories cut to thinking and answer; returns the settings that read them."""
    folder = target / "sft"
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(source / "sft" / "images.parquet", folder)
    rows = [json.loads(line) for line in (source / "sft" / "train.jsonl").read_text().splitlines()]
    cut = [row | {"answer": row["answer"][row["answer"].index("<think>") :]} for row in rows]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in cut))
    return (
        f"data.sft_path={folder / 'train.jsonl'}",
        f"data.rl_path={source / 'rl' / 'train.jsonl'}",
        f"data.test_path={source / 'test'}",
    )


def _supervised(root: Path, arm: str, seed: int) -> Path:
    """The run that an arm starts from."""
    return root / (f"sft-{arm}-{seed}" if arm == OWN_START else f"sft-{seed}")


def _train_start(root: Path, arm: str, seed: int, options: argparse.Namespace, cores: list[int]) -> None:
    """Train what an arm starts from; ``OWN_START`` needs the questions of the seed's shared run."""
    start = _supervised(root, arm, seed)
    settings = ["stage=sft", "eval.before_sft=false", f"seed={seed}", *options.overrides]
    if arm == OWN_START:
        shared = _supervised(root, SHARED_START, seed)
        settings += [*_without_sections(shared / "data", root / f"{start.name}-data"), *ARMS[arm]]
    _train(start, cores, settings)


def _train_arm(root: Path, arm: str, seed: int, options: argparse.Namespace, cores: list[int]) -> None:
    settings = [
        "stage=rl",
        f"seed={seed}",
        f"model.path={_supervised(root, arm, seed) / 'models' / 'sft'}",
        *([f"rl.max_steps={options.steps}"] if options.steps else []),
        *options.overrides,
        *ARMS[arm],
    ]
    _train(root / f"{arm}-{seed}", cores, settings)


def _result_file(options: argparse.Namespace, arm: str, seed: int) -> Path:
    return Path(options.results or options.folder).resolve() / f"result-{arm}-{seed}.json"


def _run_all(root: Path, options: argparse.Namespace) -> None:
    """Train everything that the study compares, on each share of the cores one run at a time."""
    cores = sorted(os.sched_getaffinity(0))
    shares: queue.SimpleQueue[list[int]] = queue.SimpleQueue()
    for index in range(options.parallel):
        shares.put(cores[index :: options.parallel])

    def on_a_share(train: Callable[..., None], arm: str, seed: int) -> None:
        share = shares.get()
        try:
            train(root, arm, seed, options, share)
        finally:
            shares.put(share)
        if train is _train_arm:
            write_json(_result_file(options, arm, seed), asdict(collect(root, arm, seed)), indent=1)

    missing = [
        (arm, seed) for seed in options.seeds for arm in options.arms if not _result_file(options, arm, seed).exists()
    ]
    rounds: list[tuple[Callable[..., None], list[tuple[str, int]]]] = [
        (_train_start, [(SHARED_START, seed) for seed in dict.fromkeys(seed for _, seed in missing)]),
        (_train_start, [pair for pair in missing if pair[0] == OWN_START]),
        (_train_arm, missing),
    ]
    for train, pairs in rounds:
        pool = concurrent.futures.ThreadPoolExecutor(options.parallel)
        try:
            for run in [pool.submit(on_a_share, train, arm, seed) for arm, seed in pairs]:
                run.result()
        finally:
            pool.shutdown(cancel_futures=True)  # after a failure or Ctrl-C nothing new begins


def collect(root: Path, arm: str, seed: int) -> RunResult:
    """Read a finished run."""
    summary = json.loads((root / f"{arm}-{seed}" / "summary.json").read_text())
    started = json.loads((_supervised(root, arm, seed) / "summary.json").read_text())["evaluations"]["after_sft"]
    ended = summary["evaluations"]["after_rl"]
    rows = [json.loads(line) for line in (root / f"{arm}-{seed}" / "metrics.jsonl").read_text().splitlines()]
    measured = [row for row in rows if row["stage"] == "rl" and "eval/accuracy" in row]
    return RunResult(
        before={name: started[name] for name in SHOWN},
        after={name: ended[name] for name in SHOWN},
        steps=[row["step"] for row in measured],
        curves={name: [row[f"eval/{name}"] for row in measured] for name in CURVES},
        rl_seconds=summary["stage_seconds"]["rl"],
    )


def _arm_result(options: argparse.Namespace, arm: str) -> ArmResult:
    files = [_result_file(options, arm, seed) for seed in options.seeds]
    return ArmResult(arm=arm, seeds=options.seeds, runs=[RunResult(**json.loads(file.read_text())) for file in files])


def _shown(values: NDArray[np.float64], spec: str = ".1f") -> str:
    mean, half = interval(values)
    return f"{mean:{spec}} ± {half:{spec.removeprefix('+')}}" if len(values) > 1 else f"{mean:{spec}}"


def table(results: list[ArmResult]) -> str:
    """Markdown: mean and confidence interval of each arm, and its paired difference to the first."""
    first = results[0]
    lines = [
        f"| arm ({len(first.seeds)} seeds) | accuracy before, % | accuracy after, % | gain | evidence F1 after "
        f"| against {first.arm}: accuracy, points | p | evidence F1 | p | RL seconds |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for result in results:
        accuracy, evidence = 100 * result.after("accuracy"), result.after("evidence_f1")
        before = 100 * result.before("accuracy")
        against = " | | | "
        if result is not first:
            gained = _against(accuracy - 100 * first.after("accuracy"), "+.1f")
            against = f"{gained} | {_against(evidence - first.after('evidence_f1'), '+.3f')}"
        lines.append(
            f"| {result.arm} | {before.mean():.1f} | {_shown(accuracy)} | {_shown(accuracy - before, '+.1f')} "
            f"| {_shown(evidence, '.3f')} | {against} | {np.mean([run.rl_seconds for run in result.runs]):.0f} |"
        )
    return "\n".join(lines)


def _against(differences: NDArray[np.float64], spec: str) -> str:
    """Two cells: the mean of paired differences and the p of their t-test."""
    p_value = f"{stats.ttest_1samp(differences, 0.0).pvalue:.3f}" if len(differences) > 1 else ""
    return f"{_shown(differences, spec)} | {p_value}"


def plot(results: list[ArmResult], file: Path) -> None:
    """Mean held-out curves with the confidence interval of the mean as a band."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(CURVES), figsize=(6 * len(CURVES), 4), layout="constrained")
    for axis, name in zip(axes, CURVES, strict=True):
        for result in results:
            values = np.array([run.curves[name] for run in result.runs])
            begin = result.before(name)[:, None]
            points = [interval(column) for column in np.concatenate([begin, values], axis=1).T]
            steps = [0, *result.steps]
            means, widths = (np.array([point[part] for point in points]) for part in (0, 1))
            (line,) = axis.plot(steps, means, label=result.arm, marker="o", markersize=3)
            axis.fill_between(steps, means - widths, means + widths, color=line.get_color(), alpha=0.15, linewidth=0)
        axis.set_xlabel("RL step")
        axis.set_title(f"held-out {name.replace('_', ' ')} (step 0: test set)")
        axis.grid(alpha=0.3)
    axes[0].legend()
    figure.savefig(file, dpi=130)
    pyplot.close(figure)


def _image(markdown: str, image: Path, num_steps: int) -> str:
    rows = [line.strip("|").split("|") for line in markdown.splitlines() if not line.startswith("|---")]
    cells = "".join(
        "<tr>" + "".join(f"<{kind}>{cell.strip()}</{kind}>" for cell in row) + "</tr>"
        for row, kind in zip(rows, ["th"] + ["td"] * (len(rows) - 1), strict=True)
    )
    data = base64.b64encode(image.read_bytes()).decode()
    return (
        "<!doctype html><html lang=en><meta charset=utf-8><title>Algorithm study</title>"
        "<style>body{font:15px/1.5 system-ui;max-width:75rem;margin:2rem auto;padding:0 1rem}"
        "table{border-collapse:collapse}"
        "td,th{white-space:nowrap;padding:.3rem .7rem;border-bottom:1px solid #ccc;text-align:left}"
        "img{max-width:100%}</style><h1>Algorithm study</h1>"
        f"<p>{num_steps} steps of reinforcement learning from the same supervised model a seed. Bands and ± are "
        f"{CONFIDENCE:.0%} confidence intervals of the mean over seeds.</p>"
        f"<table>{cells}</table><img alt='learning curves' src='data:image/png;base64,{data}'></html>"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/study"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=["rs_grpo", "grpo"])
    parser.add_argument("--steps", type=int, default=0, help="of reinforcement learning; 0: as many as the recipe")
    parser.add_argument("--parallel", type=int, default=1, help="runs at a time, each on its share of the cores")
    parser.add_argument("--results", type=Path, help="the folder of the runs' numbers; by default --folder")
    parser.add_argument("--overrides", nargs="*", default=[], help="further settings, for every arm")
    options = parser.parse_args()
    root = options.folder.resolve()
    _run_all(root, options)
    results = [_arm_result(options, arm) for arm in options.arms]
    root.mkdir(parents=True, exist_ok=True)
    markdown, num_steps = table(results), results[0].steps[-1]
    (root / "study.json").write_text(
        json.dumps({"steps": num_steps, "arms": [asdict(result) for result in results]}, indent=2)
    )
    plot(results, root / "study.png")
    (root / "study.html").write_text(_image(markdown, root / "study.png", num_steps))
    print(markdown)


if __name__ == "__main__":
    sys.exit(run_command(main))
