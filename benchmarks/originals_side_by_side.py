"""Our official scorers beside the originals' own code, on random inputs that are as awkward as one can make them.

    python benchmarks/originals_side_by_side.py --visrag VisRAG --milebench MileBench --migician Migician

The arguments are checkouts of the three public repositories (VisRAG f35d232d, MileBench 9583e1fe, Migician 7b868a20);
MileBench's scorer wants ``rouge==1.0.1`` to be installed. Only the named functions of their files are run. Prints
comparisons and differences by scorer; where an original stops with an error, ours has to say that it does.
"""

from __future__ import annotations

import argparse
import ast
import random
import re
import string
from collections import Counter
from collections.abc import Callable
from math import isclose
from pathlib import Path
from typing import Any

import numpy as np

from rewards.functions.upstream import score_reference
from rsgrpo.config import EVISRAG
from rsgrpo.evaluation.benchmarks.base import BenchmarkError
from rsgrpo.evaluation.benchmarks.mig_bench import extract_boxes, official_iou
from rsgrpo.evaluation.benchmarks.milebench_text import (
    OriginalRaisesError,
    normalize,
    score_choice,
    score_needle,
    score_rouge,
)
from rsgrpo.evaluation.metrics import official_answer, score_answer

NUM_ROUNDS = 4_000
STOPS = "stops"
PLAIN_WORDS = (
    "the a an The red blue blue no yes 3 3.5 35 1,234 50% $5 don't x-y U.S.A. cat category café – “q” ’ . .. é "
    "İstanbul ΑΣ 東京 \" ' (A) A. B AB C D insufficient to answer question relevant information & | ^ * # ~ ` _ ² a_b "
    "the_ th.e A-n ß [x] {y} 1,2 ! ? ; : \\ = + @ a/b 10,000"
)
ODD_WORDS = ("\u00a0", "\t", "\n", "\x0b", "\x1c", "\u200b", "e\u0301", "\ud800", "." * 40, "3. 4", " - ")
WORDS = (*PLAIN_WORDS.split(), *ODD_WORDS)
TAGS = EVISRAG.tags
LABELS = [f"[{number}]{colon}" for number in range(1, 8) for colon in (":", "")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("visrag", "milebench", "migician"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    draw = Draw(random.Random(options.seed))
    checks = [
        evisrag(load(options.visrag / "src/evisrag/eval.py")),
        rewards(load(options.visrag / "src/rsgrpo/examples/reward_function/evidencecot.py")),
        boxes(load(options.migician / "eval/utils.py", "extract_bbox", "calculate_iou")),
        milebench(load(options.milebench / "evaluate.py", "Eval")["Eval"]()),
    ]
    compared: Counter[str] = Counter()
    different: Counter[str] = Counter()
    for _ in range(NUM_ROUNDS):
        for check in checks:
            for name, inputs, theirs, ours in check(draw):
                compared[name] += 1
                if not same(theirs, ours):
                    different[name] += 1
                    print(f"{name}: {inputs!r}\n  original {theirs!r}\n  ours     {ours!r}")
    for name, count in compared.items():
        print(f"{name}: {count} compared, {different[name]} different")


def load(file: Path, *names: str) -> dict[str, Any]:
    """Named functions and classes of a file, or all of its functions, without running the rest of it."""
    kinds = (ast.FunctionDef, ast.ClassDef)
    nodes = [node for node in ast.parse(file.read_text()).body if isinstance(node, kinds)]
    chosen: list[ast.stmt] = [node for node in nodes if node.name in names or not names]
    scope: dict[str, Any] = {"re": re, "string": string, "np": np, "Counter": Counter, "Any": Any}
    scope |= {"Dict": dict, "List": list}
    if "Eval" in names:
        from rouge import Rouge  # only MileBench's scorer needs it

        scope["Rouge"] = Rouge
    exec(compile(ast.Module(body=chosen, type_ignores=[]), str(file), "exec"), scope)
    return scope


class Draw:
    """Random inputs."""

    def __init__(self, generator: random.Random) -> None:
        self.random = generator

    def text(self, most: int) -> str:
        """A text of at most so many words."""
        words = self.random.choices(WORDS, k=self.random.randint(0, most))
        return self.random.choice((" ", "", "  ")).join(words)

    def response(self) -> str:
        """A response with tags and labels in disorder, or nearly in order."""
        if self.random.random() < 0.5:
            segments = self.random.choices([*TAGS, *LABELS, *WORDS, *(" " * 9)], k=self.random.randint(0, 25))
            return "".join(segments)
        lines = (
            f"[{index + 1}]{self.random.choice(('::', ':', ' :', ''))[:1]}"
            + self.random.choice(("no relevant information", self.text(3), self.text(9)))
            for index in range(self.random.randint(0, 7))
        )
        bodies = [self.text(4), "\n".join(lines), self.text(3), self.text(3)]
        names = EVISRAG.names
        blocks = [f"<{name}>{body}</{name}>" for name, body in zip(names, bodies, strict=True)]
        return self.random.choice(("\n", "\n", "", "x", "\x1c")).join(blocks) + self.random.choice(("", "", "", "\n"))

    def box(self) -> str:
        """A box in one of the forms that models write."""
        whole = self.random.random() < 0.5
        a, b, c, d = (
            str(self.random.randint(0, 1000)) if whole or self.random.random() < 0.1 else f"{self.random.random():.2f}"
            for _ in range(4)
        )
        gap = self.random.choice(("", "", " ", "\n"))
        forms = (
            f"({a},{gap}{b}),{gap}({c},{gap}{d})",
            f"[{a},{gap}{b},{gap}{c},{gap}{d}]",
            f"({a},{b},{gap}{c},{d})",
            f"<box>{a} {b} {c}\t{d}</box>",
        )
        return self.random.choice(forms)


Comparison = tuple[str, Any, Any, Any]
Check = Callable[[Draw], list[Comparison]]


def evisrag(original: dict[str, Any]) -> Check:
    def check(draw: Draw) -> list[Comparison]:
        text, answers = draw.response(), [draw.text(3) for _ in range(draw.random.randint(0, 4))]
        found, _ = original["evaluate_predictions"](official_answer(text), answers)
        score = score_answer(text, answers)
        theirs = (found["em"], found["acc"], found["f1"])
        return [("EVisRAG answer", (text, answers), theirs, (score.em, score.accuracy, score.f1))]

    return check


def rewards(original: dict[str, Any]) -> Check:
    def check(draw: Draw) -> list[Comparison]:
        text, gold, length = draw.response(), draw.response(), draw.random.randint(0, 2000)
        row = {"response": text, "ground_truth": gold, "response_length": length}
        ours = score_reference(text, gold, length)
        theirs = outcome(lambda: original["sum_all"]([row])[0]["overall"])
        return [("EVisRAG reward", row, theirs, STOPS if ours.anomalies else ours.overall)]

    return check


def boxes(original: dict[str, Any]) -> Check:
    def check(draw: Draw) -> list[Comparison]:
        text = " and ".join(draw.box() for _ in range(draw.random.choice((0, 1, 1, 2, 3))))
        gold = [draw.random.choice((0.0, 1.0, 0.1, draw.random.random())) for _ in range(4)]
        found = original["extract_bbox"](text)
        theirs, ours = (
            outcome(lambda: original["calculate_iou"](gold, found)),
            outcome(lambda: official_iou(gold, found)),
        )
        return [("MIG-Bench box", text, found, extract_boxes(text)), ("MIG-Bench IoU", (gold, found), theirs, ours)]

    return check


def milebench(scorer: Any) -> Check:
    def check(draw: Draw) -> list[Comparison]:
        options = [draw.text(draw.random.choice((1, 2, 4))) for _ in range(draw.random.choice((1, 2, 4, 5, 27, 60)))]
        gold, said = draw.random.choice([*options, draw.text(2)]), draw.random.choice([draw.text(5), *options])
        row = {"sample_id": 0, "gt_response": gold, "pred_response": said, "choice_list": list(options)}

        def choice() -> tuple[str, int]:
            scorer.process_sample(row)
            score, label = scorer.judge_multi_choice(row)
            return label, score

        def our_choice() -> tuple[str, int]:
            score = score_choice(said, gold, options)
            return score.extracted, score.score

        reference, long = draw.text(4), draw.text(20)
        needle = int(scorer.process(reference) in scorer.process(long).split())
        return [
            ("MileBench text", long, scorer.process(long), normalize(long)),
            ("MileBench choice", (said, gold, options), outcome(choice), outcome(our_choice)),
            ("MileBench needle", (long, reference), needle, score_needle(long, reference)),
            (
                "MileBench ROUGE-L",
                (long, gold),
                outcome(lambda: rouge(scorer, long, gold)),
                outcome(lambda: score_rouge(long, gold)),
            ),
        ]

    return check


def rouge(scorer: Any, said: str, gold: str) -> float:
    answer = {"sample_id": 0, "gt_response": gold, "pred_response": said}
    data = {"data": [{"sample_id": 0, "image_quantity_level": "Few", "task_instance": {"images_path": []}}]}
    return float(scorer.evaluate_rouge([answer], data)[0]["Rouge-L f"])


def outcome(call: Callable[[], Any]) -> Any:
    """What a call returns, or that it raises; which error it is does not matter."""
    try:
        return call()
    except (
        ArithmeticError,
        AssertionError,
        LookupError,
        RecursionError,
        ValueError,
        OriginalRaisesError,
        BenchmarkError,
    ):
        return STOPS


def same(left: Any, right: Any) -> bool:
    if isinstance(left, (int, float)) and isinstance(right, (int, float)):
        return isclose(left, right, rel_tol=0.0, abs_tol=1e-9)
    if isinstance(left, (list, tuple)) and isinstance(right, (list, tuple)):
        return len(left) == len(right) and all(map(same, left, right))
    return bool(left == right)


if __name__ == "__main__":
    main()
