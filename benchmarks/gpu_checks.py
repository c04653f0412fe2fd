"""All checks and timings for one GPU in one command: the shape of Qwen2.5-VL-3B with random weights.

    python benchmarks/gpu_checks.py
    python benchmarks/gpu_checks.py --shape tiny --prompt-tokens 96 --response-tokens 8    (anywhere, in seconds)

Needs torch, transformers, numpy and pillow only: the update is the trainer's model, rows and loss with torch's
AdamW, without Ray and DeepSpeed. Prints a table of checks and one of update times, then everything as a JSON line; ends
with status 1 if a check fails.

1. Every attention door that works here gives the tiled door's output and gradients on a random row.
2. Gradients with shared prefixes equal those without, in float32 (below 1e-5) and in bfloat16 (below 0.1).
3. The pass to log-probabilities takes less than a tenth of what all logits would.
4. The engine's log-probabilities agree with the trainer's, where vLLM is installed (``--no-engine`` leaves it out).
5. Memory that is given back is free, and weights pass to another process through CUDA IPC with their checksums.
6. Update time with and without shared prefixes, through every door, at each prompt length.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import math
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bare_step import BareStep
from gpu_transfer import check_cuda_ipc, check_memory
from logprob_memory import Peak
from workload import SHAPES, GroupShape, build_group, build_model, markdown, report, shape_text

from rsgrpo.attention import door_problem, make_plan, packed_attention
from rsgrpo.batching import Piece, lay_out
from rsgrpo.config import Config, DataConfig, ModelConfig, RolloutConfig, SamplingConfig
from rsgrpo.logprobs import response_logprobs
from rsgrpo.types import TrainingGroup, TrainingResponse

_SETTINGS = {"tiled": "sdpa", "varlen": "flash", "flex": "flex"}  # door -> model.attention
_MAX_GAPS = {torch.float32: 1e-5, torch.bfloat16: 0.1}
_START = time.perf_counter()


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """A line of the first table; ``passed`` is None where the check cannot be made."""

    name: str
    passed: bool | None
    detail: str


def note(text: str) -> None:
    """A line of progress, with the time since the start."""
    print(f"{time.perf_counter() - _START:7.1f} s  {text}", file=sys.stderr, flush=True)


def gap(got: list[torch.Tensor], want: list[torch.Tensor]) -> float:
    """|got - want| / |want| over all tensors together."""
    apart = sum(float((a - b).double().square().sum()) for a, b in zip(got, want, strict=True))
    return math.sqrt(apart / sum(float(b.double().square().sum()) for b in want))


def working_doors(device: torch.device, dtype: torch.dtype) -> list[str]:
    """Doors that can be used, the tiled one first."""
    return ["tiled", *[door for door in ("varlen", "flex") if not door_problem(door, device=device, dtype=dtype)]]


def check_doors(device: torch.device, dtype: torch.dtype) -> list[Check]:
    """Output and gradients of every door on a row of two prompts with 5 ragged responses."""
    row = lay_out(
        [
            Piece(group=0, responses=(0, 1, 2), num_prompt_tokens=700, response_lengths=(130, 64, 1)),
            Piece(group=1, responses=(0, 1), num_prompt_tokens=33, response_lengths=(300, 7)),
        ]
    )
    generator = torch.Generator(device).manual_seed(0)
    inputs = [
        torch.randn(1, heads, row.num_tokens, 128, device=device, dtype=dtype, generator=generator).requires_grad_()
        for heads in (8, 2, 2)
    ]
    upstream = torch.randn(1, row.num_tokens, 8, 128, device=device, dtype=dtype, generator=generator)

    def through(door: str) -> list[torch.Tensor]:
        plan = make_plan(door, row, device=device)
        query, key, value = inputs
        out, _ = packed_attention(torch.nn.Identity(), query, key, value, None, scaling=128**-0.5, attention_plan=plan)
        return [part.detach().float() for part in (out, *torch.autograd.grad(out, inputs, upstream))]

    expected = through("tiled")
    checks = []
    for door in ("varlen", "flex"):
        name = f"door {door} = door tiled, {dtype}"
        problem = door_problem(door, device=device, dtype=dtype)
        if problem:
            checks.append(Check(name=name, passed=None, detail=problem))
            continue
        found = gap(through(door), expected)
        checks.append(Check(name=name, passed=found < max(1e-4, _MAX_GAPS[dtype]), detail=f"relative gap {found:.2e}"))
    return checks


def check_sharing(step: BareStep, groups: list[TrainingGroup], budget: int, dtype: torch.dtype) -> Check:
    """One gradient, whether prompts are shared or not."""
    found = gap(
        step.gradient(groups, budget=budget, share_prefix=True),
        step.gradient(groups, budget=budget, share_prefix=False),
    )
    return Check(
        name=f"gradient shared = unshared, {dtype}, door {step.rows.choice.door}",
        passed=found < _MAX_GAPS[dtype],
        detail=f"relative gap {found:.2e}",
    )


def check_logprob_memory(options: argparse.Namespace, device: torch.device, dtype: torch.dtype) -> Check:
    """Peak of the pass, gradients of its inputs apart, against a float32 logit for every token and word."""
    shape = SHAPES[options.shape]
    num_responses = options.num_responses * options.response_tokens
    num_all = options.num_responses * (options.prompt_tokens[0] + options.response_tokens)
    hidden = torch.randn(num_responses, shape.hidden, device=device, dtype=dtype).requires_grad_()
    weight = torch.randn(shape.vocabulary, shape.hidden, device=device, dtype=dtype).requires_grad_()
    hidden.grad, weight.grad = torch.zeros_like(hidden), torch.zeros_like(weight)
    targets = torch.randint(0, shape.vocabulary, (num_responses,), device=device)
    with Peak(device) as peak:
        response_logprobs(hidden, weight, targets)[0].sum().backward()
    share = peak.bytes / (num_all * shape.vocabulary * 4)
    return Check(
        name=f"memory of the log-probability pass, {dtype}",
        # On a CPU a small pass drowns in what the process itself takes.
        passed=share < 0.1 if device.type == "cuda" else None,
        detail=f"{peak.bytes / 2**20:.0f} MiB, {share:.4f} of all logits",
    )


def check_engine(options: argparse.Namespace, folder: Path, groups: list[TrainingGroup], device: torch.device) -> Check:
    """Log-probabilities of freshly sampled responses, engine against trainer, same weights."""
    name = "log-probabilities, engine = trainer"
    if options.no_engine or importlib.util.find_spec("vllm") is None:
        return Check(name=name, passed=None, detail="left out" if options.no_engine else "vLLM is not installed")
    from rollout.vllm_engine import EngineSpec, VllmEngine
    from rsgrpo.types import PromptedSample, Sample

    dtype = "bfloat16" if device.type == "cuda" else "float32"
    need = options.prompt_tokens[0] + 64
    sampling = SamplingConfig(max_response_tokens=32)
    config = Config(
        stage="sft",  # asks for no rewards
        model=ModelConfig(dtype=dtype),
        data=DataConfig(min_pixels=784, max_pixels=10**8, max_prompt_tokens=10**6),
        rollout=RolloutConfig(sampling=sampling, max_model_tokens=need, gpu_memory_frac=0.4, enforce_eager=True),
    )
    engine = VllmEngine(
        EngineSpec(config=config, model_folder=folder, device="gpu" if device.type == "cuda" else "cpu")
    )
    prompt = groups[0].prompt
    sample = Sample(sample_id=prompt.sample_id, question="", images=prompt.images)
    sampled = engine.generate(
        [PromptedSample(sample=sample, prompt=prompt)],
        num_samples=4,
        sampling=sampling,
        seed=0,
    )[0].rollouts
    zeros = np.zeros(32, dtype=np.float32)
    group = TrainingGroup(
        sample_id=prompt.sample_id,
        prompt=prompt,
        prompt_token_ids=None,
        responses=tuple(
            TrainingResponse(
                response_index=i,
                token_ids=one.token_ids,
                positive=zeros[: len(one.token_ids)],
                negative=zeros[: len(one.token_ids)],
            )
            for i, one in enumerate(sampled)
        ),
    )
    step = BareStep(folder, ModelConfig(dtype=dtype, gradient_checkpointing=False), device)
    own = step.logprobs([group], budget=10**6)
    apart = np.abs(own - np.concatenate([one.logprobs for one in sampled]))
    return Check(
        name=name,
        passed=bool(apart.mean() < (0.02 if dtype == "bfloat16" else 1e-4)),
        detail=f"mean {apart.mean():.2e}, largest {apart.max():.2e} nats over {len(apart)} tokens, {dtype}",
    )


def timed_rows(
    step: BareStep, groups: list[TrainingGroup], options: argparse.Namespace, prompt_tokens: int, device: torch.device
) -> list[dict[str, Any]]:
    """Shared and unshared updates in turns; medians."""
    budget = prompt_tokens + options.num_responses * options.response_tokens
    seconds: dict[bool, list[float]] = {True: [], False: []}
    num_rows: dict[bool, int] = {}
    peaks: dict[bool, float] = {}
    for repeat in range(options.repeats + 1):
        for share_prefix in seconds:
            with Peak(device) as peak:
                start = time.perf_counter()
                num_rows[share_prefix] = step.update(groups, budget=budget, share_prefix=share_prefix)
                if device.type == "cuda":
                    torch.cuda.synchronize()
                took = time.perf_counter() - start
            if repeat:  # the first one compiles and warms up
                seconds[share_prefix].append(took)
                peaks[share_prefix] = peak.bytes / 2**30
    medians = {share_prefix: statistics.median(own) for share_prefix, own in seconds.items()}
    return [
        {
            "prompt tokens": prompt_tokens,
            "door": step.rows.choice.door,
            "path": "shared" if share_prefix else "unshared",
            "seconds": medians[share_prefix],
            "times shared": medians[share_prefix] / medians[True],
            "rows": num_rows[share_prefix],
            "peak GiB above weights": peaks[share_prefix],
        }
        for share_prefix in seconds
    ]


def group_of(options: argparse.Namespace, prompt_tokens: int, place: Path) -> list[TrainingGroup]:
    shape = GroupShape(
        prompt_tokens=prompt_tokens,
        response_tokens=options.response_tokens,
        num_responses=options.num_responses,
        pages=options.pages,
    )
    return [build_group(shape, place / f"pages-{prompt_tokens}")]


def run_door(
    door: str,
    dtype: torch.dtype,
    folder: Path,
    groups: dict[int, list[TrainingGroup]],
    options: argparse.Namespace,
    device: torch.device,
) -> tuple[list[Check], list[dict[str, Any]]]:
    """Checks of a door and, in bfloat16, its times."""
    note(f"door {door}, {dtype}")
    precision = "bfloat16" if dtype == torch.bfloat16 else "float32"
    step = BareStep(folder, ModelConfig(dtype=precision, attention=_SETTINGS[door]), device)
    first = options.prompt_tokens[0]
    budget = first + options.num_responses * options.response_tokens
    checks = [check_sharing(step, groups[first], budget, dtype)]
    rows: list[dict[str, Any]] = []
    if dtype == torch.bfloat16:
        for prompt_tokens, own in groups.items():
            rows += timed_rows(step, own, options, prompt_tokens, device)
    del step
    gc.collect()
    torch.cuda.empty_cache()
    return checks, rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=sorted(SHAPES), default="3b")
    parser.add_argument("--prompt-tokens", type=int, nargs="+", default=[2048, 8192])
    parser.add_argument("--response-tokens", type=int, default=256)
    parser.add_argument("--num-responses", type=int, default=8)
    parser.add_argument("--pages", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--no-engine", action="store_true", help="leave vLLM out")
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.backends.cuda.matmul.allow_tf32 = False
    checks: list[Check] = []
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        note("writing the model")
        with device:
            folder = build_model(SHAPES[options.shape], place / "model", dtype=torch.bfloat16)
        groups = {prompt: group_of(options, prompt, place) for prompt in options.prompt_tokens}
        for dtype in (torch.float32, torch.bfloat16):
            checks += [*check_doors(device, dtype), check_logprob_memory(options, device, dtype)]
            for door in working_doors(device, dtype):
                more_checks, more_rows = run_door(door, dtype, folder, groups, options, device)
                checks += more_checks
                rows += more_rows
        for check in (check_memory, check_cuda_ipc):
            title, passed, detail = check(device)
            checks.append(Check(name=title, passed=passed, detail=detail))
        checks.append(check_engine(options, folder, groups[options.prompt_tokens[0]], device))
    lines = [
        {"check": one.name, "result": {True: "ok", False: "FAILED", None: "-"}[one.passed], "detail": one.detail}
        for one in checks
    ]
    print(markdown(lines) + "\n")
    report("gpu_checks", options, rows, checks=lines, model=shape_text(SHAPES[options.shape]))
    sys.exit(any(one.passed is False for one in checks))


if __name__ == "__main__":
    main()
