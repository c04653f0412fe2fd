"""A step that is refused after its gradient was accumulated leaves no trace, under every ZeRO stage."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from rsgrpo.config import Config, DataConfig, Dtype, LossConfig, ModelConfig, OptimizerConfig, TrainerConfig
from rsgrpo.types import TrainingGroup
from tests.engine.reloading_worker import ReloadingWorker as Rank
from tests.engine.worlds import World

pytestmark = pytest.mark.engine

OPTIMIZER = OptimizerConfig(learning_rate=1e-3, weight_decay=0.1)
LOSS = LossConfig(importance_cap=0.0)


@dataclass(frozen=True)
class Case:
    """How a policy is kept; small rows, so that a step has several."""

    num_ranks: int
    zero_stage: int
    dtype: Dtype = "float32"
    offload: bool = False

    def __str__(self) -> str:
        return f"{self.num_ranks}-zero{self.zero_stage}-{self.dtype}" + ("-offload" if self.offload else "")

    @property
    def config(self) -> Config:
        return Config(
            stage="sft",
            model=ModelConfig(dtype=self.dtype, freeze_vision=False, gradient_checkpointing=False),
            data=DataConfig(min_pixels=1, max_pixels=10**7),
            trainer=TrainerConfig(
                num_ranks=self.num_ranks,
                zero_stage=self.zero_stage,
                micro_batch_tokens=200,
                offload_optimizer=self.offload,
            ),
        )


def _kept(world: World, folder: Path) -> dict[str, bytes | dict[str, str]]:
    """Weights, masters, moments, counters and random numbers of all ranks, as a checkpoint holds them."""
    folder.mkdir()
    world.each(Rank.save, folder)
    kept: dict[str, bytes | dict[str, str]] = {}
    for path in folder.iterdir():
        with safe_open(path, "pt") as file:
            kept[path.name] = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        kept |= {
            f"{path.name}/{name}": tensor.reshape(-1).view(torch.uint8).numpy().tobytes()
            for name, tensor in tensors.items()
        }
    return kept


def _last_step(world: World, groups: list[TrainingGroup]) -> tuple[list[float], list[dict[str, np.ndarray]]]:
    """A step without pages: whatever was left of a gradient of the vision tower would move it."""
    steps = world.each(Rank.update, world.prepare(groups[2:]), "policy", LOSS)
    return [step.grad_norm for step in steps], world.each(Rank.weights)


CASES = [
    *[Case(num_ranks, zero_stage) for num_ranks in (1, 2) for zero_stage in (1, 2, 3)],
    *[Case(2, zero_stage, dtype="bfloat16") for zero_stage in (1, 2, 3)],
    *[Case(2, zero_stage, offload=True) for zero_stage in (2, 3)],
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_refused_step_leaves_no_trace(worlds, groups, case, tmp_path):
    world = worlds[case.num_ranks]
    world.each(Rank.rebuild, case.config, OPTIMIZER)
    world.each(Rank.update, world.prepare(groups), "policy", LOSS)
    before = _kept(world, tmp_path / "before")
    world.each(Rank.accumulate, world.prepare(groups), "policy", LOSS)
    world.each(Rank.drop_gradients)
    assert _kept(world, tmp_path / "after") == before
    norms, weights = _last_step(world, groups)

    world.each(Rank.rebuild, case.config, OPTIMIZER)
    world.each(Rank.update, world.prepare(groups), "policy", LOSS)
    expected_norms, expected = _last_step(world, groups)
    assert norms == expected_norms
    for own, other in zip(weights, expected, strict=True):
        assert all(np.array_equal(own[name], other[name]) for name in other)
    assert _kept(world, tmp_path / "stepped") != before
