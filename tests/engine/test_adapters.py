"""Adapters, reference and stored features under DeepSpeed: the same numbers, however the work is cut."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from rsgrpo.config import (
    Config,
    DataConfig,
    KlConfig,
    LoraConfig,
    LossConfig,
    ModelConfig,
    OptimizerConfig,
    TrainerConfig,
    VisionCacheConfig,
)
from rsgrpo.model.lora import adapter_layers, adapter_parameters, exported_parameters, named_adapters
from rsgrpo.trainer.faults import TrainerMemoryError
from tests.engine.reloading_worker import ReloadingWorker as Rank
from tests.engine.worlds import World
from tests.packed import Packed
from tests.tiny_model import checkpoint_name, make_group

pytestmark = pytest.mark.engine

OPTIMIZER = OptimizerConfig(learning_rate=1e-2)
PLAIN_LOSS = LossConfig(importance_cap=0.0)  # d loss = -(P - Q) d logprob
RANKS_AND_STAGES = [(1, 2), (1, 3), (2, 1), (2, 2), (2, 3)]


def _config(*, rank: int = 0, cached: bool = False, **trainer: object) -> Config:
    return Config(
        stage="sft",
        model=ModelConfig(
            dtype="float32",
            freeze_vision=True,
            gradient_checkpointing=rank > 0,
            lora=LoraConfig(rank=rank, alpha=8.0, target_modules=["q_proj", "up_proj"]),
            vision_cache=VisionCacheConfig(folder="features" if cached else ""),
        ),
        data=DataConfig(min_pixels=1, max_pixels=10**7),
        trainer=TrainerConfig(**({"micro_batch_tokens": 110} | trainer)),  # type: ignore[arg-type]
    )


def _flat(named: dict[str, np.ndarray]) -> np.ndarray:
    return np.concatenate([named[name].ravel() for name in sorted(named)])


@pytest.mark.parametrize(("num_ranks", "zero_stage"), RANKS_AND_STAGES)
def test_adapters_gradient_and_sent_weights_equal_those_of_one_process(worlds, folder, groups, num_ranks, zero_stage):
    world = worlds[num_ranks]
    config = _config(rank=4, num_ranks=num_ranks, zero_stage=zero_stage)
    world.each(Rank.rebuild, config, OPTIMIZER)
    world.each(Rank.move_adapters)
    plain = Packed(folder, config.model, with_suppressed=False)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for layer in adapter_layers(plain.model).values():
            for parameter in adapter_parameters(layer):
                parameter.normal_(0.0, 0.2, generator=generator)
    plain.run(groups, share_prefix=False, budget=220)
    expected = {
        checkpoint_name(name): -parameter.grad.numpy()
        for name, parameter in plain.model.named_parameters()
        if parameter.grad is not None
    }
    count = world.prepare(groups)
    for _, gradient in world.each(Rank.gradient, count, "policy", PLAIN_LOSS):
        assert gradient.keys() == expected.keys()
        assert np.linalg.norm(_flat(gradient) - _flat(expected)) < 1e-5 * np.linalg.norm(_flat(expected))
    merged = {
        checkpoint_name(weight.name): weight.tensor().detach().numpy() for weight in exported_parameters(plain.model)
    }
    for sent in world.each(Rank.sent):
        assert list(sent) == list(merged)
        assert all(np.array_equal(sent[name], merged[name]) for name in merged)
    adapters = dict(named_adapters(plain.model))
    for sent in world.each(Rank.sent_adapters):
        assert list(sent) == list(adapters)
        assert all(np.array_equal(sent[name], adapters[name].detach().numpy()) for name in adapters)


def test_an_update_carries_every_part_of_each_layer_that_the_engine_replaces_as_one(worlds):
    world = worlds[1]
    world.each(Rank.rebuild, _config(rank=4), OPTIMIZER)
    names = world.each(Rank.sent_names)[0]
    layer = "model.layers.0."
    # q_proj lies in one layer with k_proj and v_proj there, biases included; up_proj with gate_proj
    attention = [f"{layer}self_attn.{part}_proj.{kind}" for part in "qkv" for kind in ("weight", "bias")]
    assert [name for name in names if name.startswith(layer)] == [
        *attention,
        f"{layer}mlp.gate_proj.weight",
        f"{layer}mlp.up_proj.weight",
    ]
    assert not any("visual" in name or "norm" in name or "embed" in name for name in names)


@pytest.mark.parametrize("rank", [0, 4], ids=["frozen copy", "adapters off"])
@pytest.mark.parametrize(("num_ranks", "zero_stage"), [(1, 2), (2, 3)])
def test_reference_is_the_policy_at_first_and_never_moves_and_comes_back(
    worlds, folder, groups, tmp_path, rank, num_ranks, zero_stage
):
    world = worlds[num_ranks]
    config = _config(rank=rank, num_ranks=num_ranks, zero_stage=zero_stage)

    def fresh() -> int:
        world.each(Rank.rebuild, config, OPTIMIZER)
        world.each(Rank.begin_from, folder, True)
        return world.prepare(groups)

    def references() -> list[np.ndarray]:
        return [row for rows in world.each(Rank.reference, count) for row in rows]

    def policies() -> list[np.ndarray]:
        return [row for rows in world.each(Rank.scored, count) for row in rows]

    def update() -> list[np.ndarray]:
        for metrics in world.each(Rank.update, count, "policy", PLAIN_LOSS):
            assert not metrics.is_skipped
        return policies()

    count = fresh()
    begin = references()
    # k1 = logprob - reference = 0 before the first update
    for reference_row, policy_row in zip(begin, policies(), strict=True):
        np.testing.assert_allclose(reference_row, policy_row, atol=1e-6)
    update()
    world.each(Rank.save, tmp_path)
    expected = update()
    assert any(np.abs(before - after).max() > 1e-2 for before, after in zip(begin, expected, strict=True))
    assert all(np.array_equal(before, after) for before, after in zip(begin, references(), strict=True))
    # A new process on the checkpoint: the reference is the model at the beginning, the policy goes on to the bit.
    count = fresh()
    world.each(Rank.restore, tmp_path)
    assert all(np.array_equal(before, after) for before, after in zip(begin, references(), strict=True))
    assert all(
        np.array_equal(uninterrupted, resumed) for uninterrupted, resumed in zip(expected, update(), strict=True)
    )


def _by_response(world: World, count: int) -> dict[tuple[str, int], np.ndarray]:
    return {stats.key: stats.logprobs for of_rank in world.each(Rank.score, count) for stats in of_rank}


@pytest.mark.parametrize(
    ("rank", "num_ranks", "zero_stage"), [(0, 1, 2), (4, 2, 3)], ids=["frozen copy", "adapters off"]
)
def test_the_kl_term_pulls_each_token_towards_the_reference(worlds, folder, groups, rank, num_ranks, zero_stage):
    world = worlds[num_ranks]
    world.each(Rank.rebuild, _config(rank=rank, num_ranks=num_ranks, zero_stage=zero_stage), OPTIMIZER)
    world.each(Rank.begin_from, folder, True)
    count = world.prepare(groups)
    reference = _by_response(world, count)  # nothing was updated yet
    world.each(Rank.update, count, "policy", PLAIN_LOSS)
    policy = _by_response(world, count)
    world.each(Rank.begin_stage, OptimizerConfig(learning_rate=1e-15, weight_decay=0.0), 10)  # nothing moves from here
    distance = {key: policy[key] - reference[key] for key in policy}
    # w d² / 2 with d = log policy - log reference has the gradient w d, and so have, on-policy and without a KL term,
    # the streams P + w max(-d, 0) and Q + w max(d, 0).
    with_term, with_streams = [], []
    for group in groups:
        pulled, pushed = [], []
        for response in group.responses:
            weight = 0.01 * (1 + response.response_index)
            d = distance[group.sample_id, response.response_index]
            pulled.append(dataclasses.replace(response, kl_weight=weight))
            pushed.append(
                dataclasses.replace(
                    response,
                    positive_weights=response.positive_weights + np.float32(weight) * np.maximum(-d, 0),
                    negative_weights=response.negative_weights + np.float32(weight) * np.maximum(d, 0),
                )
            )
        with_term.append(dataclasses.replace(group, responses=tuple(pulled)))
        with_streams.append(dataclasses.replace(group, responses=tuple(pushed)))
    loss = LossConfig(importance_cap=0.0, kl=KlConfig(coefficient=1.0, estimator="k2"))
    gradients = []
    for given, settings in ((with_term, loss), (with_streams, PLAIN_LOSS), (groups, PLAIN_LOSS)):
        count = world.prepare(given)
        gradients.append(_flat(world.each(Rank.gradient, count, "policy", settings)[0][1]))
        world.each(Rank.step)  # forgets the gradient
    actual, expected, without = gradients
    term = np.linalg.norm(expected - without)
    assert term > 0.01 * np.linalg.norm(expected)
    assert np.linalg.norm(actual - expected) < 1e-3 * term
    passes = world.each(Rank.accumulate, world.prepare(with_term), "policy", loss)
    totals = [accumulated.totals.kl_reference_sum for accumulated in passes]
    # reported is k3 = exp(-d) - 1 + d
    assert sum(totals) == pytest.approx(sum(float((np.expm1(-d) + d).sum()) for d in distance.values()), rel=1e-3)


def test_a_stage_that_starts_from_a_trained_model_has_new_adapters_on_its_weights(worlds, folder, groups, tmp_path):
    world = worlds[1]
    world.each(Rank.rebuild, _config(rank=4), OPTIMIZER)
    count = world.prepare(groups)
    first_origin = world.each(Rank.begin_from, folder, False)[0]
    world.each(Rank.update, count, "nll", None)
    trained = world.each(Rank.scored, count)[0]
    world.each(Rank.export, tmp_path / "model")
    second_origin = world.each(Rank.begin_from, tmp_path / "model", True)[0]
    assert first_origin and second_origin and first_origin != second_origin
    count = world.prepare(groups)
    reference, policy = world.each(Rank.reference, count)[0], world.each(Rank.scored, count)[0]
    for trained_row, policy_row, reference_row in zip(trained, policy, reference, strict=True):
        np.testing.assert_allclose(policy_row, trained_row, atol=1e-5)
        assert np.array_equal(policy_row, reference_row)
    assert world.each(Rank.begin_from, tmp_path / "model", False)[0] == second_origin


@pytest.mark.parametrize(("num_ranks", "zero_stage"), [(2, 2), (2, 3)])
def test_stored_features_give_the_same_gradient_and_weights(worlds, groups, tmp_path, num_ranks, zero_stage):
    world = worlds[num_ranks]
    seen = []
    for cached in (False, True, True):
        config = _config(cached=cached, num_ranks=num_ranks, zero_stage=zero_stage)
        folder = tmp_path / "features" if cached else None
        world.each(Rank.rebuild, config, OPTIMIZER, folder)
        count = world.prepare(groups)
        _, gradient = world.each(Rank.gradient, count, "policy", PLAIN_LOSS)[0]
        seen.append((gradient, world.each(Rank.sent)[0]))
    (plain, plain_sent), (missed, missed_sent), (hit, _) = seen
    assert len(list((tmp_path / "features").glob("*.safetensors"))) == 3
    assert all(np.array_equal(missed[name], hit[name]) for name in missed)
    # The tower runs page by page instead of row by row, which may round otherwise.
    assert plain.keys() == hit.keys()
    assert np.linalg.norm(_flat(plain) - _flat(hit)) < 1e-6 * np.linalg.norm(_flat(plain))
    assert plain_sent.keys() == missed_sent.keys()
    assert all(np.array_equal(plain_sent[name], missed_sent[name]) for name in plain_sent)


def test_cached_pages_are_counted(worlds, groups, tmp_path):
    world = worlds[1]
    world.each(Rank.rebuild, _config(cached=True, micro_batch_tokens=4000), OPTIMIZER, tmp_path)
    counts = []
    for _ in range(2):
        world.each(Rank.prepare, groups)
        update = world.each(Rank.accumulate, 1, "nll", None)[0]
        world.each(Rank.take_step)
        counts.append((update.totals.num_images, update.num_cached_images))
    assert counts == [(3, 0), (3, 3)]  # one row shows each of the three pages once


def test_a_row_that_memory_does_not_hold_is_named_with_its_need(worlds):
    world = worlds[1]
    world.each(Rank.rebuild, _config(micro_batch_tokens=40000), OPTIMIZER)
    # What the layers keep of 32,000 tokens takes more than the C library has left over from earlier tests.
    world.each(Rank.prepare, [make_group("long", [], [16000, 15900], seed=1)])
    with pytest.raises(TrainerMemoryError) as caught:
        world.each(Rank.update_with_bytes_left, 2**22)
    message = str(caught.value)
    assert "2 responses) needed at least" in message and "GiB more were asked for" in message
    assert "set trainer.micro_batch_tokens below 319" in message and "(now 40000)" in message
