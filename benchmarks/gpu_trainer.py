"""The trainer's checks and timings on one GPU: ``gpu_checks.py`` runs them. Needs torch and transformers only."""

from __future__ import annotations

import argparse
import gc
import math
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from arithmetic_share import counted_operations, product_rate, wait
from bare_step import BareStep
from gpu_transfer import check_cuda_ipc, check_memory
from logprob_memory import Peak
from stage import Check, Clock
from workload import SHAPES

from rsgrpo.config import Attention, Dtype, ModelConfig
from rsgrpo.model.attention.backend import backend_problem, make_plan, packed_attention
from rsgrpo.model.logprobs import response_logprobs
from rsgrpo.model.micro_batches import Segment, pack
from rsgrpo.types import TrainingGroup

_SETTINGS: dict[str, Attention] = {"tiled": "sdpa", "varlen": "flash", "flex": "flex"}  # backend -> model.attention
_MAX_GAPS = {torch.float32: 1e-5, torch.bfloat16: 0.1}


@dataclass(kw_only=True, slots=True)
class Measured:
    """What the stage found so far.

    Attributes:
        product_rate: operations a second of the card's own matrix product, bfloat16.
        operations: of an update's matrix products, by prompt tokens and whether prefixes are shared.
        checks: lines of the first table.
        rows: of the second.
    """

    product_rate: float
    operations: dict[tuple[int, bool], int] = field(default_factory=dict)
    checks: list[Check] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)


def gap(got: list[torch.Tensor], want: list[torch.Tensor]) -> float:
    """|got - want| / |want| over all tensors together."""
    apart = sum(float((a - b).double().square().sum()) for a, b in zip(got, want, strict=True))
    return math.sqrt(apart / sum(float(b.double().square().sum()) for b in want))


def working_backends(device: torch.device, dtype: torch.dtype) -> list[str]:
    """Backends that can be used, the tiled one first."""
    return [
        "tiled",
        *[backend for backend in ("varlen", "flex") if not backend_problem(backend, device=device, dtype=dtype)],
    ]


def check_doors(device: torch.device, dtype: torch.dtype) -> list[Check]:
    """Output and gradients of every backend on a row of two prompts with 5 ragged responses."""
    row = pack(
        [
            Segment(group=0, responses=(0, 1, 2), num_prompt_tokens=700, response_lengths=(130, 64, 1)),
            Segment(group=1, responses=(0, 1), num_prompt_tokens=33, response_lengths=(300, 7)),
        ]
    )
    generator = torch.Generator(device).manual_seed(0)
    inputs = [
        torch.randn(1, heads, row.num_tokens, 128, device=device, dtype=dtype, generator=generator).requires_grad_()
        for heads in (8, 2, 2)
    ]
    upstream = torch.randn(1, row.num_tokens, 8, 128, device=device, dtype=dtype, generator=generator)

    def through(backend: str) -> list[torch.Tensor]:
        plan = make_plan(backend, row, device=device)
        query, key, value = inputs
        out, _ = packed_attention(torch.nn.Identity(), query, key, value, None, scaling=128**-0.5, attention_plan=plan)
        return [part.detach().float() for part in (out, *torch.autograd.grad(out, inputs, upstream))]

    expected = through("tiled")
    checks = []
    for backend in ("varlen", "flex"):
        name = f"backend {backend} = backend tiled, {dtype}"
        problem = backend_problem(backend, device=device, dtype=dtype)
        if problem:
            checks.append(Check(name=name, passed=None, detail=problem))
            continue
        found = gap(through(backend), expected)
        checks.append(Check(name=name, passed=found < max(1e-4, _MAX_GAPS[dtype]), detail=f"relative gap {found:.2e}"))
    return checks


def check_sharing(step: BareStep, groups: list[TrainingGroup], budget: int, dtype: torch.dtype) -> Check:
    """Check that the gradient is the same, whether prompts are shared or not."""
    found = gap(
        step.gradient(groups, budget=budget, share_prefix=True),
        step.gradient(groups, budget=budget, share_prefix=False),
    )
    return Check(
        name=f"gradient shared = unshared, {dtype}, backend {step.rows.choice.backend}",
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


def timed_rows(
    step: BareStep,
    groups: list[TrainingGroup],
    options: argparse.Namespace,
    prompt_tokens: int,
    device: torch.device,
    operations: dict[tuple[int, bool], int],
    rate: float,
) -> list[dict[str, Any]]:
    """Median times of updates with shared and unshared prompts, taken in turns.

    Args:
        step: the step to time, with its attention backend.
        groups: the groups that are trained on.
        options: the sizes and repeats that were asked for.
        prompt_tokens: how long the prompts of these groups are, in tokens.
        device: the device that trains.
        operations: how many operations the matrix products of an update take, by prompt tokens and path.
        rate: operations a second of the card's own matrix product.
    """
    budget = prompt_tokens + options.num_responses * options.response_tokens
    seconds: dict[bool, list[float]] = {True: [], False: []}
    num_rows: dict[bool, int] = {}
    peaks: dict[bool, float] = {}
    for repeat in range(options.repeats + 1):
        for share_prefix in seconds:
            with Peak(device) as peak:
                start = time.perf_counter()
                num_rows[share_prefix] = step.update(groups, budget=budget, share_prefix=share_prefix)
                wait(device)
                took = time.perf_counter() - start
            if repeat:  # the first one compiles and warms up
                seconds[share_prefix].append(took)
                peaks[share_prefix] = peak.bytes / 2**30
    medians = {share_prefix: statistics.median(own) for share_prefix, own in seconds.items()}
    return [
        {
            "prompt tokens": prompt_tokens,
            "backend": step.rows.choice.backend,
            "path": "shared" if share_prefix else "unshared",
            "seconds": medians[share_prefix],
            "times shared": medians[share_prefix] / medians[True],
            # Of what a plain trainer would push through: every response with its own prompt.
            "tokens/s": options.num_responses * (prompt_tokens + options.response_tokens) / medians[share_prefix],
            "share of the matrix product": operations[prompt_tokens, share_prefix] / medians[share_prefix] / rate,
            "rows": num_rows[share_prefix],
            "peak GiB above weights": peaks[share_prefix],
        }
        for share_prefix in seconds
    ]


def run_backend(
    backend: str,
    dtype: torch.dtype,
    folder: Path,
    groups: dict[int, list[TrainingGroup]],
    options: argparse.Namespace,
    device: torch.device,
    clock: Clock,
    measured: Measured,
) -> None:
    """Checks of a backend and, in bfloat16, its times.

    Args:
        backend: the name of the attention backend to measure.
        dtype: the precision of the model.
        folder: the folder that holds the model.
        groups: the groups that are trained on, by their prompt tokens.
        options: the sizes and repeats that were asked for.
        device: the device that trains.
        clock: the clock that says whether there is time for more.
        measured: the list that takes what is found.
    """
    if not clock.has_time(f"backend {backend}, {dtype}"):
        measured.checks.append(Check(name=f"backend {backend}, {dtype}", passed=None, detail="left out: no time"))
        return
    precision: Dtype = "bfloat16" if dtype == torch.bfloat16 else "float32"
    step = BareStep(folder, ModelConfig(dtype=precision, attention=_SETTINGS[backend]), device)
    first = min(groups)
    budget = first + options.num_responses * options.response_tokens
    measured.checks.append(check_sharing(step, groups[first], budget, dtype))
    if dtype == torch.bfloat16:
        for prompt_tokens, own in groups.items():
            if not clock.has_time(f"backend {backend}, {prompt_tokens} prompt tokens"):
                break
            row_tokens = prompt_tokens + options.num_responses * options.response_tokens
            for share_prefix in (True, False):
                # The tiled backend comes first, and is made of matrix products that torch can count.
                if (prompt_tokens, share_prefix) not in measured.operations:
                    measured.operations[prompt_tokens, share_prefix] = counted_operations(
                        step, own, budget=row_tokens, share_prefix=share_prefix
                    )
            measured.rows += timed_rows(
                step, own, options, prompt_tokens, device, measured.operations, measured.product_rate
            )
    del step
    gc.collect()
    torch.cuda.empty_cache()


def run(
    options: argparse.Namespace,
    folder: Path,
    groups: dict[int, list[TrainingGroup]],
    device: torch.device,
    clock: Clock,
) -> tuple[list[Check], list[dict[str, Any]]]:
    """The whole stage.

    Args:
        options: the sizes and repeats that were asked for.
        folder: the folder that holds the model.
        groups: the groups that are trained on, by their prompt tokens.
        device: the device that trains.
        clock: the clock that says whether there is time for more.
    """
    shape = SHAPES[options.shape]
    row_tokens = min(groups) + options.num_responses * options.response_tokens
    products = [(row_tokens, shape.hidden, shape.intermediate), (row_tokens, shape.intermediate, shape.hidden)]
    clock.note("the card's own matrix product")
    measured = Measured(product_rate=product_rate(device, torch.bfloat16, products, 1.0))
    detail = f"{measured.product_rate / 1e12:.4g} · 10¹² operations a second in bfloat16"
    measured.checks.append(Check(name="matrix product alone", passed=None, detail=detail))
    for dtype in (torch.bfloat16, torch.float32):  # what the trainer uses on a GPU first
        measured.checks += [*check_doors(device, dtype), check_logprob_memory(options, device, dtype)]
        for backend in working_backends(device, dtype):
            run_backend(backend, dtype, folder, groups, options, device, clock, measured)
    for check in (check_memory, check_cuda_ipc):
        title, passed, detail = check(device)
        measured.checks.append(Check(name=title, passed=passed, detail=detail))
    return measured.checks, measured.rows
