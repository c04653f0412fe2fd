"""What the plan says a row takes, against a count of the tensors that live while it is computed."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from rsgrpo.config import LoraConfig, LossConfig, ModelConfig
from rsgrpo.model.activation_memory import PackedSize, activation_memory
from rsgrpo.model.attention.delta_net import padded_size
from rsgrpo.model.families.table import FAMILIES, family_of
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
CASES = {
    "pages": ("pages", ModelConfig()),
    "text, float32, nothing recomputed": ("text", ModelConfig(dtype="float32", gradient_checkpointing=False)),
    "tower trained": ("long", ModelConfig(freeze_vision=False)),
    "tower trained, nothing recomputed": ("long", ModelConfig(freeze_vision=False, gradient_checkpointing=False)),
    "adapters, nothing recomputed": ("pages", ModelConfig(lora=LoraConfig(rank=8), gradient_checkpointing=False)),
}
# The language model of Qwen2-VL is Qwen2.5-VL's; its tower is not.
PAIRS = [(family, case) for family in FAMILIES for case in CASES if family != "qwen2_vl" or "tower" in case]


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Small products on a busy machine lose more by waiting for a second thread than they gain."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", params=list(FAMILIES))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of each family; of Qwen3.5's four layers the last attends, as in every four of the published ones."""
    layers = 4 if FAMILIES[request.param].delta_net else 2
    shape = dataclasses.replace(NARROW, layers=layers)
    return build_model(shape, tmp_path_factory.mktemp(request.param), family=request.param)


def _peaks(folder: Path, config: ModelConfig, shape: GroupShape, place: Path) -> tuple[int, int]:
    """Most bytes at a time, counted and planned; pixels lie in the row before either."""
    step = BareStep(folder, config, torch.device("cpu"))
    family = family_of(step.model)
    group = build_group(dataclasses.replace(shape, token_pixels=family.token_pixels), place)
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
    padded, chunks = padded_size([shape.prompt_tokens], [shape.response_tokens] * shape.num_responses)
    row = PackedSize(
        num_tokens=shape.prompt_tokens + shape.num_responses * shape.response_tokens,
        num_response_tokens=shape.num_responses * shape.response_tokens,
        num_patches=0 if batch.pixel_values is None else len(batch.pixel_values),
        num_padded=padded,
        num_chunks=chunks,
    )
    planned = activation_memory(
        model_sizes(folder, config),
        row,
        weight_bytes=2 if config.dtype == "bfloat16" else 4,
        recomputes=config.gradient_checkpointing,
        device="cpu",
    )
    return live.peak, planned.peak - planned.pixels


@pytest.mark.parametrize(("folder", "case"), PAIRS, indirect=["folder"])
def test_a_row_takes_what_the_plan_says(folder: Path, tmp_path: Path, case: str) -> None:
    shape, config = CASES[case]
    counted, planned = _peaks(folder, config, SHAPES[shape], tmp_path)
    assert planned == pytest.approx(counted, rel=0.1)


def test_stored_features_take_the_place_of_pixels_and_tower(folder: Path) -> None:
    sizes = model_sizes(folder, ModelConfig())
    parts = [
        activation_memory(
            sizes,
            PackedSize(num_tokens=1000, num_response_tokens=100, num_patches=patches, num_stored=stored),
            weight_bytes=2,
            recomputes=True,
        )
        for patches, stored in ((0, 500), (0, 0))
    ]
    # In bfloat16 a row of 256 numbers a token, and one more of each level: [main | level 1 | ...].
    assert parts[0].pixels - parts[1].pixels == 2 * 500 * 256 * (1 + sizes.num_levels)
    assert parts[0].peak - parts[1].peak == parts[0].pixels
    assert sizes.num_levels == (2 if "qwen3_vl" in str(folder) else 0)


def test_copies_of_keys_count_where_flash_attention_computes(folder: Path) -> None:
    sizes = model_sizes(folder, ModelConfig())
    # A prompt of 600 tokens and 4 responses of 100: 1,000 tokens, 2,400 keys more; a layer keeps keys and values of one
    # head, 128 wide (256 in Qwen3.5), in bfloat16.
    once = PackedSize(num_tokens=1000, num_response_tokens=400)
    copied = dataclasses.replace(once, num_keys=3400)

    def kept(packed: PackedSize, device: str, weight_bytes: int) -> int:
        return activation_memory(sizes, packed, weight_bytes=weight_bytes, recomputes=False, device=device).kept

    more = sizes.language.attending_layers * 2 * 2400 * sizes.language.head_size * 2
    assert kept(copied, "gpu", 2) - kept(once, "gpu", 2) == more
    assert kept(copied, "cpu", 2) == kept(once, "cpu", 2)
    assert kept(copied, "gpu", 4) == kept(once, "gpu", 4)
