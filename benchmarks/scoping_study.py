"""How many samples an estimator of the policy gradient needs: GRPO, scoped rewards, causal and soft scopes.

    uv run python benchmarks/scoping_study.py --folder runs/scoping --policy runs/quickstart/models/sft --groups 1000

A large pool of responses is sampled once from a fixed policy, and the gradient of every stretch of their tokens
computed. The yardstick is the gradient of the expected reward, from one half of the pool: every value against the mean
of its siblings', on all tokens that can have caused it. From the other half many small steps are drawn; for each
estimator the table says how well its steps point along the yardstick, where an endless step would point, and how many
samples give the cosine that GRPO has with ``--step-groups`` groups. Both halves take both parts. Intervals are 95 %,
from steps drawn again with replacement. A first table compares the signal of each reward's credit in each section, as a
run logs it from texts alone (``signal/<reward>/<section>``), with that of the gradients.

The folder is kept: a second call goes on where the first one stopped. Writes ``study.json`` and ``study.png``.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from recorded_groups import recorded_groups
from scoping_estimators import (
    ESTIMATORS,
    EVIDENCE,
    LINES,
    Estimator,
    PoolGroup,
    Quality,
    quality,
    step_gradients,
    with_noise,
    yardstick,
)
from scoping_gradients import make_pool
from scoping_signals import signal_rows, signal_table

from rsgrpo.config import Config, RewardConfig, ScopeConfig, load_config
from rsgrpo.errors import RsgrpoError
from rsgrpo.failures.command import run_command
from rsgrpo.io.atomic_files import write_json
from rsgrpo.run.folder import RunFolder, read_settings

REPOSITORY = Path(__file__).resolve().parent.parent
PROMPTS_PER_STEP = 50
NUM_RESAMPLINGS = 200
TOTAL = "all"
MOST = 1e9  # a ratio of samples that stands for infinity


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One estimator at one point of the sweep.

    Attributes:
        point: what is swept, such as ``group size 4``.
        name: the estimator.
        section: the section whose tokens' gradient is judged, or ``all``.
        cosine: the cosine of a step of ``--step-groups`` groups with the yardstick, over ``trust``.
        limit: that of an endless step.
        ratio: samples for the cosine that GRPO's endless step and noise give it with ``--step-groups`` groups, over
            those of GRPO; infinite where no step reaches it, NaN where GRPO's is not above 0.
        low: the lower end of the interval of ``ratio``.
        high: the upper end.
        trust: how well the yardstick of one half knows the true direction: its own cosine with it, from the inner
            product of both halves' yardsticks; NaN where that is not above 0.
    """

    point: str
    name: str
    section: str
    cosine: float
    limit: float
    ratio: float
    low: float
    high: float
    trust: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Judged:
    """All estimators at one point of the sweep.

    Attributes:
        qualities: by estimator and section the quality over all steps, and those of ``NUM_RESAMPLINGS`` draws.
        trust: as ``Row.trust``, by section.
    """

    qualities: Mapping[tuple[str, str], Sequence[Quality]]
    trust: Mapping[str, float]


def sample_pool(
    folder: Path, policy: Path, recipe: str, num_groups: int, group_size: int, settings: Sequence[str]
) -> Path:
    """Sample the pool with the normal pipeline, at a learning rate so small that no weight changes."""
    run = folder / "pool"
    if (run / "summary.json").exists():
        num_sampled = sum(1 for _ in recorded_groups(run))
        if num_sampled < num_groups:
            raise RsgrpoError(
                f"{run} holds {num_sampled} groups, --groups asks for {num_groups}; take another --folder, or fewer"
            )
        return run
    command = [
        sys.executable,
        "train.py",
        f"recipe={recipe}",
        "stage=rl",
        f"model.path={policy}",
        f"run_dir={run}",
        "name=scoping-pool",
        "resume=auto",
        "logging.wandb_mode=disabled",
        "rl.optimizer.learning_rate=1e-30",
        "rl.filter.mode=none",
        "rl.validation_samples=0",
        "rl.rollouts_in_report=0",
        "rl.record_every_steps=1",
        "rl.max_staleness_steps=0",
        f"rl.prompts_per_step={PROMPTS_PER_STEP}",
        f"rl.samples_per_prompt={group_size}",
        f"rl.max_steps={-(-num_groups // PROMPTS_PER_STEP)}",
        *settings,
    ]
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "pool.log"
    with log.open("a", encoding="utf-8") as output:
        done = subprocess.run(command, cwd=REPOSITORY, stdout=output, stderr=subprocess.STDOUT, check=False)
    if done.returncode:
        raise RsgrpoError(f"sampling failed; see {log}")
    return run


def with_lines(config: Config) -> Config:
    """Add ``LINES``, with no weight of its own, to a recipe that rewards evidence."""
    if EVIDENCE not in config.rewards:
        return config
    lines = RewardConfig(
        function="rewards.functions.evidence:evidence_per_image", scope=ScopeConfig(evidence_line=True), weight=0.0
    )
    return replace(config, rewards={**config.rewards, LINES: lines})


def smaller(pool: Sequence[PoolGroup], size: int) -> list[PoolGroup]:
    """Cut every group into as many groups of ``size`` responses as it holds."""
    return [
        group.some(range(first, first + size))
        for group in pool
        for first in range(0, len(group.gradients) - size + 1, size)
    ]


def section_sum(gradients: Mapping[str, NDArray[np.float64]], section: str, width: int) -> NDArray[np.float64]:
    """[width] the gradient of one section's tokens, or of all."""
    return sum((value for name, value in gradients.items() if section in (TOTAL, name)), np.zeros(width))


def judge(
    halves: tuple[Sequence[PoolGroup], Sequence[PoolGroup]],
    weights: Mapping[str, float],
    estimators: Mapping[str, Estimator],
    sections: Sequence[str],
    step_groups: int,
    seed: int,
) -> Judged:
    """Judge all estimators on both halves, and again on steps that are drawn with replacement."""
    rng = np.random.default_rng(seed)
    width = halves[0][0].gradients[0].shape[1]
    found: dict[tuple[str, str], list[Quality]] = {}
    steps: dict[tuple[str, str], list[NDArray[np.float64]]] = {}
    targets: dict[str, list[NDArray[np.float64]]] = {section: [] for section in sections}
    owners: list[int] = []
    for half in (0, 1):
        by_section = yardstick(halves[1 - half], weights)
        for section in sections:
            targets[section].append(section_sum(by_section, section, width))
        order = rng.permutation(len(halves[half]))
        for first in range(0, len(order) - step_groups + 1, step_groups):
            groups = [halves[half][index] for index in order[first : first + step_groups]]
            owners.append(half)
            for name, estimator in estimators.items():
                gradients = step_gradients(groups, weights, estimator)
                for section in sections:
                    steps.setdefault((name, section), []).append(section_sum(gradients, section, width))
    draws = [np.arange(len(owners)), *(rng.integers(len(owners), size=len(owners)) for _ in range(NUM_RESAMPLINGS))]
    for key, vectors in steps.items():
        grams = _Grams(vectors, targets[key[1]], owners)
        found[key] = [grams.quality(draw, step_groups) for draw in draws]
    return Judged(qualities=found, trust={section: trust_of(*pair) for section, pair in targets.items()})


def trust_of(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    """The mean cosine of two yardsticks with the true gradient; NaN where they do not point the same way.

    Their noises are independent, so their inner product has no bias from it, while their lengths hold it.
    """
    product = float(first @ second)
    return float(np.sqrt(product / (np.linalg.norm(first) * np.linalg.norm(second)))) if product > 0 else float("nan")


class _Grams:
    """Products of steps with one another and with their yardsticks; what any draw of steps is judged by."""

    def __init__(
        self, vectors: Sequence[NDArray[np.float64]], targets: Sequence[NDArray[np.float64]], owners: Sequence[int]
    ) -> None:
        matrix = np.stack(vectors)
        self._products = matrix @ matrix.T
        units = np.stack([target / np.linalg.norm(target) for target in targets])
        self._halves = np.array(owners)
        self._along = (matrix * units[self._halves]).sum(axis=1)

    def quality(self, draw: NDArray[np.int64], num_groups: int) -> Quality:
        return quality(self._along[draw], self._products[np.ix_(draw, draw)], self._halves[draw], num_groups)


def ratios(
    found: Mapping[tuple[str, str], Sequence[Quality]], name: str, section: str, step_groups: int
) -> tuple[float, float, float]:
    """Samples that an estimator needs for GRPO's cosine, over GRPO's: the value, and its 95 % interval.

    Where GRPO's cosine is not above 0 there is nothing to compare with: NaN, for the ends of the interval too.
    """
    values = []
    for mine, grpo in zip(found[name, section], found["grpo", section], strict=True):
        cosine = grpo.cosine_of(step_groups)
        values.append(min(mine.groups_for(cosine) / step_groups, MOST) if cosine > 0 else float("nan"))
    low, high = np.quantile(values[1:], (0.025, 0.975))
    return values[0], float(low), float(high)


@dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    """A point of the sweep.

    Attributes:
        name: what is swept, such as ``group size 4``.
        groups: the groups of the pool that it is about.
        group_size: the number of responses of a group.
        weights: the weight of each reward.
        estimators: the estimators that are compared.
        sections: the sections whose tokens' gradients are judged.
    """

    name: str
    groups: Sequence[PoolGroup]
    group_size: int
    weights: Mapping[str, float]
    estimators: Mapping[str, Estimator] = field(default_factory=lambda: ESTIMATORS)
    sections: Sequence[str] = (TOTAL,)


def points_of(pool: Sequence[PoolGroup], config: Config, seed: int) -> list[Point]:
    """The sweep: group size, pages and with them the length of responses, number of rewards, noise."""
    weights = {name: reward.weight for name, reward in config.rewards.items()}
    largest = len(pool[0].gradients)
    usual = min(8, largest)
    every_section = (TOTAL, *config.response.format.names)
    points = [
        Point(
            name=f"group size {size}",
            groups=pool,
            group_size=size,
            weights=weights,
            sections=every_section if size == usual else (TOTAL,),
        )
        for size in (2, 4, 8, 16)
        if size <= largest
    ]
    for num_pages in sorted({group.num_pages for group in pool}):
        groups = [group for group in pool if group.num_pages == num_pages]
        length = np.mean([rollout.num_tokens for group in groups for rollout in group.scored.rollouts])
        name = f"{num_pages} pages, {length:.0f} tokens"
        points.append(Point(name=name, groups=groups, group_size=usual, weights=weights))
    for names in (("accuracy",), (EVIDENCE,), ("accuracy", EVIDENCE)):
        if weights.keys() >= set(names):
            given = {name: weight * (name in names) for name, weight in weights.items()}
            name = f"{' and '.join(names)} alone"
            points.append(Point(name=name, groups=pool, group_size=usual, weights=given))
    for name in ("accuracy", EVIDENCE):
        noise = with_noise(name, 0.5, seed)
        noisy = {
            key: replace(found, change=noise)
            for key, found in ESTIMATORS.items()
            if found.change is None and not (found.by_line and name == EVIDENCE)  # lines would be free of the noise
        }
        point = f"noise of 0.5 in {name}"
        if name in weights:
            points.append(Point(name=point, groups=pool, group_size=usual, weights=weights, estimators=noisy))
    return points


def study(points: Sequence[Point], step_groups: int, seed: int) -> list[Row]:
    """Judge all estimators at all points."""
    rows = []
    for point in points:
        halves = (smaller(point.groups[::2], point.group_size), smaller(point.groups[1::2], point.group_size))
        judged = judge(halves, point.weights, point.estimators, point.sections, step_groups, seed)
        for name in point.estimators:
            for section in point.sections:
                first, trust = judged.qualities[name, section][0], judged.trust[section]
                ratio, low, high = ratios(judged.qualities, name, section, step_groups)
                rows.append(
                    Row(
                        point=point.name,
                        name=name,
                        section=section,
                        cosine=first.cosine / trust,
                        limit=first.limit / trust,
                        ratio=ratio,
                        low=low,
                        high=high,
                        trust=trust,
                    )
                )
        print(table([row for row in rows if row.point == point.name]), flush=True)
    return rows


def table(rows: Sequence[Row]) -> str:
    """Write rows as Markdown."""
    lines = [
        "| at | tokens of | yardstick's own cosine | estimator | cosine | endless | samples, times GRPO's |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        place = f"{row.point} | {row.section} | {row.trust:.2f} | {row.name} | {row.cosine:.3f} | {row.limit:.3f}"
        lines.append(f"| {place} | {told_ratio(row)} |")
    return "\n".join(lines)


def told_ratio(row: Row) -> str:
    """The samples that an estimator needs, in words where there is no number."""
    if np.isnan([row.ratio, row.low, row.high]).any():
        return "unclear"
    value, low, high = ("never" if number > 1e6 else f"{number:.2f}" for number in (row.ratio, row.low, row.high))
    return f"{value} [{low}, {high}]"


def known_numbers(row: Mapping[str, object]) -> dict[str, object]:
    """A row as JSON can hold it: None where there is no number."""
    return {key: None if isinstance(value, float) and np.isnan(value) else value for key, value in row.items()}


def plot(rows: Sequence[Row], file: Path) -> None:
    """Draw the samples that estimators need over the group size."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(7, 4), layout="constrained")
    shown = [row for row in rows if row.point.startswith("group size") and row.section == TOTAL]
    for name in dict.fromkeys(row.name for row in shown):
        found = [row for row in shown if row.name == name and row.high < 1e6]
        sizes = [int(row.point.split()[-1]) for row in found]
        errors = [[row.ratio - row.low for row in found], [max(0.0, row.high - row.ratio) for row in found]]
        axis.errorbar(sizes, [row.ratio for row in found], np.maximum(errors, 0.0), label=name, marker="o", capsize=3)
    axis.set(xscale="log", yscale="log", xlabel="group size", ylabel="samples for GRPO's cosine, times GRPO's")
    axis.axhline(1.0, color="grey", linewidth=0.8)
    axis.legend()
    axis.grid(alpha=0.3)
    figure.savefig(file, dpi=130)
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/scoping"))
    parser.add_argument("--policy", type=Path, required=True, help="the folder of the policy that writes the pool")
    parser.add_argument("--recipe", default="quickstart", help="the recipe whose questions and rewards are studied")
    parser.add_argument("--groups", type=int, default=1000)
    parser.add_argument("--group-size", type=int, default=16)
    parser.add_argument("--step-groups", type=int, default=8, help="groups of a step whose direction is judged")
    parser.add_argument("--settings", nargs="*", default=[], help="settings of the run that samples the pool")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    import torch

    torch.set_num_threads(options.threads)
    folder: Path = options.folder.resolve()
    policy: Path = options.policy.resolve()
    run = sample_pool(folder, policy, options.recipe, options.groups, options.group_size, options.settings)
    config = with_lines(load_config(read_settings(RunFolder(root=run).config_file)))
    pool = make_pool(run, policy, config, folder / "gradients", options.groups, options.seed)
    signals = signal_rows(smaller(pool, min(8, options.group_size)), config.response.format)
    print(signal_table(signals), flush=True)
    rows = study(points_of(pool, config, options.seed), options.step_groups, options.seed)
    told = {
        "rows": [known_numbers(asdict(row)) for row in rows],
        "signals": [known_numbers(asdict(row)) for row in signals],
    }
    write_json(folder / "study.json", told, indent=2)
    plot(rows, folder / "study.png")


if __name__ == "__main__":
    sys.exit(run_command(main))
