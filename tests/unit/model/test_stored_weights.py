"""A model whose values stay in its folder until there is a place for them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Qwen2_5_VLForConditionalGeneration

from rsgrpo.config import LoraConfig, ModelConfig
from rsgrpo.model.folder import ModelError
from rsgrpo.model.lora import add_adapters, exported_parameters
from rsgrpo.model.policy_model import load_model, open_model
from tests.live_bytes import LiveBytes
from tests.tiny_model import build_tiny_model

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def untied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_model(tmp_path_factory.mktemp("untied"))


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_model(tmp_path_factory.mktemp("tied"), tie=True)


def _plain(folder: Path, dtype: str) -> Qwen2_5_VLForConditionalGeneration:
    return Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, dtype=getattr(torch, dtype))


def _copied(folder: Path, to: Path) -> tuple[Path, dict[str, torch.Tensor]]:
    """Another folder of the same model, its tensors still to be written."""
    (to / "config.json").write_bytes((folder / "config.json").read_bytes())
    return to, load_file(folder / "model.safetensors")


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("name", ["untied", "tied"])
def test_a_loaded_model_is_that_of_transformers_to_the_bit(request, name, dtype):
    folder = request.getfixturevalue(name)
    model, plain = load_model(folder, ModelConfig(dtype=dtype)), _plain(folder, dtype)
    for ours, theirs in (
        (dict(model.named_parameters()), dict(plain.named_parameters())),
        (dict(model.named_buffers()), dict(plain.named_buffers())),
    ):
        assert ours.keys() == theirs.keys()
        assert all(ours[key].dtype == theirs[key].dtype and torch.equal(ours[key], theirs[key]) for key in theirs)
    embedding = model.model.language_model.embed_tokens.weight
    assert (model.lm_head.weight is embedding) == (name == "tied")
    assert model.generation_config.to_dict() == plain.generation_config.to_dict()


def test_adapters_begin_as_on_a_model_that_was_loaded_whole(untied):
    lora = LoraConfig(rank=4, target_modules=["q_proj", "down_proj"])
    torch.manual_seed(3)
    plain = _plain(untied, "bfloat16")
    add_adapters(plain, lora)
    torch.manual_seed(3)
    ours = dict(load_model(untied, ModelConfig(lora=lora)).named_parameters())
    theirs = dict(plain.named_parameters())
    assert ours.keys() == theirs.keys() and any("lora_A" in key for key in ours)
    for key in theirs:
        assert torch.equal(ours[key], theirs[key]) and ours[key].requires_grad == theirs[key].requires_grad


def test_opening_a_model_reads_no_values_and_loading_it_copies_each_once(untied):
    sizes = [parameter.nbytes for parameter in _plain(untied, "bfloat16").parameters()]
    with LiveBytes() as opening:
        opened = open_model(untied, ModelConfig())
    # While it is built, one parameter at a time exists before it is let go; buffers are a few hundred bytes.
    assert opening.peak < max(sizes) + 10_000 < sum(sizes) / 2
    # What nobody has loaded cannot be taken for a value.
    assert all(parameter.isnan().all() for parameter in opened.model.parameters())
    with LiveBytes() as loading:
        opened.weights.load(opened.model.parameters(), CPU)
    # The file is float32: it is converted tensor by tensor, straight into its place.
    assert sum(sizes) <= loading.peak <= sum(sizes) + max(sizes)


def test_parameters_get_their_values_one_by_one(untied):
    opened = open_model(untied, ModelConfig(dtype="float32"))
    parameters = list(opened.model.parameters())
    for index, filled in enumerate(opened.weights.filled(parameters, CPU)):
        assert filled is parameters[index] and not filled.isnan().any()
        assert all(parameter.isnan().all() for parameter in parameters[index + 1 :])
    # A value is the file's even after the parameter has changed.
    first = exported_parameters(opened.model)[0].base
    before = first.detach().clone()
    with torch.no_grad():
        first.zero_()
    assert torch.equal(opened.weights.value(first), before)


def test_weights_in_several_files_and_under_newer_names_are_found(untied, tmp_path):
    folder, tensors = _copied(untied, tmp_path)
    names = sorted(tensors)
    # transformers' own names for the parts, as some tools write them
    renamed = {
        name: name.replace("model.", "model.language_model.", 1).replace("visual.", "model.visual.")
        if not name.startswith("visual.")
        else f"model.{name}"
        for name in names
    }
    files = {name: f"model-{1 + index % 2}-of-2.safetensors" for index, name in enumerate(names)}
    for file in set(files.values()):
        save_file({renamed[name]: tensors[name] for name in names if files[name] == file}, folder / file)
    index = {"weight_map": {renamed[name]: files[name] for name in names}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    theirs = load_model(untied, ModelConfig())
    for _ in range(2):
        ours = load_model(folder, ModelConfig())
        assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))
        (folder / "model.safetensors.index.json").unlink(missing_ok=True)  # engines find the parts without it as well


def test_a_folder_that_lacks_weights_or_has_others_is_refused(untied, tied, tmp_path):
    folder, tensors = _copied(untied, tmp_path)

    def refused(changed: dict[str, torch.Tensor], expected: str) -> None:
        save_file(changed, folder / "model.safetensors")
        with pytest.raises(ModelError, match=expected) as caught:
            load_model(folder, ModelConfig())
        assert len(str(caught.value)) <= 500

    # transformers would train on with random numbers in their place.
    names = [name for name in tensors if "layers.1" in name]
    refused({name: tensor for name, tensor in tensors.items() if name not in names}, r"lacks the weights .* and 9 more")
    refused(tensors | {"model.norm.weight": torch.ones(7)}, r"model\.norm\.weight of shape \[7\].*says \[32\]")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"holds no weights \(\*\.safetensors\)"):
        load_model(folder, ModelConfig())
    (folder / "model.safetensors.index.json").write_text('{"weights": {}}')
    with pytest.raises(ModelError, match=r"has a damaged model\.safetensors\.index\.json"):
        load_model(folder, ModelConfig())
    folder, tensors = _copied(tied, tmp_path)
    embedding = tensors["model.embed_tokens.weight"]
    refused(tensors | {"lm_head.weight": embedding + 1}, r"different values for .*which its config\.json ties")
    save_file(tensors | {"lm_head.weight": embedding.clone()}, folder / "model.safetensors")
    assert torch.equal(load_model(folder, ModelConfig(dtype="float32")).lm_head.weight, embedding)
    # One of the two is enough, whichever.
    alone = {name: tensor for name, tensor in tensors.items() if name != "model.embed_tokens.weight"}
    save_file(alone | {"lm_head.weight": embedding.clone()}, folder / "model.safetensors")
    assert torch.equal(load_model(folder, ModelConfig(dtype="float32")).lm_head.weight, embedding)
