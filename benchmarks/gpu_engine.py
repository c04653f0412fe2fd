"""The checks of one GPU that need vLLM: an engine as it samples, without Ray. ``gpu_checks.py engine`` runs it.

1. How long it takes to start, and to sample the prompts of a step: tokens a second.
2. Log-probabilities of what it sampled, against the trainer's.
3. What it takes on the device, what is left when it sleeps, and how long it needs to fall asleep and to wake up.
4. That it samples the same, with the same log-probabilities, after it woke up.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bare_step import BareStep

from rollout.requests import requests_for
from rollout.vllm_engine import EngineSpec, VllmEngine
from rsgrpo.cluster.gpu_sharing import OnGpu
from rsgrpo.config import ClusterConfig, Config, DataConfig, Dtype, ModelConfig, RolloutConfig, SamplingConfig
from rsgrpo.types import PromptedSample, RolloutGroup, Sample, TrainingGroup, TrainingResponse

_MAX_GAP = {"float32": 1e-4, "bfloat16": 0.02}  # nats, mean

Finding = tuple[str, bool | None, str]


def _used_bytes(device: torch.device) -> int:
    """Memory in use on the whole device, in bytes: the engine may be a process of its own."""
    if device.type != "cuda":
        return 0
    free, total = torch.cuda.mem_get_info(device)
    return total - free


def _training_group(group: RolloutGroup) -> TrainingGroup:
    """The responses of a group, without credit."""
    return TrainingGroup(
        sample_id=group.sample.sample_id,
        prompt=group.prompt,
        prompt_token_ids=None,
        responses=tuple(
            TrainingResponse(
                response_index=rollout.response_index,
                token_ids=rollout.token_ids,
                positive_weights=np.zeros(len(rollout.token_ids), dtype=np.float32),
                negative_weights=np.zeros(len(rollout.token_ids), dtype=np.float32),
            )
            for rollout in group.rollouts
        ),
    )


def check_engine(
    folder: Path, groups: list[TrainingGroup], *, num_responses: int, response_tokens: int, device: torch.device
) -> tuple[list[Finding], list[dict[str, Any]]]:
    """Start an engine, sample, sleep, wake up and sample again.

    Args:
        folder: the folder that holds the model.
        groups: the groups whose prompts are asked.
        num_responses: how many responses each prompt gets.
        response_tokens: the most tokens of a response.
        device: the device that the engine runs on.

    Returns:
        Findings, and a row of the table of times.
    """
    dtype: Dtype = "bfloat16" if device.type == "cuda" else "float32"
    sampling = SamplingConfig(max_response_tokens=response_tokens)
    prompts = [
        PromptedSample(
            sample=Sample(sample_id=group.sample_id, question="", images=group.prompt.images), prompt=group.prompt
        )
        for group in groups
    ]
    config = Config(
        stage="sft",  # asks for no rewards
        model=ModelConfig(dtype=dtype),
        data=DataConfig(min_pixels=784, max_pixels=10**8, max_prompt_tokens=10**6),
        cluster=ClusterConfig(topology="colocated"),
        rollout=RolloutConfig(
            sampling=sampling,
            max_model_tokens=32_768 if device.type == "cuda" else 1024,
            enforce_eager=device.type != "cuda",
        ),
    )
    before = _used_bytes(device)
    start = time.perf_counter()
    engine = VllmEngine(
        EngineSpec(config=config, model_folder=folder, device="gpu" if device.type == "cuda" else "cpu")
    )
    start_seconds = time.perf_counter() - start
    engine.generate(requests_for(prompts[:1], num_samples=1, sampling=sampling, seed=1))  # warms up

    def sampled() -> tuple[list[RolloutGroup], float]:
        begin = time.perf_counter()
        found = engine.generate(requests_for(prompts, num_samples=num_responses, sampling=sampling, seed=0))
        return found, time.perf_counter() - begin

    first, seconds = sampled()
    awake = _used_bytes(device) - before
    begin = time.perf_counter()
    engine.set_on_gpu(OnGpu.NOTHING)
    sleep_seconds, asleep = time.perf_counter() - begin, _used_bytes(device) - before
    begin = time.perf_counter()
    engine.set_on_gpu(OnGpu.ALL)
    wake_seconds = time.perf_counter() - begin
    second, _ = sampled()
    num_tokens = sum(len(rollout.token_ids) for group in first for rollout in group.rollouts)
    pairs = [
        (rollout, other)
        for a, b in zip(first, second, strict=True)
        for rollout, other in zip(a.rollouts, b.rollouts, strict=True)
    ]
    same = all(np.array_equal(rollout.token_ids, other.token_ids) for rollout, other in pairs)
    step = BareStep(folder, ModelConfig(dtype=dtype, gradient_checkpointing=False), device)
    gaps = [
        np.abs(
            step.logprobs([_training_group(group)], budget=10**6)
            - np.concatenate([rollout.logprobs for rollout in group.rollouts])
        )
        for group in first
    ]
    apart = np.concatenate(gaps)
    findings: list[Finding] = [
        (
            "log-probabilities, engine = trainer",
            bool(apart.mean() < _MAX_GAP[dtype]),
            f"mean {apart.mean():.2e}, largest {apart.max():.2e} nats over {len(apart)} tokens, {dtype}",
        ),
        (
            "sleep gives memory back",
            asleep < 0.15 * awake if device.type == "cuda" else None,
            f"{awake / 2**30:.1f} GiB awake, {asleep / 2**30:.1f} asleep" if awake else "needs a GPU",
        ),
        ("same samples after waking up", same, f"{len(pairs)} responses"),
    ]
    row = {
        "start, s": start_seconds,
        "prompts": len(prompts),
        "responses": len(pairs),
        "tokens": num_tokens,
        "seconds": seconds,
        "tokens/s": num_tokens / seconds,
        "asleep, s": sleep_seconds,
        "awake, s": wake_seconds,
    }
    return findings, [row]
