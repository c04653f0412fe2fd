"""What the plan says a row takes, against a count of the tensors that live while it is computed."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from rsgrpo.config import Dtype, LoraConfig, LossConfig, ModelConfig
from rsgrpo.model.activation_memory import PackedSize, activation_memory
from rsgrpo.model.micro_batches import plan_micro_batches
from rsgrpo.model.policy_model import group_sizes
from rsgrpo.model.sizes import model_sizes
from rsgrpo.trainer.objective import row_loss
from tests.held_bytes import HeldBytes

sys.path.append(str(Path(__file__).resolve().parents[3] / "benchmarks"))

from bare_step import BareStep
from workload import NARROW, GroupShape, build_group, build_model

# Pages with a short question and two long answers; a text alone with many answers; nearly all of it pages.
SHAPES = {
    "pages": GroupShape(prompt_tokens=256, response_tokens=64, num_responses=2),
    "text": GroupShape(prompt_tokens=100, response_tokens=32, num_responses=8, num_images=0),
    "long": GroupShape(prompt_tokens=600, response_tokens=16, num_responses=2, num_images=2),
}


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Small products on a busy machine lose more by waiting for a second thread than they gain."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_model(NARROW, tmp_path_factory.mktemp("model"))


def _peaks(folder: Path, config: ModelConfig, shape: GroupShape, place: Path) -> tuple[int, int]:
    """Most bytes at a time, counted and planned; pixels lie in the row before either."""
    step = BareStep(folder, config, torch.device("cpu"))
    group = build_group(shape, place)
    prompts = step.encoder.encode([group.prompt])
    plan = plan_micro_batches(group_sizes([group], prompts), budget=10**6, share_prefix=True)
    batch = step.rows.build(plan[0], [group], prompts)
    for parameter in step.model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)
    lasting = [
        *step.model.parameters(),
        *(weight.grad for weight in step.model.parameters() if weight.grad is not None),
    ]
    lasting += [batch.pixel_values] if batch.pixel_values is not None else []
    with HeldBytes(lasting) as live:
        logprobs, _ = step.policy(batch, with_entropy=True)
        row_loss(batch, logprobs, "policy", LossConfig(importance_cap=0.0))[0].backward()
    row = PackedSize(
        num_tokens=shape.prompt_tokens + shape.num_responses * shape.response_tokens,
        num_response_tokens=shape.num_responses * shape.response_tokens,
        num_patches=0 if batch.pixel_values is None else len(batch.pixel_values),
    )
    planned = activation_memory(
        model_sizes(folder, config),
        row,
        weight_bytes=2 if config.dtype == "bfloat16" else 4,
        recomputes=config.gradient_checkpointing,
        device="cpu",
    )
    return live.peak, planned.peak - planned.pixels


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("dtype", "recomputes"), [("bfloat16", True), ("bfloat16", False), ("float32", True)])
def test_a_row_takes_what_the_plan_says(
    folder: Path, tmp_path: Path, shape: str, dtype: Dtype, recomputes: bool
) -> None:
    config = ModelConfig(dtype=dtype, gradient_checkpointing=recomputes)
    counted, planned = _peaks(folder, config, SHAPES[shape], tmp_path)
    assert planned == pytest.approx(counted, rel=0.15)


@pytest.mark.parametrize(
    "config",
    [
        ModelConfig(freeze_vision=False),
        ModelConfig(freeze_vision=False, gradient_checkpointing=False),
        ModelConfig(lora=LoraConfig(rank=8)),
    ],
    ids=["tower trained", "tower trained, nothing recomputed", "adapters"],
)
def test_trained_towers_and_adapters_take_what_the_plan_says(folder: Path, tmp_path: Path, config: ModelConfig) -> None:
    counted, planned = _peaks(folder, config, SHAPES["long"], tmp_path)
    assert planned == pytest.approx(counted, rel=0.15)


def test_sizes_are_those_of_the_model(folder: Path) -> None:
    config = ModelConfig(dtype="float32", lora=LoraConfig(rank=4))
    step = BareStep(folder, config, torch.device("cpu"))
    sizes = model_sizes(folder, config)
    assert sizes.num_elements == sum(parameter.numel() for parameter in step.model.parameters())
    assert sizes.num_trained == sum(
        parameter.numel() for parameter in step.model.parameters() if parameter.requires_grad
    )
    # A layer's seven matrices: queries and output 256 → 256, keys and values 256 → 128, three of the MLP 256 ↔ 1376.
    # An adapter of rank 4 has 4 · (inputs + outputs) elements.
    layer = 4 * (2 * (256 + 256) + 2 * (256 + 128) + 3 * (256 + 1376))
    assert sizes.num_trained == 2 * layer
