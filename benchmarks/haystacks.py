"""Measure what the query-aware filter saves, and what it costs, on haystacks of generated pages and of real pictures.

    uv run python benchmarks/haystacks.py --folder runs/haystacks                    # both worlds, everything
    uv run python benchmarks/haystacks.py --folder runs/haystacks --worlds tickets   # generated pages alone

For each world an answering policy is trained with the normal pipeline from random weights: it learns to put a page into
words, then to find the page that is asked for. The embedder goes on from it and has its eyes; the stamps' policy learns
to find pages from the embedder's weights, which know the captions. Every question asks for the handwritten digit on one
page of a haystack of 10, 100 or 1,000 (stamps: all that are taken). Pages are filtered in two ways: by the cosine of
cached vectors, and by the policy's own yes or no at low resolution on the best of these. As few go into the prompt as
hold the right one for 99.5 % of held-out questions. Beside them the same policy sees the whole haystack, where it fits
into its context, and the oracle's pages: the filter's, with the right one put among them where it is missing.

Real pictures come from Debian's package tuxpaint-stamps-default, which is downloaded into the folder. What is finished
there is not made again, so an interrupted run goes on with the same command. Writes ``haystacks.json`` and
``haystacks.png`` and prints a Markdown table.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from haystack_data import LESSONS, Lesson
from haystack_measure import MAX_SHOWN_PAGES, Plan, Row, measure
from haystack_questions import PairedDifference
from haystack_training import train_world
from haystack_worlds import open_world

from rsgrpo.io.atomic_files import write_json

WORLDS = ("tickets", "stamps")
SIZES = (10, 100, 1000)
EMBEDDER_STEPS = {"tickets": (400,), "stamps": (250, 400)}
NUM_FIRST_LESSONS = {"tickets": 4, "stamps": 2}
"""Lessons of the policy before the embedder; only the stamps' policy goes on from it, knowing the captions."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/haystacks"))
    parser.add_argument("--worlds", nargs="+", choices=WORLDS, default=list(WORLDS))
    parser.add_argument("--questions", type=int, default=500)
    parser.add_argument(
        "--stamps", type=int, default=150, help="pictures that are taken; 0: all 309 whose captions can be told apart"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--embedder-steps", type=int, nargs="+", help=f"of 64 pairs, in rounds; default {EMBEDDER_STEPS}"
    )
    parser.add_argument("--policy-steps", type=int, nargs="+", help="of each of the policy's rounds")
    parser.add_argument(
        "--unfiltered-pages",
        type=int,
        choices=(10, MAX_SHOWN_PAGES),
        default=MAX_SHOWN_PAGES,
        help="the largest haystack that the policy is also shown whole; answers to 100 pages take long",
    )
    parser.add_argument("--kept", type=int, default=0, help="pages that go into the prompt; 0: chosen as said above")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    root = options.folder.resolve()
    rows: list[Row] = []
    for name in dict.fromkeys(options.worlds):
        world = open_world(name, root / "package", options.stamps, options.seed)
        lessons: tuple[Lesson, ...] = LESSONS[name]
        if options.policy_steps:
            pairs = zip(lessons, options.policy_steps, strict=True)
            lessons = tuple(replace(lesson, num_steps=steps) for lesson, steps in pairs)
        trained = train_world(
            world,
            root / name,
            embedder_steps=options.embedder_steps or EMBEDDER_STEPS[name],
            lessons=lessons,
            num_first_lessons=NUM_FIRST_LESSONS[name],
            threads=options.threads,
            seed=options.seed,
        )
        sizes = tuple(sorted({min(size, len(world.test_items)) for size in SIZES}))
        plan = Plan(
            sizes=sizes,
            twice_sizes=(100,),
            num_questions=options.questions,
            num_kept=options.kept,
            max_shown=options.unfiltered_pages,
            seed=options.seed,
        )
        rows += measure(world, trained, root / name, plan, options.threads)
        print(table([row for row in rows if row.world == name]), flush=True)
    write_json(root / "haystacks.json", {"rows": [asdict(row) for row in rows]}, indent=2)
    plot(rows, root / "haystacks.png")


def table(rows: Sequence[Row]) -> str:
    """Write rows as Markdown."""
    lines = [
        "| world | pages | the policy sees | accuracy, % | page shown, % | image tokens in the prompt (times fewer) "
        "| with the filter's own (times fewer) | against unfiltered, points | against the oracle, points |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        lines.append(
            f"| {row.world} | {row.size:,} | {row.name} | {row.accuracy:.1f} | {row.recall:.1f} "
            f"| {row.answer_tokens:,.0f} ({row.answer_ratio:.1f}) | {row.all_tokens:,.0f} ({row.all_ratio:.1f}) "
            f"| {shown_difference(row.against_unfiltered)} | {shown_difference(row.against_oracle)} |"
        )
    return "\n".join(lines)


def shown_difference(difference: PairedDifference | None) -> str:
    """Write a difference with its 95 % interval and the questions behind it; empty where there is none."""
    if difference is None:
        return ""
    return f"{difference.mean:+.1f} ± {difference.half_width:.1f} (+{difference.num_gained} −{difference.num_lost})"


def plot(rows: Sequence[Row], file: Path) -> None:
    """Draw accuracy over the size of the haystack, one picture a world."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    worlds = list(dict.fromkeys(row.world for row in rows))
    figure, axes = pyplot.subplots(1, len(worlds), figsize=(6 * len(worlds), 4), layout="constrained", squeeze=False)
    for axis, world in zip(axes[0], worlds, strict=True):
        for name in dict.fromkeys(row.name for row in rows):
            points = [(row.size, row.accuracy) for row in rows if row.world == world and row.name == name]
            axis.plot(*zip(*points, strict=True), label=name, marker="o")
        axis.set(xscale="log", xlabel="pages", ylabel="accuracy, %", ylim=(0, 100), title=world)
        axis.grid(alpha=0.3)
    axes[0][0].legend()
    figure.savefig(file, dpi=130)
    pyplot.close(figure)


if __name__ == "__main__":
    main()
