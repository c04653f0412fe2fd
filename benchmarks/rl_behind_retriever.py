"""Reinforcement learning over prepared pages and behind a retriever, both measured behind the retriever.

    uv run python benchmarks/rl_behind_retriever.py --folder runs/behind
    uv run python benchmarks/rl_behind_retriever.py --folder runs/behind --policy MODEL --embedder MODEL --seeds 0 1 2

Pages are the quickstart's tickets, which two coloured marks name; half of a question's prepared distractors share a
mark with the right page. One index holds all pages of reinforcement learning and of the test. The retriever is stopped
early (``--embedder-steps``), so that it misses pages as real ones do. Both arms begin with the same supervised policy
and take the same steps; the one behind the retriever gets no question that its data call unanswerable: it learns to
abstain from the questions whose page the retriever does not find. The folder is kept: a second call goes on there.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from statistics import mean

import numpy as np
import pyarrow.parquet as pq
from algorithm_study import interval

from rsgrpo.config import QuickstartConfig
from rsgrpo.data.synthetic.quickstart import build_quickstart_data, corpus
from rsgrpo.data.synthetic.ticket_sets import build_retriever_data
from rsgrpo.model.quickstart_model import build_quickstart_model

REPOSITORY = Path(__file__).resolve().parents[1]
TICKETS = QuickstartConfig(task="tickets", image_pixels=56, sft_scans_per_digit=90, rl_scans_per_digit=40)
DATA_SEED = 0  # one world of pages, whatever the seed of the training
SHOWN = {
    "accuracy": "accuracy",
    "answerable_accuracy": "page found",
    "unanswerable_accuracy": "page missed",
    "abstention_answerable_frac": "abstains though found",
    "evidence_f1": "evidence F1",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--policy", type=Path, help="a supervised policy for tickets; by default one is trained")
    parser.add_argument("--embedder", type=Path, help="a retriever for tickets; by default one is trained")
    parser.add_argument("--embedder-steps", type=int, default=60)
    parser.add_argument("--policy-steps", type=int, nargs="+", default=[600], help="rounds of supervised training")
    parser.add_argument("--steps", type=int, default=170, help="steps of reinforcement learning")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--pages", type=int, default=3)
    parser.add_argument("--settings", nargs="*", default=[], help="settings of all runs, such as trainer.num_threads=1")
    options = parser.parse_args()
    folder: Path = options.folder.absolute()
    data = build_quickstart_data(TICKETS, folder / "data", DATA_SEED)
    start = build_quickstart_model(TICKETS, folder / "start", DATA_SEED, corpus(TICKETS, DATA_SEED))
    tickets = [
        "recipe=quickstart",
        f"data.rl_path={data.rl_path}",
        f"data.test_path={data.test_path}",
        *options.settings,
    ]
    tickets += [f"data.sft_path={data.sft_path}", "logging.wandb_mode=disabled", "resume=auto"]
    policy = options.policy or train_policy(folder, start, options.policy_steps, tickets)
    embedder = options.embedder or train_embedder(folder, start, options.embedder_steps, options.settings)
    index = make_index(folder, embedder)
    behind = [f"data.retrieve={index}", f"data.retrieve_pages={options.pages}"]
    rows: dict[str, list[Mapping[str, float]]] = {"supervised": [], "prepared pages": [], "behind the retriever": []}
    for seed in options.seeds:
        arms = {"prepared pages": [], "behind the retriever": behind}
        for number, (name, settings) in enumerate(arms.items()):
            trained = run(
                folder / f"rl-{'behind' if number else 'prepared'}-{seed}",
                [
                    *tickets,
                    *settings,
                    "stage=rl",
                    f"seed={seed}",
                    f"model.path={policy}",
                    f"rl.max_steps={options.steps}",
                ],
            )
            rows[name].append(
                measured(folder, trained / "models" / "rl", [*tickets, *behind, f"seed={seed}"], trained.name)
            )
        rows["supervised"].append(measured(folder, policy, [*tickets, *behind, f"seed={seed}"], f"supervised-{seed}"))
    print("| policy | " + " | ".join(SHOWN.values()) + " |")
    print("|---|" + "---|" * len(SHOWN))
    for name, found in rows.items():
        print(f"| {name} | " + " | ".join(f"{mean(row[key] for row in found):.1%}" for key in SHOWN) + " |")
    pairs = zip(rows["prepared pages"], rows["behind the retriever"], strict=True)
    gains = np.array([[100 * (behind[key] - prepared[key]) for key in SHOWN] for prepared, behind in pairs])
    told = [f"{middle:+.1f}" + (f" ± {half:.1f}" if len(gains) > 1 else "") for middle, half in map(interval, gains.T)]
    print(f"| behind the retriever less prepared pages, points | {' | '.join(told)} |")
    first = rows["supervised"][0]
    print(f"the page was found for {first['num_answerable']:.0f} of {first['num_responses']:.0f} test questions")


def train_policy(folder: Path, start: Path, rounds: list[int], settings: list[str]) -> Path:
    """Train the supervised policy, in rounds that each begin with a new warm-up."""
    policy = start
    for number, steps in enumerate(rounds):
        given = ["stage=sft", f"model.path={policy}", f"seed={number}", "eval.before_sft=false", "sft.num_epochs=100"]
        given += [f"sft.max_steps={steps}", "sft.optimizer.schedule=cosine"]
        policy = run(folder / f"policy-{number + 1}", [*settings, *given]) / "models" / "sft"
    return policy


def train_embedder(folder: Path, start: Path, steps: int, given: list[str]) -> Path:
    """Train a retriever for a few steps."""
    made = build_retriever_data(TICKETS, folder / "pairs", DATA_SEED)
    settings = ["recipe=retriever_quickstart", f"model.path={start}", f"retriever.data=[{made.train_path}]"]
    settings += [f"retriever.test_path={made.test_path}", f"retriever.max_steps={steps}", "retriever.num_epochs=1000"]
    settings += ["logging.wandb_mode=disabled", "resume=auto", *given]
    return run(folder / "embedder", settings) / "models" / "retriever"


def make_index(folder: Path, embedder: Path) -> Path:
    """Index the pages of reinforcement learning and of the test."""
    pages, index = folder / "pages", folder / "pages.index"
    if not pages.exists():
        pages.mkdir()
        for split in ("rl", "test"):
            source = folder / "data" / split
            for file in sorted(source.glob("imgs/*.png")):
                (pages / f"{split}-{file.name}").write_bytes(file.read_bytes())
            for table in sorted(source.glob("*.parquet")):
                for row in pq.read_table(table).to_pylist():
                    (pages / f"{split}-{Path(row['path']).name}").write_bytes(row["image"]["bytes"])
    if not (index / "index.json").exists():
        call = ["-m", "recipes.commands.program", "index", str(pages), "--out", str(index), "--embedder", str(embedder)]
        run_program(*call)
    return index


def measured(folder: Path, model: Path, settings: list[str], name: str) -> Mapping[str, float]:
    """The figures of a policy on the test behind the retriever."""
    done = run(folder / f"eval-{name}", [*settings, "stage=eval", f"model.path={model}"])
    evaluations: Mapping[str, Mapping[str, float]] = json.loads((done / "summary.json").read_text())["evaluations"]
    (figures,) = evaluations.values()
    return figures


def run(folder: Path, settings: list[str]) -> Path:
    """Run ``train.py``, unless it has finished there."""
    if not (folder / "summary.json").exists():
        run_program("train.py", *settings, f"run_dir={folder}", f"name={folder.name}")
    return folder


def run_program(*arguments: str) -> None:
    """Run a Python program in the repository; its output goes to the terminal."""
    path = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH", "")]))
    subprocess.run([sys.executable, *arguments], cwd=REPOSITORY, env={**os.environ, "PYTHONPATH": path}, check=True)


if __name__ == "__main__":
    main()
