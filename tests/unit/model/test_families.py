"""What the table of families says, what is refused, and that nobody else asks which family a model is of."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

from rsgrpo.config import ConfigError, QuickstartConfig
from rsgrpo.failures import explain
from rsgrpo.model.families import family as family_module
from rsgrpo.model.families.table import FAMILIES, supported_families
from rsgrpo.model.folder import ModelError, check_layers, check_model_type, check_sizes, load_processor
from tests.tiny_model import build_tiny_model

REPOSITORY = Path(__file__).resolve().parents[3]
# A family's classes in transformers, or its name in config.json as a word of code.
OF_ONE_FAMILY = re.compile(r"Qwen\d\w*?(Config|Generation|Processor|Model)\b|[\"']qwen\d\w*_(vl|\d)[\"']")
# The setting that names families lists their names; a test below compares it with the table.
EXEMPT = {"rsgrpo/config/quickstart.py"}


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_model(tmp_path_factory.mktemp(request.param), family=request.param)


@pytest.fixture
def model(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "model"))


def change(file: Path, **settings: Any) -> None:
    content = json.loads(file.read_text())
    for name, value in settings.items():
        part = content
        *outer, last = name.split("__")
        for key in outer:
            part = part[key]
        part[last] = value
    file.write_text(json.dumps(content))


def refusal(function: Any, *arguments: Any) -> str:
    with pytest.raises(ModelError) as caught:
        function(*arguments)
    failure = explain(caught.value)
    assert failure.is_foreseen and len(failure.sentence) < 500
    return failure.sentence


def test_nobody_asks_which_family_a_model_is_of() -> None:
    files = [REPOSITORY / "train.py"]
    for package in ("rsgrpo", "recipes", "rollout", "rewards"):
        files += sorted((REPOSITORY / package).rglob("*.py"))
    named = {
        file.relative_to(REPOSITORY).as_posix()
        for file in files
        if "families" not in file.parts[:-1] or file.parent.name != "families"
        if OF_ONE_FAMILY.search(file.read_text())
    }
    assert named - EXEMPT == set()


def test_the_quickstart_can_build_every_family() -> None:
    for model_type in FAMILIES:
        assert QuickstartConfig(family=model_type).family == model_type  # type: ignore[arg-type]  # checked here
    # What may be set is what the table holds: the message of a wrong value lists both alike.
    with pytest.raises(ConfigError, match=f"choose one of {', '.join(FAMILIES)}$"):
        QuickstartConfig(family="llama")  # type: ignore[arg-type]  # what a user may write
    page = (REPOSITORY / "docs" / "families.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("| Qwen")]
    for family in FAMILIES.values():
        (row,) = [line for line in rows if f"| `{family.model_type}` | {family.token_pixels} |" in line]
        assert f"`{family.box_coordinates}`" in row
        assert row.endswith(f"| {family.transformers_version}, {family.vllm_version} |")


def test_names_of_weights_are_those_of_published_checkpoints() -> None:
    name_of = FAMILIES["qwen2_5_vl"].checkpoint_name
    assert name_of("model.language_model.layers.0.mlp.up_proj.weight") == "model.layers.0.mlp.up_proj.weight"
    assert name_of("model.visual.merger.ln_q.weight") == "visual.merger.ln_q.weight"
    assert name_of("lm_head.weight") == "lm_head.weight"


def test_a_folder_has_the_names_that_its_family_publishes(whole: Path) -> None:
    family = check_model_type(whole)
    model = family.model.from_pretrained(whole)
    assert set(load_file(whole / "model.safetensors")) == {
        family.checkpoint_name(name) for name, _ in model.named_parameters()
    }


def test_a_whole_folder_is_taken(whole: Path) -> None:
    check_sizes(whole)
    assert load_processor(whole).image_processor.patch_size == check_model_type(whole).patch_pixels


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (
            {"model_type": "qwen3_vl_moe", "vision_config": {}, "text_config": {"num_experts": 8}},
            "a mixture of experts",
        ),
        (
            {"model_type": "qwen3_5_moe", "vision_config": {}, "text_config": {"num_experts": 8}},
            "a mixture of experts",
        ),
        ({"model_type": "qwen3_5_text"}, "is a 'qwen3_5_text' model without a vision tower"),
        ({"model_type": "llama"}, "is a 'llama' model without a vision tower"),
        ({"model_type": "gemma3", "vision_config": {}}, "is a 'gemma3' model; rsgrpo trains"),
        ({"model_type": ["qwen2_5_vl"], "vision_config": {}}, "rsgrpo trains"),
        ({}, "is a 'None' model"),
    ],
    ids=["experts", "experts of a hybrid", "a hybrid's text only", "text only", "other family", "a list", "nothing"],
)
def test_what_is_not_in_the_table_is_refused_by_name(content: object, expected: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(content))
    sentence = refusal(check_model_type, tmp_path, "model.path=m")
    assert expected in sentence
    assert supported_families() in sentence and "docs/families.md" in sentence


def test_more_levels_of_features_than_layers_are_refused(tmp_path: Path) -> None:
    # The tower's first block for each of three levels, a language model of two layers: transformers drops the third.
    folder = build_tiny_model(tmp_path / "model", family="qwen3_vl")
    check_layers(AutoConfig.from_pretrained(folder), FAMILIES["qwen3_vl"], folder)
    change(folder / "config.json", vision_config__deepstack_visual_indexes=[0, 0, 0])
    config = AutoConfig.from_pretrained(folder)
    assert "hands 3 levels" in refusal(check_layers, config, FAMILIES["qwen3_vl"], folder)


def test_a_quantised_checkpoint_is_refused(model: Path) -> None:
    change(model / "config.json", quantization_config={"quant_method": "awq"})
    assert "is a quantised" in refusal(check_model_type, model)


@pytest.mark.parametrize("library", ["transformers", "vllm"])
def test_a_library_without_the_family_is_named_with_the_version_that_has_it(
    library: str, model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # An older library: its folder is there, the family's file is not. One that is absent is for others to refuse.
    class Older:
        submodule_search_locations = (str(tmp_path),)

    monkeypatch.setattr(family_module, "find_spec", lambda name: Older() if name == library else None)
    family = FAMILIES[json.loads((model / "config.json").read_text())["model_type"]]
    version = family.transformers_version if library == "transformers" else family.vllm_version
    assert f"the installed {library} has no {family.name}; {library} {version}" in refusal(check_model_type, model)


def test_weights_that_the_config_does_not_know_are_refused(model: Path) -> None:
    tensors = load_file(model / "model.safetensors")
    save_file(tensors | {"adapter.lora_A.weight": torch.zeros(2)}, model / "model.safetensors")
    assert "adapter.lora_A.weight" in refusal(check_sizes, model)
    norm = next(name for name in tensors if name.endswith("input_layernorm.weight"))
    save_file({name: tensor for name, tensor in tensors.items() if name != norm}, model / "model.safetensors")
    assert "lacks the weights" in refusal(check_sizes, model)


def test_weights_that_published_checkpoints_hold_beside_the_models_are_left_out(tmp_path: Path) -> None:
    folder = build_tiny_model(tmp_path / "model", family="qwen3_5")
    tensors = load_file(folder / "model.safetensors")
    ahead = {"mtp.layers.7.mlp.up_proj.weight": torch.zeros(2), "mtp.embed_tokens.weight": torch.zeros(3, 2)}
    save_file(tensors | ahead, folder / "model.safetensors")
    check_sizes(folder)
    # What only looks alike is refused.
    save_file(tensors | {"mtp_layers.weight": torch.zeros(2)}, folder / "model.safetensors")
    assert "mtp_layers.weight" in refusal(check_sizes, folder)


def test_a_processor_of_another_model_is_refused(model: Path) -> None:
    change(model / "processor_config.json", image_processor__patch_size=12)
    assert "its processor has patch_size 12 where" in refusal(load_processor, model)
    change(model / "processor_config.json", processor_class="LlavaProcessor")
    assert "copy" in refusal(load_processor, model)


def test_a_tokenizer_with_other_ids_is_refused(model: Path) -> None:
    change(model / "config.json", image_token_id=7)
    assert "where the model's config.json says 7" in refusal(load_processor, model)


def test_sliding_windows_are_refused_before_workers_start(tmp_path: Path) -> None:
    folder = build_tiny_model(tmp_path / "model")
    change(folder / "config.json", text_config__use_sliding_window=True, text_config__sliding_window=8)
    change(folder / "config.json", text_config__max_window_layers=1, text_config__layer_types=None)
    assert "use_sliding_window=true" in refusal(check_sizes, folder)
