"""Train a small retriever on distilled pairs and, for the same steps, on gold pages of the same questions.

    uv run python benchmarks/distilled_retriever.py runs/tickets_policy --out outputs/distilled
    uv run python benchmarks/distilled_retriever.py runs/tickets_policy --out outputs/distilled --negatives 2 --seed 1

The run is that of a policy that answers questions about tickets (``quickstart.task=tickets``). It answers questions
that it may have been trained on; the retriever is tested on pages whose names and handwriting occur in none of them.
Gold pairs are those of every answerable question that was asked; distilled ones those of ``rsgrpo distill-relevance``.
Both trainings begin with the same weights and take the same number of steps of the same size. The folder is kept: a
second call goes on, and another number of negatives or another seed trains beside what is there.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from recipes.distilling.judging import JudgedQuestion, judge_groups
from recipes.distilling.pairs import Distilled, PageStore, gold_agreement, make_pairs
from rsgrpo.config import EVISRAG, DataConfig, QuickstartConfig
from rsgrpo.config.distill import DistillConfig
from rsgrpo.config.image_rules import ImageRules
from rsgrpo.data.evisrag_files import load_samples
from rsgrpo.data.synthetic.quickstart import build_quickstart_data, corpus
from rsgrpo.data.synthetic.ticket_sets import build_retriever_data
from rsgrpo.io.jsonl import write_rows
from rsgrpo.model.quickstart_model import build_quickstart_model
from rsgrpo.retrieval.training.evidence_labels import LeftOut, PageLabel
from rsgrpo.run.recorder import RecordedGroup, RecordedReward, RecordedRollout, read_groups

REPOSITORY = Path(__file__).resolve().parents[1]
TICKETS = QuickstartConfig(task="tickets", image_pixels=56)
DATA_SEED = 0  # one world of pages, whatever the seed of the training
TARGET = 0.9  # of the gold-trained retriever's MRR


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("policy", type=Path, nargs="?", help="the folder of the policy's run; without one only gold")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--questions", type=int, default=1500)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--negatives", type=int, default=0, help="hard negatives of each pair in the loss")
    parser.add_argument("--seed", type=int, default=0, help="of both trainings")
    parser.add_argument("--data", type=Path, help="questions in EVisRAG's form; by default those that are made here")
    parser.add_argument("--sampling", nargs="*", default=[], help="settings of sampling, such as rollout.num_threads=1")
    options = parser.parse_args()
    out: Path = options.out.absolute()
    questions = options.data or Path(build_quickstart_data(TICKETS, out / "data", DATA_SEED).rl_path)
    distilled = out / "distilled"
    gold = write_gold(questions, options.questions, out / "gold")
    print(
        f"gold: {len(gold.rows)} rows of {gold.used_questions} questions, {gold.negatives} hard negatives", flush=True
    )
    if not options.policy:
        before, after = train(out, "gold", options.steps, options.negatives, options.seed)
        print(f"MRR@10: before training {before:.3f}, trained on gold {after:.3f}")
        return
    run_program(
        *("-m", "recipes.commands.program", "distill-relevance", str(options.policy), "--questions", str(questions)),
        *("--samples", str(options.samples), "--limit", str(options.questions), "--out", str(distilled)),
        *options.sampling,
    )
    before = 0.0
    found = {}
    for name in ("distilled", "gold"):
        before, found[name] = train(out, name, options.steps, options.negatives, options.seed)
    counts = json.loads((distilled / "counts.json").read_text())
    print(json.dumps(counts, indent=1))
    print(
        f"if wrong answers counted as well: {json.dumps(without_correctness(distilled / 'rollouts.jsonl'), indent=1)}"
    )
    print(f"{options.steps} steps, {options.negatives} hard negatives a pair, seed {options.seed}: MRR@10")
    print(f"  before training        {before:.3f}")
    print(f"  trained on distilled   {found['distilled']:.3f}")
    print(f"  trained on gold        {found['gold']:.3f}")
    print(f"  distilled over gold    {found['distilled'] / found['gold']:.3f} (target {TARGET})")


def run_program(*arguments: str) -> None:
    """Run a program of the repository to its end, in this environment."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    subprocess.run([sys.executable, *arguments], cwd=REPOSITORY, env=environment, check=True)


def write_gold(questions: Path, limit: int, folder: Path) -> Distilled:
    """Write the gold pairs of the questions that are asked."""
    samples = load_samples(str(questions), DataConfig(max_images=64), is_training=False).samples[:limit]
    unanswered = RecordedRollout(response_index=0, text="", finish_reason="", policy_version=0, token_char_starts=())
    groups = [
        RecordedGroup(
            stage="gold",
            step=0,
            sample_id=sample.sample_id,
            question=sample.question,
            images=sample.images,
            answers=sample.answers,
            gold_response=sample.gold_response,
            is_sufficient=sample.is_sufficient,
            rollouts=(unanswered,),
            positive_images=sample.positive_images,
        )
        for sample in samples
    ]
    settings = DistillConfig(source="gold")
    folder.mkdir(parents=True, exist_ok=True)
    with closing(PageStore(folder, ImageRules())) as store:
        made = make_pairs([with_gold(one) for one in judge_groups(groups, settings, EVISRAG)], settings, store)
    write_rows(folder / "pairs.jsonl", made.rows)
    return made


def without_correctness(file: Path) -> dict[str, Any]:
    """How labels would agree with gold if every response counted, whether its answer is correct or not."""
    counted = RecordedReward(name="counted", value=1.0)
    groups = [
        dataclasses.replace(
            group, rollouts=tuple(dataclasses.replace(rollout, rewards=(counted,)) for rollout in group.rollouts)
        )
        for group in read_groups(file)
    ]
    questions = list(judge_groups(groups, DistillConfig(correctness="counted"), EVISRAG))
    return gold_agreement(questions).document()


def with_gold(question: JudgedQuestion) -> JudgedQuestion:
    """The question with what gold says of its pages in place of what responses say."""
    gold: Sequence[bool] = question.gold or [False] * len(question.pages)
    pages = tuple(
        PageLabel(decision="positive" if is_gold else "negative", weight=1.0, num_for=0, num_against=0)
        for is_gold in gold
    )
    left_out: LeftOut = "" if any(gold) else "unanswerable"
    return dataclasses.replace(question, labels=dataclasses.replace(question.labels, pages=pages, left_out=left_out))


def train(out: Path, name: str, num_steps: int, num_negatives: int, seed: int) -> tuple[float, float]:
    """Train a retriever on the pairs of a name; MRR@10 before and after."""
    model = build_quickstart_model(TICKETS, out / "base_model", DATA_SEED, corpus(TICKETS, DATA_SEED))
    test = build_retriever_data(TICKETS, out / "retriever_data", DATA_SEED).test_path
    run = out / f"retriever_{name}_steps{num_steps}_negatives{num_negatives}_seed{seed}"
    if not (run / "summary.json").exists():
        run_program(
            *("train.py", "recipe=retriever_quickstart", f"run_dir={run}", f"seed={seed}", "resume=auto"),
            *(f"retriever.data=[{out / name / 'pairs.jsonl'}]", f"retriever.test_path={test}", f"model.path={model}"),
            *(f"retriever.max_steps={num_steps}", "retriever.num_epochs=1000"),
            *(f"retriever.negatives.num_pages={num_negatives}", "logging.wandb_mode=disabled", "trainer.num_threads=1"),
        )
    points = [run / "evaluations" / f"{point}_retriever" / "retrieval.json" for point in ("before", "after")]
    before, after = (float(json.loads(point.read_text())["mrr_at_10"]) for point in points)
    return before, after


if __name__ == "__main__":
    main()
