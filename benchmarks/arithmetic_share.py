"""An update's arithmetic against the machine's own matrix product: which share of it the update reaches.

Both run in this process, in the same precision. The machine's figure is the best of a few plain matrix products of
sizes that the model has. The update's arithmetic is counted by torch while it runs: every matrix product, recomputation
in the backward pass included. What else the time goes to is profiled in a further update.

    python benchmarks/arithmetic_share.py                      hidden 1,024, float32, on 2 CPU threads
    python benchmarks/arithmetic_share.py --dtype bfloat16     where there is a GPU
"""

from __future__ import annotations

import argparse
import gc
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from bare_step import BareStep
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode
from workload import GroupShape, ModelShape, build_group, build_model, report, shape_text

from rsgrpo.config import ModelConfig
from rsgrpo.types import TrainingGroup

# Of a profiled operation, by a part of its name; the first that fits.
_KINDS = {
    "matrix products": ("mm", "linear", "conv"),
    "softmax and scores": ("softmax", "exp", "logsumexp", "maximum", "amax"),
    "copies and changes of type": ("copy", "cat", "index", "gather", "scatter", "contiguous", "clone", "pad", "to"),
    "optimizer": ("foreach", "lerp", "addcdiv", "addcmul"),
    "other elementwise": ("mul", "add", "sub", "div", "silu", "sigmoid", "rsqrt", "pow", "mean", "sum", "neg", "where"),
}


def product_rate(device: torch.device, dtype: torch.dtype, shapes: list[tuple[int, int, int]], seconds: float) -> float:
    """Most floating-point operations a second of a plain matrix product, over some sizes.

    Args:
        device: the device that computes them.
        dtype: the precision of operands and result.
        shapes: each product as its numbers of rows, inner elements and columns.
        seconds: how long each product is repeated, in seconds.
    """
    best = 0.0
    for rows, inner, columns in shapes:
        left = torch.randn(rows, inner, device=device, dtype=dtype)
        right = torch.randn(inner, columns, device=device, dtype=dtype)
        out = torch.empty(rows, columns, device=device, dtype=dtype)
        torch.mm(left, right, out=out)
        until = time.perf_counter() + seconds
        while time.perf_counter() < until:
            wait(device)
            start = time.perf_counter()
            for _ in range(3):
                torch.mm(left, right, out=out)
            wait(device)
            best = max(best, 3 * 2 * rows * inner * columns / (time.perf_counter() - start))
    return best


def wait(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def counted_operations(step: BareStep, groups: list[TrainingGroup], *, budget: int, share_prefix: bool = True) -> int:
    """Floating-point operations of all matrix products of an update; attention must be made of them (backend tiled)."""
    with FlopCounterMode(display=False) as counter:
        step.update(groups, budget=budget, share_prefix=share_prefix)
    return int(counter.get_total_flops())


def update_seconds(
    step: BareStep, groups: list[TrainingGroup], *, budget: int, repeats: int, device: torch.device
) -> list[float]:
    """Seconds of each of some updates, after one that warms up."""
    found = []
    for repeat in range(repeats + 1):
        wait(device)
        start = time.perf_counter()
        step.update(groups, budget=budget, share_prefix=True)
        wait(device)
        if repeat:
            found.append(time.perf_counter() - start)
    return found


def time_by_kind(step: BareStep, groups: list[TrainingGroup], *, budget: int, device: torch.device) -> dict[str, float]:
    """Share of the time of a profiled update by kind of operation; ``outside`` is what no operation accounts for."""
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device.type == "cuda" else [])
    start = time.perf_counter()
    with profile(activities=activities) as profiler:
        step.update(groups, budget=budget, share_prefix=True)
        wait(device)
    total = time.perf_counter() - start
    shares = dict.fromkeys([*_KINDS, "other operations"], 0.0)
    for operation in profiler.key_averages():
        own = operation.self_device_time_total if device.type == "cuda" else operation.self_cpu_time_total
        name = operation.key.rpartition("::")[2].lower()
        kind = next((kind for kind, parts in _KINDS.items() if any(part in name for part in parts)), "other operations")
        shares[kind] += own / 1e6 / total
    return {**shares, "outside": max(0.0, 1.0 - sum(shares.values()))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--prompt-tokens", type=int, default=1024)
    parser.add_argument("--response-tokens", type=int, default=256)
    parser.add_argument("--num-responses", type=int, default=8)
    parser.add_argument("--pages", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--no-recomputation", action="store_true", help="keep activations instead")
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if options.dtype == "bfloat16" else torch.float32
    hidden = options.hidden
    shape = ModelShape(
        hidden=hidden,
        intermediate=hidden * 11008 // 2048,
        layers=options.layers,
        heads=hidden // 128,
        key_heads=2,
        vocabulary=4608,
        vision_hidden=hidden * 5 // 8,
        vision_intermediate=hidden * 3420 // 2048,
        vision_layers=options.layers,
        vision_heads=hidden // 128,
    )
    budget = options.prompt_tokens + options.num_responses * options.response_tokens
    settings = ModelConfig(dtype=options.dtype, gradient_checkpointing=not options.no_recomputation)
    with tempfile.TemporaryDirectory() as name:
        folder = build_model(shape, Path(name) / "model", dtype=dtype)
        group = GroupShape(
            prompt_tokens=options.prompt_tokens,
            response_tokens=options.response_tokens,
            num_responses=options.num_responses,
            num_images=options.pages,
        )
        groups = [build_group(group, Path(name) / "pages")]
        tiled = BareStep(folder, ModelConfig(dtype=options.dtype, attention="sdpa"), device)
        operations = counted_operations(tiled, groups, budget=budget)
        del tiled
        gc.collect()
        step = BareStep(folder, settings, device)
        shapes = [(budget, hidden, shape.intermediate), (budget, shape.intermediate, hidden), (2048, 2048, 2048)]
        rates, seconds = [], []
        for _ in range(options.repeats):  # in turns: a machine's speed changes while one measures
            rates.append(product_rate(device, dtype, shapes, 0.5))
            seconds += update_seconds(step, groups, budget=budget, repeats=1, device=device)
        rate, took = max(rates), statistics.median(seconds)
        kinds = time_by_kind(step, groups, budget=budget, device=device)
    rows: list[dict[str, Any]] = [
        {
            "tokens of the row": budget,
            "seconds": took,
            "10⁹ operations": operations / 1e9,
            "10⁹ operations a second": operations / took / 1e9,
            "matrix product alone": rate / 1e9,
            "share": operations / took / rate,
        }
    ]
    print("\n".join(f"{share:7.1%}  {kind}" for kind, share in sorted(kinds.items(), key=lambda item: -item[1])) + "\n")
    report("arithmetic_share", options, rows, time_by_kind=kinds, model=shape_text(shape))


if __name__ == "__main__":
    main()
