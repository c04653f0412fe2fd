"""How large a model is said to be, against its own class: parameters, the matrices that tokens pass, layers by kind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from rsgrpo.config import LoraConfig, ModelConfig
from rsgrpo.model.families.table import FAMILIES
from rsgrpo.model.lora import add_adapters
from rsgrpo.model.sizes import model_sizes
from tests.published_sizes import PUBLISHED, write_config
from tests.tiny_model import build_tiny_model


@pytest.fixture(scope="module", params=list(FAMILIES))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_model(tmp_path_factory.mktemp(request.param), hidden=64, layers=4, family=request.param)


def _model(folder: Path) -> Any:
    config = AutoConfig.from_pretrained(folder)
    with torch.device("meta"):
        return FAMILIES[config.model_type].model(config)


def _matrices(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters() if parameter.ndim > 1)


def test_all_parameters_count(folder: Path) -> None:
    model, sizes = _model(folder), model_sizes(folder, ModelConfig())
    assert sizes.num_elements == sum(parameter.numel() for parameter in model.parameters())
    assert sizes.num_vision == sum(parameter.numel() for parameter in model.model.visual.parameters())
    assert sizes.num_trained == sizes.num_elements - sizes.num_vision


def test_matrices_are_those_of_the_layers(folder: Path) -> None:
    model, sizes = _model(folder), model_sizes(folder, ModelConfig())
    assert sizes.language.matrix_elements == _matrices(model.model.language_model.layers)
    assert sizes.vision.matrix_elements == _matrices(model.model.visual.blocks)
    mergers = [module for name, module in model.model.visual.named_children() if "merger" in name]
    assert sizes.projector_elements == sum(map(_matrices, mergers))


def test_layers_that_do_not_attend_are_gated_delta_nets(folder: Path) -> None:
    model, sizes = _model(folder), model_sizes(folder, ModelConfig())
    attending = [hasattr(layer, "self_attn") for layer in model.model.language_model.layers]
    assert sizes.language.attending_layers == sum(attending)
    net = sizes.language.delta_nets
    if net is None:
        assert all(attending)
        return
    own = model.model.language_model.layers[0].linear_attn
    assert net.layers == 4 - sum(attending) == 3
    assert (net.channels, net.all_values) == (own.conv1d.weight.shape[0], own.value_dim)
    assert net.state_elements == own.num_v_heads * own.head_k_dim * own.head_v_dim


def test_adapters_are_those_that_are_added(folder: Path) -> None:
    lora = LoraConfig(rank=4)
    model = _model(folder)
    add_adapters(model, lora)
    sizes = model_sizes(folder, ModelConfig(lora=lora))
    assert sizes.num_trained == sum(part.numel() for part in model.parameters() if part.requires_grad)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_models_have_their_published_numbers_of_parameters(name: str, tmp_path: Path) -> None:
    sizes = model_sizes(write_config(name, tmp_path), ModelConfig())
    assert sizes.num_elements == PUBLISHED[name].num_parameters


def test_engines_keep_states_in_the_precision_that_the_config_names(tmp_path: Path) -> None:
    folder = write_config("Qwen3.5-9B", tmp_path)
    net = model_sizes(folder, ModelConfig()).language.delta_nets
    assert net is not None and net.has_float32_states
    file = folder / "config.json"
    content = json.loads(file.read_text())
    del content["text_config"]["mamba_ssm_dtype"]
    file.write_text(json.dumps(content))
    net = model_sizes(folder, ModelConfig()).language.delta_nets
    assert net is not None and not net.has_float32_states
