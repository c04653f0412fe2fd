"""How fast benchmarks are scored, on one core.

    python benchmarks/scoring_speed.py
    python benchmarks/scoring_speed.py --rouge-python OTHER/bin/python   # an interpreter with rouge==1.0.1

Prints seconds of processor time (and of the clock) for 100,000 EVisRAG predictions in both modes, from
predictions and samples in memory to metrics with intervals, and for MileBench's ROUGE-L. With an interpreter
that has the original's library, the same pairs are scored there too and the numbers compared.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import time
from collections.abc import Callable
from functools import partial
from typing import TypeVar

from rsgrpo.evaluation.benchmarks import find_benchmark
from rsgrpo.evaluation.benchmarks.base import MODES, Answered
from rsgrpo.evaluation.benchmarks.milebench_text import normalize, rouge_l
from rsgrpo.types import Sample

NUM_PREDICTIONS = 100_000
NUM_PAIRS = 2_000
WORDS = [f"word{index}" for index in range(400)] + ["the", "a", "of", "in", "3.5", "1,200", "Paris,", "(left)"] * 30

_ORIGINAL = """
import json, sys, time
from rouge import Rouge
pairs, scorer = json.load(sys.stdin), Rouge()
start = time.process_time()
scores = [scorer.get_scores(said, gold)[0]["rouge-l"]["f"] for said, gold in pairs]
json.dump({"seconds": time.process_time() - start, "scores": scores}, sys.stdout)
"""

T = TypeVar("T")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rouge-python", help="an interpreter that can import rouge 1.0.1")
    options = parser.parse_args()
    generator = random.Random(0)

    answered = [prediction(index, generator) for index in range(NUM_PREDICTIONS)]
    benchmark = find_benchmark("evisrag/chartqa")
    total = 0.0
    for mode in MODES:
        result, cpu, wall = timed(partial(benchmark.score, answered, mode))
        total += cpu
        print(f"EVisRAG, {mode}: {NUM_PREDICTIONS} predictions in {cpu:.2f} s ({wall:.2f} s on the clock),", end=" ")
        print(f"f1 {100 * result.main.value:.2f} [{100 * result.main.low:.2f}, {100 * result.main.high:.2f}]")
    print(f"EVisRAG, both modes: {total:.2f} s")

    pairs = [rouge_pair(generator) for _ in range(NUM_PAIRS)]
    scores, ours, wall = timed(lambda: [rouge_l(said, gold) for said, gold in pairs])
    print(f"ROUGE-L: {NUM_PAIRS} pairs in {ours:.3f} s ({wall:.3f} s on the clock)")
    if options.rouge_python:
        command = [options.rouge_python, "-c", _ORIGINAL]
        finished = subprocess.run(command, input=json.dumps(pairs), capture_output=True, text=True, check=True)
        original = json.loads(finished.stdout)
        gap = max(abs(left - right) for left, right in zip(scores, original["scores"], strict=True))
        print(
            f"rouge 1.0.1: {original['seconds']:.3f} s, {original['seconds'] / ours:.0f} times; largest gap {gap:.1e}"
        )


def timed(work: Callable[[], T]) -> tuple[T, float, float]:
    """What it gives, seconds of processor time, seconds of the clock."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = work()
    return result, time.process_time() - cpu, time.perf_counter() - wall


def prediction(index: int, generator: random.Random) -> Answered:
    """A four-section response of some 1,100 characters to a question with two references."""
    gold = sentence(generator, 1, 4)
    said = generator.choice([gold, sentence(generator, 1, 6), "insufficient to answer"])
    text = (
        f"<observe>\n{sentence(generator, 40, 70)}\n</observe>\n"
        f"<evidence>\n[1]: {sentence(generator, 10, 20)}\n[2]: no relevant information\n"
        f"[3]: no relevant information\n</evidence>\n"
        f"<think>\n{sentence(generator, 50, 90)}\n</think>\n<answer>\n{said}\n</answer>"
    )
    sample = Sample(
        sample_id=str(index), answers=(gold, sentence(generator, 1, 3)), is_sufficient=generator.random() < 0.8
    )
    return Answered(sample=sample, text=text)


def rouge_pair(generator: random.Random) -> tuple[str, str]:
    """A normalised answer of 5 to 150 words, and a reference of 5 to 60 that shares some of them."""
    gold = sentence(generator, 5, 60).split()
    said = [generator.choice(gold if generator.random() < 0.5 else WORDS) for _ in range(generator.randint(5, 150))]
    return normalize(" ".join(said)), normalize(" ".join(gold))


def sentence(generator: random.Random, low: int, high: int) -> str:
    return " ".join(generator.choices(WORDS, k=generator.randint(low, high)))


if __name__ == "__main__":
    main()
