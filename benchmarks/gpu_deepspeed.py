"""The checks of one GPU that need DeepSpeed: a rank as it trains, without Ray. ``gpu_checks.py deepspeed`` runs them.

1. A step through every ZeRO stage gives the log-probabilities of torch's own AdamW, step for step.
2. What a rank takes on the device while it trains, and what it leaves there when it lends the device to an engine.
3. How long a rank needs to give its memory back and to take it again.
4. How long an update takes, against the same rows with torch's AdamW.
"""

from __future__ import annotations

import gc
import os
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bare_step import LOSS, BareStep
from torch.distributed import HashStore  # type: ignore[attr-defined]  # not in its list of names

from rsgrpo.cluster.gpu_sharing import OnGpu
from rsgrpo.config import Config, Dtype, ModelConfig, OptimizerConfig, RlConfig, TrainerConfig
from rsgrpo.model.folder import load_processor
from rsgrpo.model.micro_batches import plan_micro_batches
from rsgrpo.model.policy_model import MicroBatch, MicroBatchBuilder, group_sizes
from rsgrpo.model.setup import WorkerSpec, open_policy_model, wrap_model
from rsgrpo.trainer.deepspeed_engine import DeepSpeedEngine
from rsgrpo.trainer.objective import row_loss
from rsgrpo.types import TrainingGroup

STAGES = (1, 2, 3)
_RATE = 1e-5
_MAX_GAP = {"float32": 1e-4, "bfloat16": 0.05}  # nats, after two updates


@contextmanager
def one_rank(device: torch.device) -> Iterator[None]:
    """A process group of this process alone."""
    os.environ |= {"LOCAL_RANK": "0", "RANK": "0", "WORLD_SIZE": "1"}  # DeepSpeed asks for them
    backend = "nccl" if device.type == "cuda" else "gloo"
    torch.distributed.init_process_group(backend, store=HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()


@dataclass(frozen=True, kw_only=True, slots=True)
class StageFinding:
    """What one ZeRO stage showed.

    Attributes:
        row: of the table.
        gap: largest difference of log-probabilities from torch's AdamW after the updates, nats.
        left_bytes: on the device while it is lent.
    """

    row: dict[str, Any]
    gap: float
    left_bytes: int


class Rank:
    """A rank of the policy, with its rows.

    Args:
        folder: the folder that holds the model.
        dtype: ``float32`` or ``bfloat16``.
        zero_stage: 1, 2 or 3.
        device: where it trains.
        step: the bare step whose encoder is used.
    """

    def __init__(self, folder: Path, dtype: Dtype, zero_stage: int, device: torch.device, step: BareStep) -> None:
        config = Config(
            stage="sft",  # asks for no rewards
            model=ModelConfig(dtype=dtype),
            trainer=TrainerConfig(zero_stage=zero_stage, num_ranks=1),
            rl=RlConfig(optimizer=OptimizerConfig(learning_rate=_RATE, warmup_steps=0, schedule="constant")),
        )
        spec = WorkerSpec(
            config=config,
            model_folder=folder,
            rank=0,
            world_size=1,
            device="gpu" if device.type == "cuda" else "cpu",
            num_threads=torch.get_num_threads(),
        )
        opened = open_policy_model(folder, spec, load_processor(folder))
        self._encoder = step.encoder
        self._rows = MicroBatchBuilder(
            image_token_id=step.encoder.image_token_id,
            config=config.model,
            device=device,
            dtype=opened.model.dtype,
            image_pixels=step.encoder.pixels,
        )
        self.engine = DeepSpeedEngine(wrap_model(opened.model, spec), config, device=device, weights=opened.weights)

    def _makers(self, groups: list[TrainingGroup], budget: int) -> list[Any]:
        prompts = self._encoder.encode([group.prompt for group in groups])
        plan = plan_micro_batches(group_sizes(groups, prompts), budget=budget, share_prefix=True)
        return [lambda segments=segments: self._rows.build(segments, groups, prompts) for segments in plan]

    def update(self, groups: list[TrainingGroup], budget: int) -> None:
        """One optimizer step."""

        def loss_of(
            index: int, batch: MicroBatch, logprobs: torch.Tensor, entropy: torch.Tensor | None
        ) -> torch.Tensor:
            return row_loss(batch, logprobs, "policy", LOSS)[0]

        self.engine.accumulate(self._makers(groups, budget), loss_of, with_entropy=True)
        self.engine.step()

    def logprobs(self, groups: list[TrainingGroup], budget: int) -> np.ndarray[Any, Any]:
        """Log-probabilities of all response tokens, in the order of the rows."""
        found = [self.engine.score(make())[0].float().cpu().numpy() for make in self._makers(groups, budget)]
        return np.concatenate(found)


def _allocated(device: torch.device) -> int:
    gc.collect()
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0


def _timed(device: torch.device, work: Any) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def check_stage(
    folder: Path,
    dtype: Dtype,
    zero_stage: int,
    groups: list[TrainingGroup],
    budget: int,
    repeats: int,
    device: torch.device,
) -> StageFinding:
    """Everything about one ZeRO stage.

    Args:
        folder: the folder that holds the model.
        dtype: the precision of the model.
        zero_stage: 1, 2 or 3.
        groups: the groups that are trained on.
        budget: the most packed tokens of a row.
        repeats: how many updates are timed.
        device: the device that trains.
    """
    before = _allocated(device)
    step = BareStep(folder, ModelConfig(dtype=dtype), device, learning_rate=_RATE)
    bare_seconds = [_timed(device, lambda: step.update(groups, budget=budget, share_prefix=True)) for _ in range(2)]
    expected = step.logprobs(groups, budget=budget)
    encoder_step, step_bytes = step, _allocated(device) - before
    step.model.to("cpu")
    step.optimizer = None  # type: ignore[assignment]  # its moments lie on the device
    base = _allocated(device)
    rank = Rank(folder, dtype, zero_stage, device, encoder_step)
    seconds = [_timed(device, lambda: rank.update(groups, budget)) for _ in range(2)]
    gap = float(np.abs(rank.logprobs(groups, budget) - expected).max())
    seconds += [_timed(device, lambda: rank.update(groups, budget)) for _ in range(repeats)]
    trained = _allocated(device) - base
    out_seconds = _timed(device, lambda: rank.engine.set_on_gpu(OnGpu.NOTHING))
    left = _allocated(device) - base
    back_seconds = _timed(device, lambda: rank.engine.set_on_gpu(OnGpu.ALL))
    again = _timed(device, lambda: rank.update(groups, budget))
    rank.engine.close()
    median = statistics.median([*seconds[1:], again])
    return StageFinding(
        row={
            "ZeRO": zero_stage,
            "precision": dtype,
            "update, s": median,
            "torch AdamW alone, s": bare_seconds[-1],
            "ratio": bare_seconds[-1] / median,
            "device, GiB": trained / 2**30,
            "torch alone, GiB": step_bytes / 2**30,
            "left when lent, MiB": left / 2**20,
            "given back, s": out_seconds,
            "taken again, s": back_seconds,
            "gap, nats": gap,
        },
        gap=gap,
        left_bytes=left,
    )


def is_right(finding: StageFinding, dtype: str, device: torch.device) -> bool:
    """Whether the numbers agree, and nearly nothing is left on a device that was lent."""
    return finding.gap < _MAX_GAP[dtype] and (device.type != "cuda" or finding.left_bytes < 2**26)
