"""How the time of an update grows: with prompt length, responses, images and ranks.

One thing changes at a time around a prompt of 1,024 tokens with 4 pages and 8 responses of 64 tokens, on a small
model, through the production path without Ray (``update_step.py``). ``arithmetic`` is how multiplications grow:
matrices by packed tokens, attention by pairs of a query and a key that it sees, the vision tower by image tokens.
Ranks are processes of one thread each that share a step of four groups; on two cores more than two say nothing.

    python benchmarks/growth.py
"""

from __future__ import annotations

import argparse
import dataclasses
import multiprocessing
import os
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch.multiprocessing.spawn import spawn
from update_step import OPTIMIZER, MeasuredWorker, Timing, bench_config
from workload import SHAPES, GroupShape, ModelShape, build_group, build_model, report, shape_text

from rsgrpo.model.micro_batches import attention_pairs, balance
from rsgrpo.model.setup import WorkerSpec
from rsgrpo.types import TrainingGroup

BASE = GroupShape(prompt_tokens=1024, response_tokens=64, num_responses=8, num_images=4)
SWEEPS: dict[str, list[GroupShape]] = {
    "prompt tokens": [dataclasses.replace(BASE, prompt_tokens=n) for n in (512, 1024, 2048, 4096)],
    "responses": [dataclasses.replace(BASE, num_responses=n) for n in (1, 4, 8, 16)],
    "images": [dataclasses.replace(BASE, num_images=n) for n in (0, 1, 4, 8)],
}
VALUE = {"prompt tokens": "prompt_tokens", "responses": "num_responses", "images": "num_images"}


def multiplications(shape: GroupShape, model: ModelShape) -> float:
    """Multiply-adds of a forward pass over one group; images are half of the prompt in all."""
    layer = 2 * model.hidden**2 * (1 + model.key_heads / model.heads) + 3 * model.hidden * model.intermediate
    lengths = [shape.response_tokens] * shape.num_responses
    pairs = attention_pairs(shape.prompt_tokens, lengths)
    language = model.layers * ((shape.prompt_tokens + sum(lengths)) * layer + 2 * pairs * model.hidden)
    head = sum(lengths) * model.hidden * model.vocabulary
    vision_layer = 4 * model.vision_hidden**2 + 3 * model.vision_hidden * model.vision_intermediate
    patches = 4 * shape.prompt_tokens / 2 if shape.num_images else 0
    # forward, and twice as much backward for what is trained
    return 3 * (language + head) + model.vision_layers * patches * vision_layer


def _medians(worker: MeasuredWorker, cases: list[list[TrainingGroup]], repeats: int) -> list[Timing]:
    """Median time of each case, in turns, after one round to warm up."""
    timings: list[list[Timing]] = [[] for _ in cases]
    for repeat in range(repeats + 1):
        for own, groups in zip(timings, cases, strict=True):
            timing = worker.timed_update(groups)
            if repeat:
                own.append(timing)
    return [
        dataclasses.replace(
            own[0],
            seconds=statistics.median(measured.seconds for measured in own),
            cpu_seconds=statistics.median(measured.cpu_seconds for measured in own),
        )
        for own in timings
    ]


def sweep(options: argparse.Namespace, folder: Path, place: Path) -> list[dict[str, Any]]:
    """A table row for each case, relative to the first of its sweep."""
    worker = MeasuredWorker.start(bench_config(budget=10**5, frozen=True), folder, num_threads=1)
    rows: list[dict[str, Any]] = []
    for name, shapes in SWEEPS.items():
        cases = [[build_group(shape, place / f"{name}-{i}")] for i, shape in enumerate(shapes)]
        medians = _medians(worker, cases, options.repeats)
        work = [multiplications(shape, SHAPES[options.shape]) for shape in shapes]
        for shape, timing, multiplied in zip(shapes, medians, work, strict=True):
            rows.append(
                {
                    "what grows": name,
                    "value": getattr(shape, VALUE[name]),
                    "seconds": round(timing.seconds, 3),
                    "cpu seconds": round(timing.cpu_seconds, 3),
                    "times the first": round(timing.cpu_seconds / medians[0].cpu_seconds, 2),
                    "arithmetic": round(multiplied / work[0], 2),
                }
            )
    worker.close()
    return rows


def run_rank(rank: int, size: int, told: Any, options: argparse.Namespace, folder: Path, place: Path) -> None:
    """One rank's updates; rank 0 writes the medians."""
    os.environ["DS_ACCELERATOR"] = "cpu"
    # All responses of a group fit into a row, and a row holds one group: the ranks run as many rows each.
    config = bench_config(budget=BASE.prompt_tokens + BASE.num_responses * BASE.response_tokens, frozen=True)
    worker = MeasuredWorker(
        WorkerSpec(config=config, model_folder=folder, rank=rank, world_size=size, device="cpu", num_threads=1)
    )
    if rank == 0:
        address = worker.address()
        for _ in range(size):
            told.put(address)
    worker.load(told.get())
    worker.begin_stage(OPTIMIZER, 10**6)
    groups = [build_group(BASE, place / f"ranks-{size}-{rank}", seed=i, num_groups=4) for i in range(4)]
    own = [groups[i] for i in balance([1] * len(groups), size)[rank]]
    median = _medians(worker, [own], options.repeats)[0]
    if rank == 0:
        torch.save((median.seconds, median.cpu_seconds), place / f"ranks-{size}.pt")
    worker.close()


def ranks(options: argparse.Namespace, folder: Path, place: Path) -> list[dict[str, Any]]:
    """A table row for each number of ranks."""
    rows: list[dict[str, Any]] = []
    for size in options.ranks:
        told = multiprocessing.get_context("spawn").Queue()
        spawn(run_rank, (size, told, options, folder, place), nprocs=size)
        seconds, cpu_seconds = torch.load(place / f"ranks-{size}.pt")
        first = rows[0]["cpu seconds"] if rows else cpu_seconds
        rows.append(
            {
                "what grows": "ranks",
                "value": size,
                "seconds": round(seconds, 3),
                "cpu seconds": round(cpu_seconds, 3),
                "times the first": round(cpu_seconds / first, 2),
                "arithmetic": round(options.ranks[0] / size, 2),
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=sorted(SHAPES), default="tiny")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--ranks", type=int, nargs="*", default=[1, 2])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        folder = build_model(SHAPES[options.shape], place / "model")
        rows = [*sweep(options, folder, place), *ranks(options, folder, place)]
        report("growth", options, rows, model=shape_text(SHAPES[options.shape]))


if __name__ == "__main__":
    main()
