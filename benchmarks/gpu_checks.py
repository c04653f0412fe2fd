"""Checks and timings of one GPU, in stages of less than ten minutes each: the shape of Qwen2.5-VL-3B, random weights.

    python benchmarks/gpu_checks.py                 the trainer: needs torch, transformers, numpy and pillow only
    python benchmarks/gpu_checks.py deepspeed       a rank as it trains: DeepSpeed as well (gpu_deepspeed.py)
    python benchmarks/gpu_checks.py engine          an engine as it samples: vLLM as well (gpu_engine.py)
    python benchmarks/gpu_checks.py --shape tiny --prompt-tokens 96 --response-tokens 8     any stage, anywhere

Each stage prints a table of checks and one of times, then everything as a JSON line, and ends with status 1 if a check
fails. What would begin later than ``--limit-seconds`` after the start is left out, and said to be.

The trainer's stage:

1. Every attention backend that works here gives the tiled backend's output and gradients on a random row.
2. Gradients with shared prefixes equal those without, in float32 (below 1e-5) and in bfloat16 (below 0.1).
3. The pass to log-probabilities takes less than a tenth of what all logits would.
4. Memory that is given back is free, and weights pass to another process through CUDA IPC with their checksums.
5. Update time with and without shared prefixes, through every backend, at each prompt length: tokens a second, and
   which share of the card's own matrix product (measured here) the arithmetic of the update reaches.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from stage import Check, Clock
from workload import SHAPES, GroupShape, build_group, build_model, markdown, report, shape_text

from rsgrpo.config import Dtype
from rsgrpo.types import TrainingGroup

Groups = dict[int, list[TrainingGroup]]
Found = tuple[list[Check], list[dict[str, Any]]]
Stage = Callable[[argparse.Namespace, Path, Groups, torch.device, Clock], Found]

_ENGINE_PROMPTS = 16


def trainer(options: argparse.Namespace, folder: Path, groups: Groups, device: torch.device, clock: Clock) -> Found:
    """Kernels, exactness, memory and speed of the trainer."""
    from gpu_trainer import run

    return run(options, folder, groups, device, clock)


def deepspeed(options: argparse.Namespace, folder: Path, groups: Groups, device: torch.device, clock: Clock) -> Found:
    """A rank under every ZeRO stage."""
    if device.type != "cuda":
        os.environ["DS_ACCELERATOR"] = "cpu"
    if importlib.util.find_spec("deepspeed") is None:
        return [Check(name="ZeRO", passed=None, detail="DeepSpeed is not installed")], []
    from gpu_deepspeed import STAGES, check_stage, is_right, one_rank

    prompt_tokens = min(groups)
    budget = prompt_tokens + options.num_responses * options.response_tokens
    checks: list[Check] = []
    rows: list[dict[str, Any]] = []
    precisions: tuple[Dtype, ...] = ("bfloat16",) if device.type == "cuda" else ("float32", "bfloat16")
    with one_rank(device):
        for dtype in precisions:
            for zero_stage in STAGES:
                name = f"ZeRO {zero_stage}, {dtype}: as torch's AdamW, and little left when lent"
                if not clock.has_time(name):
                    checks.append(Check(name=name, passed=None, detail="left out: no time"))
                    continue
                found = check_stage(folder, dtype, zero_stage, groups[prompt_tokens], budget, options.repeats, device)
                detail = f"{found.gap:.2e} nats apart, {found.left_bytes / 2**20:.1f} MiB left"
                checks.append(Check(name=name, passed=is_right(found, dtype, device), detail=detail))
                rows.append(found.row)
    return checks, rows


def engine(options: argparse.Namespace, folder: Path, groups: Groups, device: torch.device, clock: Clock) -> Found:
    """An engine that samples, sleeps and wakes up."""
    os.environ["VLLM_ALLOW_INSECURE_SERIALIZATION"] = "1"  # as the pool starts its engines
    if device.type != "cuda":
        os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1"}
    if importlib.util.find_spec("vllm") is None:
        return [Check(name="engine", passed=None, detail="vLLM is not installed")], []
    from gpu_engine import check_engine

    shape = _shape(options, min(groups))
    asked = [build_group(shape, folder.parent / "asked", seed=seed) for seed in range(_ENGINE_PROMPTS)]
    clock.note("the engine")
    findings, rows = check_engine(
        folder, asked, num_responses=options.num_responses, response_tokens=options.response_tokens, device=device
    )
    return [Check(name=name, passed=passed, detail=detail) for name, passed, detail in findings], rows


def _shape(options: argparse.Namespace, prompt_tokens: int) -> GroupShape:
    return GroupShape(
        prompt_tokens=prompt_tokens,
        response_tokens=options.response_tokens,
        num_responses=options.num_responses,
        num_images=options.pages,
    )


STAGES: dict[str, Stage] = {"trainer": trainer, "deepspeed": deepspeed, "engine": engine}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=STAGES, nargs="?", default="trainer")
    parser.add_argument("--shape", choices=sorted(SHAPES), default="3b")
    parser.add_argument("--prompt-tokens", type=int, nargs="+", default=[2048, 8192])
    parser.add_argument("--response-tokens", type=int, default=256)
    parser.add_argument("--num-responses", type=int, default=8)
    parser.add_argument("--pages", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--limit-seconds", type=float, default=420.0, help="nothing begins later than this")
    options = parser.parse_args()
    clock = Clock(options.limit_seconds)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.backends.cuda.matmul.allow_tf32 = False
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        clock.note("writing the model")
        with device:
            folder = build_model(SHAPES[options.shape], place / "model", dtype=torch.bfloat16)
        groups = {
            prompt: [build_group(_shape(options, prompt), place / f"pages-{prompt}")]
            for prompt in options.prompt_tokens
        }
        checks, rows = STAGES[options.stage](options, folder, groups, device, clock)
    lines = [
        {"check": check.name, "result": {True: "ok", False: "FAILED", None: "-"}[check.passed], "detail": check.detail}
        for check in checks
    ]
    print(markdown(lines) + "\n")
    report("gpu_checks", options, rows, checks=lines, model=shape_text(SHAPES[options.shape]))
    sys.exit(any(check.passed is False for check in checks))


if __name__ == "__main__":
    main()
