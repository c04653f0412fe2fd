"""What a rank's memory holds: while it loads, and while its device is lent to the engines."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import Qwen2_5_VLForConditionalGeneration

from rsgrpo.cluster.gpu_sharing import OnGpu
from rsgrpo.config import Config, DataConfig, Dtype, LoraConfig, LossConfig, ModelConfig, OptimizerConfig, TrainerConfig
from rsgrpo.types import TrainingGroup
from tests.engine.reloading_worker import ReloadingWorker as Rank
from tests.engine.worlds import World
from tests.tiny_model import build_tiny_model, checkpoint_name

pytestmark = pytest.mark.engine

OPTIMIZER = OptimizerConfig(learning_rate=1e-3, weight_decay=0.1)
LOSS = LossConfig(importance_cap=0.0)


@dataclasses.dataclass(frozen=True)
class Case:
    """How a policy is kept."""

    num_ranks: int
    zero_stage: int
    dtype: Dtype = "bfloat16"
    lora: int = 0

    def __str__(self) -> str:
        return f"{self.num_ranks}-zero{self.zero_stage}-{self.dtype}" + (f"-lora{self.lora}" if self.lora else "")

    @property
    def config(self) -> Config:
        return Config(
            stage="sft",
            model=ModelConfig(
                dtype=self.dtype,
                freeze_vision=False,
                gradient_checkpointing=False,
                lora=LoraConfig(rank=self.lora, include_vision=True),
            ),
            data=DataConfig(min_pixels=1, max_pixels=10**7),
            trainer=TrainerConfig(num_ranks=self.num_ranks, zero_stage=self.zero_stage, micro_batch_tokens=4000),
        )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # Large enough for one tensor to be a small part of it.
    return build_tiny_model(tmp_path_factory.mktemp("model"), hidden=64, layers=4, tie=True)


def _trained(world: World, case: Case, groups: list[TrainingGroup], lent: bool) -> list[dict[str, np.ndarray]]:
    """Weights after two updates; between them the device may be lent away."""
    world.each(Rank.let_model_go)
    world.each(Rank.rebuild, case.config, OPTIMIZER)
    world.each(Rank.update, world.prepare(groups), "policy", LOSS)
    if lent:
        _lend(world, case)
    world.each(Rank.update, world.prepare(groups), "policy", LOSS)
    return world.each(Rank.weights)


def _lend(world: World, case: Case) -> None:
    world.each(Rank.forget_images)
    num_trained = sum(value.size for value in world.each(Rank.weights)[0].values())
    width = 2 if case.dtype == "bfloat16" else 4
    before = world.each(Rank.bytes_on_device)
    world.each(Rank.set_on_gpu, OnGpu.NOTHING)
    left = world.each(Rank.bytes_on_device)
    # What stays are a few scalars; a gradient buffer would be 4 bytes a parameter.
    assert max(left) < 1000
    for taken, (weights, states) in zip(before, world.each(Rank.parked_bytes), strict=True):
        own = num_trained / case.num_ranks
        # Moments take 8 bytes a parameter, the float32 master 4; where ZeRO 3 splits float32 weights, those are it.
        is_own_master = case.zero_stage == 3 and case.dtype == "float32"
        assert states >= (8 if is_own_master else 12) * own
        assert weights >= width * (own if case.zero_stage == 3 else num_trained)
        assert taken >= weights + states
    world.each(Rank.set_on_gpu, OnGpu.ALL)
    assert world.each(Rank.bytes_on_device) == before


CASES = [
    *[Case(num_ranks, zero_stage) for num_ranks in (1, 2) for zero_stage in (1, 2, 3)],
    *[Case(2, zero_stage, dtype="float32") for zero_stage in (1, 3)],
    Case(2, 3, lora=4),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_device_that_is_lent_away_is_empty_and_comes_back_to_the_bit(worlds, groups, case):
    world = worlds[case.num_ranks]
    plain, lent = (_trained(world, case, groups, is_lent) for is_lent in (False, True))
    for expected, found in zip(plain, lent, strict=True):
        assert expected.keys() == found.keys()
        assert all(np.array_equal(expected[name], found[name]) for name in expected)


@pytest.mark.parametrize(
    ("case", "frozen"),
    [
        (Case(2, 2), False),
        (Case(2, 3, dtype="float32"), False),
        (Case(2, 3, lora=4), False),
        (Case(2, 3), True),
    ],
    ids=["zero2 policy", "zero3 policy", "zero3 adapters", "zero3 reference"],
)
def test_a_rank_never_loads_more_than_what_it_keeps_and_one_tensor(worlds, case, frozen):
    world = worlds[case.num_ranks]
    world.each(Rank.rebuild, case.config, OPTIMIZER)
    for loaded in world.each(Rank.loading, frozen):
        # DeepSpeed gathers the shares of a split model into one buffer, adapters stand whole before they are split.
        assert loaded.peak <= loaded.kept + loaded.largest + 20_000
        if case.zero_stage == 3:
            assert loaded.kept < 0.6 * loaded.whole
            assert loaded.peak < 0.8 * loaded.whole
    world.each(Rank.rebuild, case.config, OPTIMIZER)


@pytest.mark.parametrize(
    "case", [Case(1, 1), Case(2, 2, lora=4), Case(1, 3), Case(2, 3, dtype="float32"), Case(2, 3, lora=4)], ids=str
)
def test_ranks_hold_what_the_folder_holds_to_the_bit(worlds, folder, case):
    plain = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, dtype=getattr(torch, case.dtype))
    expected = {
        checkpoint_name(name): parameter.detach().float().numpy() for name, parameter in plain.named_parameters()
    }
    buffers = {name: buffer.numpy() for name, buffer in plain.named_buffers()}
    assert buffers and all(value.dtype == np.float32 for value in buffers.values())  # rotary frequencies
    world = worlds[case.num_ranks]
    world.each(Rank.rebuild, case.config, OPTIMIZER)
    for sent in world.each(Rank.sent):
        # The tied head is no tensor of its own; fresh adapters add nothing.
        assert sent.keys() == expected.keys()
        assert all(np.array_equal(sent[name], expected[name]) for name in expected)
    for own in world.each(Rank.buffers):
        assert buffers.keys() <= own.keys()
        assert all(own[name].dtype == np.float32 and np.array_equal(own[name], buffers[name]) for name in buffers)


@pytest.mark.parametrize("zero_stage", [1, 2, 3])
def test_a_tower_that_a_step_does_not_use_has_no_gradient_of_the_step_before(worlds, groups, zero_stage):
    world = worlds[1]
    world.each(Rank.rebuild, Case(1, zero_stage, dtype="float32").config, OPTIMIZER)
    with_images, without = groups[:1], groups[2:]
    assert with_images[0].prompt.images and not without[0].prompt.images
    world.each(Rank.update, world.prepare(with_images), "policy", LOSS)
    _, gradient = world.each(Rank.gradient, world.prepare(without), "policy", LOSS)[0]
    tower = [value for name, value in gradient.items() if name.startswith("visual.")]
    assert tower and all(not value.any() for value in tower)
    assert any(value.any() for name, value in gradient.items() if not name.startswith("visual."))
    world.each(Rank.step)


@pytest.mark.parametrize("case", [Case(1, 2), Case(1, 3), Case(2, 3)], ids=str)
def test_a_closed_engine_leaves_nothing_behind(worlds, folder, groups, case):
    world = worlds[case.num_ranks]
    world.each(Rank.rebuild, case.config, OPTIMIZER)
    world.each(Rank.let_model_go)
    before = world.each(Rank.live_bytes)
    world.each(Rank.rebuild, case.config, OPTIMIZER)
    world.each(Rank.begin_from, folder, True)  # a frozen reference beside it
    world.each(Rank.update, world.prepare(groups), "policy", LOSS)
    held = world.each(Rank.live_bytes)
    world.each(Rank.let_model_go)
    for empty, full, left in zip(before, held, world.each(Rank.live_bytes), strict=True):
        # Some 250,000 parameters: 12 bytes each for master and moments, half of them on each of two ranks.
        assert full > empty + 12 * 200_000 / case.num_ranks
        assert left < empty + 20_000
