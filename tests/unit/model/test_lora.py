"""Adapters: what they compute, what trains, and the weights that they stand for."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import PreTrainedModel

from rsgrpo.config import Config, ConfigError, LoraConfig, ModelConfig
from rsgrpo.model.exports import write_adapter
from rsgrpo.model.families.table import FAMILIES, family_of
from rsgrpo.model.lora import (
    adapter_layers,
    adapter_parameters,
    adapters_off,
    check_adapters,
    exported_parameters,
    merged_weight,
    named_adapters,
)
from rsgrpo.model.policy_model import load_model
from rsgrpo.types import TrainingGroup
from tests.packed import Packed
from tests.tiny_model import build_tiny_model, make_group, write_images


def _settings(**lora: object) -> ModelConfig:
    include_vision = bool(lora.get("include_vision", False))
    return ModelConfig(
        dtype="float32",
        freeze_vision=not include_vision,
        gradient_checkpointing=False,
        lora=LoraConfig(**({"rank": 4, "alpha": 8.0} | lora)),  # type: ignore[arg-type]
    )


def _train(packed: Packed, seed: int = 0) -> None:
    """Stand-in for training: adapters of some size."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in adapter_layers(packed.model).values():
            for parameter in adapter_parameters(layer):
                parameter.normal_(0.0, 0.2, generator=generator)


def _mlp_layers(model: PreTrainedModel) -> int:
    return family_of(model).vision_shape(model.config.vision_config).mlp_matrices


@pytest.fixture(
    scope="module",
    params=[("qwen2_5_vl", False), *((family, True) for family in FAMILIES)],
    ids=["own head", *FAMILIES],
)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_model(tmp_path_factory.mktemp("model"), family=request.param[0], tie=request.param[1])


@pytest.fixture(scope="module", params=[family for family in FAMILIES if not FAMILIES[family].delta_net])
def attending(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model all of whose layers attend, so that both have the same matrices."""
    return build_tiny_model(tmp_path_factory.mktemp("attending"), family=request.param, tie=True)


@pytest.fixture(scope="module")
def hybrid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A gated delta net, then a layer that attends."""
    return build_tiny_model(tmp_path_factory.mktemp("hybrid"), family="qwen3_5", tie=True)


@pytest.fixture(scope="module")
def groups(tmp_path_factory: pytest.TempPathFactory) -> list[TrainingGroup]:
    images = write_images(tmp_path_factory.mktemp("pages"), [(56, 56), (84, 56)])
    return [make_group("a", images, [5, 9, 7], seed=1), make_group("b", [], [3, 6], seed=2)]


@pytest.mark.parametrize("include_vision", [False, True])
def test_new_adapters_compute_the_base_model_to_the_bit(folder, groups, include_vision):
    plain, _ = Packed(folder, _settings(rank=0)).run(groups, share_prefix=True, budget=4000)
    adapted, _ = Packed(folder, _settings(include_vision=include_vision)).run(groups, share_prefix=True, budget=4000)
    assert all(torch.equal(plain[key], adapted[key]) for key in plain)


def test_adapters_off_compute_the_base_model_to_the_bit_whatever_they_learned(folder, groups):
    plain, _ = Packed(folder, _settings(rank=0)).run(groups, share_prefix=True, budget=4000)
    packed = Packed(folder, _settings())
    _train(packed)
    with adapters_off(packed.model):
        off, _ = packed.run(groups, share_prefix=True, budget=4000)
    on, _ = packed.run(groups, share_prefix=True, budget=4000)
    assert all(torch.equal(plain[key], off[key]) for key in plain)
    assert all((plain[key] - on[key]).abs().max() > 1e-3 for key in plain)


@pytest.mark.parametrize("include_vision", [False, True])
def test_exported_weights_compute_what_base_and_adapters_do(folder, groups, include_vision):
    packed = Packed(folder, _settings(include_vision=include_vision))
    _train(packed)
    expected, _ = packed.run(groups, share_prefix=True, budget=4000)
    plain = Packed(folder, _settings(rank=0))
    exported = exported_parameters(packed.model)
    names = [name for name, _ in plain.model.named_parameters()]
    assert [parameter.name for parameter in exported] == names  # a tied head stands once, as in the checkpoint
    plain.model.load_state_dict({parameter.name: parameter.tensor() for parameter in exported}, strict=False)
    merged, _ = plain.run(groups, share_prefix=True, budget=4000)
    for key, want in expected.items():
        torch.testing.assert_close(merged[key], want, atol=2e-5, rtol=0)  # one weight is rounded, not two


def test_only_adapters_train_and_the_tower_has_none(attending):
    model = load_model(attending, _settings(target_modules=["q_proj", "down_proj"]))
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    # two layers, two targets, A and B
    assert len(trained) == 8
    assert all(".lora_A." in name or ".lora_B." in name for name in trained)
    assert all(".q_proj." in name or ".down_proj." in name for name in trained)
    assert not any("visual" in name for name in trained)
    # changed by training: the four merged weights and nothing else
    changed = [parameter.name for parameter in exported_parameters(model) if parameter.is_trained]
    assert [name.rsplit(".", 2)[1] for name in changed] == ["q_proj", "down_proj"] * 2


def test_the_tower_gets_adapters_when_asked(folder):
    model = load_model(folder, _settings(include_vision=True))
    with_adapter = [name for name in adapter_layers(model) if ".visual." in name]
    # two blocks with fused qkv, proj, and the MLP: three layers where it is gated, else two
    assert len(with_adapter) == 2 * (2 + _mlp_layers(model))
    assert all(".visual.blocks." in name for name in with_adapter)


@pytest.mark.parametrize("recomputed", [False, True])
def test_gradient_with_shared_prefix_equals_that_without(folder, groups, recomputed):
    settings = _settings()
    settings.gradient_checkpointing = recomputed
    packed = Packed(folder, settings)
    _train(packed)
    _, shared = packed.run(groups, share_prefix=True, budget=4000)
    _, unshared = packed.run(groups, share_prefix=False, budget=4000)
    assert (shared - unshared).norm() < 1e-5 * unshared.norm()
    # r · (inputs + outputs) of an MLP: gate, up, down between 32 and 64
    mlp = 4 * 3 * 96
    if not family_of(packed.model).delta_net:
        # 2 layers with q, k, v, o of 32 → 32, 16, 16, 32
        assert len(shared) == 2 * (4 * (64 + 48 + 48 + 64) + mlp)
    else:
        # heads of 16, q with its gate: 32 → 128, k and v → 32, o 64 → 32; of a delta net q, k and v of 2, 2 and 4
        # heads of 8: 32 → 64, z → 32, out 32 → 32
        assert len(shared) == 4 * (160 + 64 + 64 + 96) + 4 * (96 + 64 + 64) + 2 * mlp


def test_merged_weight_by_hand():
    # W + 0.5 · B A: B A = [[3], [1]] · [[2, 4]] = [[6, 12], [2, 4]]
    merged = merged_weight(
        torch.ones(2, 2, dtype=torch.bfloat16), torch.tensor([[2.0, 4.0]]), torch.tensor([[3.0], [1.0]]), 0.5
    )
    assert merged.dtype == torch.bfloat16
    assert merged.tolist() == [[4.0, 7.0], [2.0, 3.0]]


def test_settings_that_cannot_be_are_refused(attending):
    with pytest.raises(
        ConfigError, match=r"names 'qkv_proj'.*the nearest is .*_proj; choose all-linear, or from q_proj, "
    ):
        load_model(attending, _settings(target_modules=["qkv_proj"]))
    with pytest.raises(ConfigError, match=r"set model\.freeze_vision=true, or model\.lora\.include_vision=true"):
        ModelConfig(freeze_vision=False, lora=LoraConfig(rank=8))
    with pytest.raises(ConfigError, match=r"set model\.freeze_vision=false, or model\.lora\.include_vision=false"):
        ModelConfig(freeze_vision=True, lora=LoraConfig(rank=8, include_vision=True))
    with pytest.raises(ConfigError, match=r"dropout=1\.0 must lie in"):
        LoraConfig(dropout=1.0)
    with pytest.raises(ConfigError, match="target_modules is empty"):
        LoraConfig(rank=1, target_modules=[])


LANGUAGE = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def _chosen(folder: Path, targets: object, **lora: object) -> list[str]:
    """The last names of the layers of the first blocks that get an adapter, in the model's order."""
    model = load_model(folder, _settings(target_modules=targets, **lora))
    first = [name for name in adapter_layers(model) if ".layers.0." in name or ".blocks.0." in name]
    return [name.rpartition(".")[2] for name in first]


@pytest.mark.parametrize(
    ("targets", "chosen"),
    [
        ("all-linear", LANGUAGE),
        (["all-linear"], LANGUAGE),
        ("q_proj", ("q_proj",)),
        (["self_attn.q_proj", "mlp.down_proj"], ("q_proj", "down_proj")),
        (["model.language_model.layers.0.self_attn.v_proj"], ("v_proj",)),
        (["model.layers.0.self_attn.v_proj"], ("v_proj",)),  # the name in adapters of older transformers
        (r".*layers\.\d+\.self_attn\.[qk]_proj", ("q_proj", "k_proj")),
        ([r".*\.mlp\..*"], ("gate_proj", "up_proj", "down_proj")),
    ],
)
def test_targets_are_read_as_peft_reads_them(attending, targets, chosen):
    assert _chosen(attending, targets) == list(chosen)


def test_gated_delta_nets_get_adapters_where_none_are_named(hybrid):
    # All but the two projections that are as narrow as there are heads.
    assert _chosen(hybrid, "auto") == ["out_proj", "in_proj_qkv", "in_proj_z", "gate_proj", "up_proj", "down_proj"]
    assert _chosen(hybrid, ["in_proj_a"], rank=4) == ["in_proj_a"]


def test_layers_of_the_tower_can_be_chosen_among(attending):
    # named ones alone; without any, all of the blocks', as the tower's layers show (the two blocks name them alike)
    assert _chosen(attending, ["q_proj", "qkv"], include_vision=True) == ["qkv", "q_proj"]
    model = load_model(attending, _settings())
    assert len(_chosen(attending, ["q_proj"], include_vision=True)) == 1 + 2 + _mlp_layers(model)


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        (
            {"target_modules": ["q_proj", "qkv"]},
            r"'qkv', which lies in the vision tower; set model\.lora\.include_vision",
        ),
        (
            {"target_modules": ["lm_head"]},
            "'lm_head', which lies outside the blocks|'lm_head', which is no linear layer",
        ),
        ({"target_modules": ["q_porj"]}, "the nearest is q_proj"),
        ({"target_modules": ".*nosuch"}, r"'\.\*nosuch', which is no linear layer"),
        # k_proj of the tiny model: 32 inputs, 2 heads of 8 as outputs
        ({"rank": 17, "target_modules": ["k_proj"]}, r"rank=17 is more than the 16 rows or columns of .*k_proj"),
    ],
)
def test_targets_that_do_not_fit_are_refused_without_loading_weights(attending, lora, message):
    with pytest.raises(ConfigError, match=message):
        check_adapters(attending, _settings(**lora).lora)
    check_adapters(attending, _settings(rank=16, target_modules=["k_proj"]).lora)


def test_targets_that_are_no_names_are_refused():
    for wrong in (None, 3, [3], {"a": 1}, [["q_proj"]], "(", [""]):
        with pytest.raises(ConfigError, match=r"^model\.lora\.target_modules"):
            LoraConfig(rank=4, target_modules=wrong)


@pytest.mark.parametrize("include_vision", [False, True])
def test_exported_adapters_are_those_that_peft_loads(folder, tmp_path, include_vision):
    settings = _settings(include_vision=include_vision)
    packed = Packed(folder, settings)
    _train(packed)
    write_adapter(tmp_path, named_adapters(packed.model), settings.lora, folder)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    base = family_of(packed.model).model.from_pretrained(folder, dtype=torch.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of missing and surplus matrices peft only warns
        adapted = PeftModel.from_pretrained(base, tmp_path)
    assert adapted.peft_config["default"].base_model_name_or_path == str(folder)
    merged = dict(adapted.merge_and_unload().named_parameters())
    weights = exported_parameters(packed.model)
    assert sum(weight.down is not None for weight in weights) == len(adapter_layers(packed.model))
    for weight in weights:
        # rounded once by either, after other orders of sums
        torch.testing.assert_close(merged[weight.name], weight.tensor(), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"export": "adapter"}, r"model.lora.export=adapter needs adapters; set model.lora.rank"),
        ({"update": "adapter"}, r"model.lora.update=adapter needs adapters"),
        ({"update": "adapter", "rank": 600}, r"model.lora.rank=600 is too large; it must be at most 512"),
        ({"update": "adapter", "rank": 4, "include_vision": True}, r"leaves the vision tower of the engines as it is"),
        (
            {"update": "adapters", "rank": 4},
            r"model.lora.update='adapters' is not known; choose one of merged",
        ),
    ],
    ids=["no adapters", "nothing to send", "rank", "tower", "misspelt"],
)
def test_adapters_that_engines_do_not_take_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        LoraConfig(**settings)


def test_adapters_of_two_stages_on_two_bases_do_not_go_to_one_engine():
    with pytest.raises(ConfigError, match=r"run stage=sft and stage=rl one after the other"):
        Config(stage="all", model=_settings(update="adapter"))
