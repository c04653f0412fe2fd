"""How a step is cut (rows, ranks, ZeRO stage) changes neither gradient nor update.

The oracle is a plain one: transformers' own forward pass, one response at a time, autograd, and
torch's AdamW, in this process.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import Qwen2_5_VLForConditionalGeneration

from rsgrpo.cluster.gpu_sharing import OnGpu
from rsgrpo.config import Config, DataConfig, Dtype, LossConfig, ModelConfig, OptimizerConfig, TrainerConfig
from rsgrpo.model.families.table import FAMILIES
from rsgrpo.model.folder import check_model_type, load_processor
from rsgrpo.trainer.checkpoint import CheckpointError
from rsgrpo.types import TrainingGroup
from tests.engine.reloading_worker import ReloadingWorker as Rank
from tests.engine.worlds import World
from tests.plain_forward import plain_logprobs
from tests.tiny_model import build_tiny_model, checkpoint_name, make_group, without_suppressed, write_images

pytestmark = pytest.mark.engine

OPTIMIZER = OptimizerConfig(learning_rate=1e-3, weight_decay=0.1, beta2=0.95, max_grad_norm=0.5)
LOSS = LossConfig(importance_cap=2.0)


def _config(*, frozen: bool = False, recomputed: bool = False, dtype: Dtype = "float32", **trainer: object) -> Config:
    return Config(
        stage="sft",
        model=ModelConfig(dtype=dtype, freeze_vision=frozen, gradient_checkpointing=recomputed),
        data=DataConfig(min_pixels=1, max_pixels=10**7),
        trainer=TrainerConfig(**trainer),  # type: ignore[arg-type]
    )


@dataclass
class Oracle:
    loss: float
    gradient: dict[str, np.ndarray]
    stepped: dict[str, np.ndarray]


def _oracle(folder: Path, groups: list[TrainingGroup]) -> Oracle:
    family = check_model_type(folder)
    model = family.model.from_pretrained(folder, attn_implementation="eager")
    processor = load_processor(folder)
    total = torch.zeros(())
    for group in groups:
        for response in group.responses:
            logprobs = plain_logprobs(model, processor, group.prompt, response.token_ids)
            credit = torch.from_numpy(response.positive_weights - response.negative_weights)
            # On policy rho = 1: nothing is clipped, and d loss = -(P - Q) · weight · d logprob.
            weight = torch.exp(logprobs.detach() - torch.from_numpy(response.rollout_logprobs)).clamp(max=2.0)
            total = total - (credit * weight * torch.exp(logprobs - logprobs.detach())).sum()
    total.backward()
    gradient = {family.checkpoint_name(name): p.grad.numpy().copy() for name, p in model.named_parameters()}
    torch.nn.utils.clip_grad_norm_(model.parameters(), OPTIMIZER.max_grad_norm)
    torch.optim.AdamW(
        model.parameters(), lr=1e-3, betas=(OPTIMIZER.beta1, OPTIMIZER.beta2), weight_decay=OPTIMIZER.weight_decay
    ).step()
    stepped = {family.checkpoint_name(name): p.detach().numpy() for name, p in model.named_parameters()}
    return Oracle(loss=float(total.detach()), gradient=gradient, stepped=stepped)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def groups(tmp_path_factory: pytest.TempPathFactory) -> list[TrainingGroup]:
    images = write_images(tmp_path_factory.mktemp("pages"), [(56, 56), (84, 56), (112, 140), (56, 56)])
    return [
        make_group("a", images[:2], [5, 9, 7], seed=1, scale=0.02),
        make_group("b", images[1:], [3, 12], seed=2, scale=0.02, question="How many of them are there?"),
        # without an image: its rank still has to run the vision tower in step with the others
        make_group("c", [], [6, 1, 4], seed=3, scale=0.02),
    ]


@pytest.fixture(scope="module")
def oracle(folder: Path, groups: list[TrainingGroup]) -> Oracle:
    return _oracle(folder, groups)


def _flat(named: dict[str, np.ndarray]) -> np.ndarray:
    return np.concatenate([named[name].ravel().astype(np.float64) for name in sorted(named)])


@dataclass(frozen=True)
class Cut:
    """How a step is cut into rows."""

    budget: int
    share_prefix: bool

    def __str__(self) -> str:
        return f"{self.budget}-{'shared' if self.share_prefix else 'unshared'}"


SMALL_ROWS, ONE_ROW, UNSHARED = Cut(110, True), Cut(4000, True), Cut(220, False)
# Every stage with as many ranks under the cut that has most to go wrong; the others where ranks and stages differ most.
CASES = [
    *[(num_ranks, zero_stage, SMALL_ROWS) for num_ranks in (1, 2) for zero_stage in (1, 2, 3)],
    *[(num_ranks, zero_stage, UNSHARED) for num_ranks, zero_stage in ((1, 2), (2, 1), (2, 3))],
    *[(num_ranks, zero_stage, ONE_ROW) for num_ranks, zero_stage in ((1, 2), (2, 3))],
]


def _check_step(world: World, oracle: Oracle, groups: list[TrainingGroup], num_ranks: int) -> None:
    count = world.prepare(groups)
    shown = world.each(Rank.gradient, count, "policy", LOSS)
    assert sum(loss for loss, _ in shown) == pytest.approx(oracle.loss, rel=1e-5)
    expected = _flat(oracle.gradient)
    for _, gradient in shown:
        assert gradient.keys() == oracle.gradient.keys()
        assert np.linalg.norm(_flat(gradient) - expected) < 1e-5 * np.linalg.norm(expected)
    norms = world.each(Rank.step)
    assert norms == pytest.approx([np.linalg.norm(expected)] * num_ranks, rel=1e-5)
    for weights in world.each(Rank.weights):
        # Adam divides by the gradient's own size, so a gradient of nearly 0 moves its weight by rounding;
        # where it is above 1e-5 of the largest the update of 1e-3 must agree to a thousandth.
        clear = np.abs(expected) > 1e-5 * np.abs(expected).max()
        gap = np.abs(_flat(weights) - _flat(oracle.stepped))[clear]
        assert clear.mean() > 0.5
        assert gap.max() < 1e-6


@pytest.mark.parametrize(("num_ranks", "zero_stage", "cut"), CASES, ids=str)
def test_gradient_and_update_equal_the_plain_ones(worlds, oracle, groups, num_ranks, zero_stage, cut):
    world = worlds[num_ranks]
    config = _config(
        num_ranks=num_ranks, zero_stage=zero_stage, micro_batch_tokens=cut.budget, share_prefix=cut.share_prefix
    )
    world.each(Rank.rebuild, config, OPTIMIZER)
    # Any order of groups, as well: reversed where the rows are small.
    _check_step(world, oracle, groups if cut is ONE_ROW else groups[::-1], num_ranks)


@pytest.mark.parametrize(
    ("num_ranks", "trainer"),
    [
        (1, {"zero_stage": 2, "offload_optimizer": True}),
        (2, {"zero_stage": 2}),
        (2, {"zero_stage": 3, "offload_optimizer": True, "offload_parameters": True}),
    ],
    ids=["offload", "zero2", "zero3-offload"],
)
def test_frozen_tower_recomputation_and_a_rank_without_work(worlds, oracle, groups, num_ranks, trainer):
    world = worlds[num_ranks]
    config = _config(frozen=True, recomputed=True, num_ranks=num_ranks, micro_batch_tokens=110, **trainer)
    world.each(Rank.rebuild, config, OPTIMIZER)
    shares = [(groups,), ([],)][:num_ranks]
    counts = world.each_own(Rank.prepare, shares)
    assert counts[0] > 1 and counts[1:] == [0] * (num_ranks - 1)
    gradients = [g for _, g in world.each(Rank.gradient, counts[0], "policy", LOSS)]
    expected = {n: g for n, g in oracle.gradient.items() if not n.startswith("visual.")}
    for gradient in gradients:
        assert gradient.keys() == expected.keys()
        assert np.linalg.norm(_flat(gradient) - _flat(expected)) < 1e-5 * np.linalg.norm(_flat(expected))
    norms = world.each(Rank.step)
    assert norms == pytest.approx([np.linalg.norm(_flat(expected))] * num_ranks, rel=1e-5)


@pytest.mark.parametrize("zero_stage", [2, 3])
def test_bfloat16_follows_the_float32_gradient_and_steps_in_float32(worlds, oracle, groups, zero_stage):
    world = worlds[2]
    config = _config(dtype="bfloat16", num_ranks=2, zero_stage=zero_stage, micro_batch_tokens=110)
    world.each(Rank.rebuild, config, OPTIMIZER)
    before = world.each(Rank.weights)[0]
    gradients = [g for _, g in world.each(Rank.gradient, world.prepare(groups), "policy", LOSS)]
    expected = _flat(oracle.gradient)
    cosine = _flat(gradients[0]) @ expected / np.linalg.norm(_flat(gradients[0])) / np.linalg.norm(expected)
    assert cosine > 0.99  # bfloat16 keeps 8 bits
    world.each(Rank.step)
    after = world.each(Rank.weights)[0]
    # Adam's first step moves weights by up to 1e-3, less than bfloat16 resolves at 0.5 (2e-3): masters do.
    moved = np.abs(_flat(after) - _flat(before))
    assert np.median(moved) == pytest.approx(1e-3, rel=0.2)


def test_likelihood_objective_equals_the_loss_of_transformers(worlds, folder, groups):
    # transformers: mean over labelled tokens; ours: weights 1/N with N = 5 response tokens
    response = groups[0].responses[0]
    group = dataclasses.replace(
        groups[0],
        responses=(
            dataclasses.replace(
                response, positive_weights=np.full(5, 0.2, np.float32), negative_weights=np.zeros(5, np.float32)
            ),
        ),
    )
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, attn_implementation="eager")
    processor = load_processor(folder)
    images = [Image.open(image.file).convert("RGB") for image in group.prompt.images]
    prompt = processor(text=[group.prompt.text], images=images, return_tensors="pt")
    ids = torch.cat([prompt["input_ids"][0], torch.from_numpy(response.token_ids.astype(np.int64))])[None]
    labels = ids.clone()
    labels[:, : prompt["input_ids"].shape[1]] = -100
    logits = model(
        input_ids=ids,
        pixel_values=prompt["pixel_values"],
        image_grid_thw=prompt["image_grid_thw"],
        mm_token_type_ids=(ids == processor.image_token_id).int(),
    ).logits[0]
    # transformers' own loss, over the distribution that both sides share: without the suppressed tokens
    shared = without_suppressed(logits, processor)[None]
    expected = model.loss_function(logits=shared, labels=labels, vocab_size=shared.shape[-1])
    expected.backward()
    world = worlds[1]
    world.each(Rank.rebuild, _config(zero_stage=2), OPTIMIZER)
    world.each(Rank.prepare, [group])
    loss, gradient = world.each(Rank.gradient, 1, "nll", None)[0]
    assert loss == pytest.approx(float(expected.detach()), rel=1e-5)
    wanted = _flat({checkpoint_name(n): p.grad.numpy() for n, p in model.named_parameters() if p.grad is not None})
    assert np.linalg.norm(_flat(gradient) - wanted) < 1e-5 * np.linalg.norm(wanted)


@pytest.mark.parametrize("zero_stage", [2, 3])
def test_a_gradient_that_is_not_finite_changes_nothing(worlds, groups, zero_stage):
    world = worlds[1]
    world.each(Rank.rebuild, _config(zero_stage=zero_stage), OPTIMIZER)
    before = world.each(Rank.weights)[0]
    poisoned = dataclasses.replace(
        groups[0],
        responses=tuple(
            dataclasses.replace(response, positive_weights=np.full_like(response.positive_weights, np.inf))
            for response in groups[0].responses
        ),
    )
    for expected_in_row in (1, 2):
        world.each(Rank.prepare, [poisoned])
        update = world.each(Rank.update, 1, "nll", None)[0]
        assert update.is_skipped and update.num_skipped_in_row == expected_in_row
    after = world.each(Rank.weights)[0]
    assert all(np.array_equal(before[name], after[name]) for name in before)
    world.each(Rank.prepare, [groups[0]])
    update = world.each(Rank.update, 1, "nll", None)[0]
    assert not update.is_skipped and update.num_skipped_in_row == 0 and np.isfinite(update.grad_norm)


@pytest.mark.parametrize(("zero_stage", "dtype"), [(2, "bfloat16"), (3, "bfloat16"), (3, "float32")])
def test_giving_memory_back_between_steps_changes_nothing(worlds, groups, zero_stage, dtype):
    world = worlds[2]
    config = _config(dtype=dtype, num_ranks=2, zero_stage=zero_stage, micro_batch_tokens=4000)

    def trained(turns: list[list[OnGpu]]) -> list[dict[str, np.ndarray]]:
        world.each(Rank.rebuild, config, OPTIMIZER)
        for shares in turns:
            world.each(Rank.update, world.prepare(groups), "policy", LOSS)
            for held in shares:
                world.each(Rank.set_on_gpu, held)
                for weights, states in world.each(Rank.parked_bytes):
                    assert (weights > 0, states > 0) == (held == OnGpu.NOTHING, held < OnGpu.ALL)
        return world.each(Rank.weights)

    plain = trained([[], [], []])
    nothing, weights, everything = OnGpu
    taken = trained([[weights, nothing, everything], [nothing, weights, everything], [nothing, everything]])
    for expected, found in zip(plain, taken, strict=True):
        assert all(np.array_equal(expected[name], found[name]) for name in expected)


@pytest.mark.parametrize(
    ("num_ranks", "dtype", "trainer"),
    [
        (1, "float32", {"zero_stage": 1}),
        (2, "bfloat16", {"zero_stage": 1}),
        (2, "bfloat16", {"zero_stage": 2, "offload_optimizer": True}),
        (2, "bfloat16", {"zero_stage": 3, "offload_optimizer": True, "offload_parameters": True}),
    ],
    ids=["float32-1", "bfloat16-1", "bfloat16-2-offload", "bfloat16-3-offload"],
)
def test_a_checkpoint_goes_on_to_the_bit_in_a_new_process(worlds, groups, tmp_path, num_ranks, dtype, trainer):
    world = worlds[num_ranks]
    config = _config(frozen=True, dtype=dtype, num_ranks=num_ranks, micro_batch_tokens=4000, **trainer)

    def steps(count: int) -> list[float]:
        return [world.each(Rank.update, world.prepare(groups), "policy", LOSS)[0].grad_norm for _ in range(count)]

    world.each(Rank.rebuild, config, OPTIMIZER)
    steps(2)
    world.each(Rank.save, tmp_path)
    expected, weights = steps(2), world.each(Rank.weights)
    world.each(Rank.rebuild, config, dataclasses.replace(OPTIMIZER, learning_rate=0.5))
    steps(1)  # a past of its own, which loading has to wipe out
    world.each(Rank.restore, tmp_path)
    assert steps(2) == expected
    for restored, saved in zip(world.each(Rank.weights), weights, strict=True):
        assert all(np.array_equal(restored[name], saved[name]) for name in restored)
    # a model of another shape is refused before anything is overwritten
    world.each(
        Rank.rebuild, dataclasses.replace(config, model=ModelConfig(dtype=dtype, freeze_vision=False)), OPTIMIZER
    )
    with pytest.raises(CheckpointError, match="is of another model: "):
        world.each(Rank.restore, tmp_path)


@pytest.fixture(scope="module", params=[family for family in FAMILIES if family != "qwen2_5_vl"])
def other_folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_model(tmp_path_factory.mktemp("other"), family=request.param, tie=True)


@pytest.fixture(scope="module")
def other_oracle(other_folder: Path, groups: list[TrainingGroup]) -> Oracle:
    return _oracle(other_folder, groups)


@pytest.mark.parametrize("zero_stage", [1, 2, 3])
@pytest.mark.parametrize("num_ranks", [1, 2])
def test_every_family_is_cut_alike(worlds, other_folder, other_oracle, groups, num_ranks, zero_stage):
    world = worlds[num_ranks]
    config = _config(num_ranks=num_ranks, zero_stage=zero_stage, micro_batch_tokens=SMALL_ROWS.budget)
    world.each(Rank.rebuild, config, OPTIMIZER, None, other_folder)
    _check_step(world, other_oracle, groups[::-1], num_ranks)
