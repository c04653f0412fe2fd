"""A model folder, looked at before its weights are loaded: config, headers of the weights, processor."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError, safe_open

from rsgrpo.config import Config, ConfigError
from rsgrpo.config.rollout import MAX_BUCKET_MIB
from rsgrpo.data.hub import HubError, fetch_from_hub
from rsgrpo.errors import RsgrpoError, shown
from rsgrpo.failures import reason
from rsgrpo.io.natural_order import visible_files

if TYPE_CHECKING:
    from transformers import Qwen2_5_VLProcessor

_MODEL_TYPE = "qwen2_5_vl"
_WITHOUT_WEIGHTS = ("*.json", "*.txt", "*.jinja", "*.model")
_NUMBERED = re.compile(r"\b(layers|blocks)\.(\d+)\.")
_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"


class ModelError(RsgrpoError, ValueError):
    """A model cannot be used; the message names the setting, the folder and the way out."""


def find_model(path: str, revision: str, *, with_weights: bool = True) -> Path:
    """The folder that ``model.path`` names, fetched from the hub if it is no folder here.

    Args:
        path: a folder, or a model's name on the hub.
        revision: the revision on the hub; empty: the newest.
        with_weights: whether the weights are fetched too; else only config, tokenizer and processor.

    Raises:
        ModelError: the model is no Qwen2.5-VL, or the hub does not give it.
    """
    folder = Path(path)
    if not folder.is_dir():
        try:
            folder = fetch_from_hub(path, "model", revision=revision, patterns=() if with_weights else _WITHOUT_WEIGHTS)
        except HubError as error:
            raise ModelError(
                f"model.path={shown(path)!r} is neither a folder nor a model that the hub gives: {error}; "
                "give the path of a Qwen2.5-VL folder"
                f"{'' if with_weights else ' (its config and tokenizer suffice)'}, or check the name and the network"
            ) from error
    check_model_type(folder, f"model.path={path!r}")
    return folder.absolute()


def check_model_type(folder: Path, setting: str = "") -> None:
    """Refuse what is no Qwen2.5-VL.

    Args:
        folder: the folder that holds the model.
        setting: the key and value that name it, for the message; empty: ``model.path``.

    Raises:
        ModelError: the folder has no readable ``config.json``, or that of another model.
    """
    setting = setting or _own_setting(folder)
    try:
        model_type = json.loads((folder / "config.json").read_text()).get("model_type")
    except (OSError, ValueError, AttributeError) as error:  # the last: a list or text where an object should be
        raise ModelError(f"{setting} has no readable config.json: {error}; name the folder of a Qwen2.5-VL") from error
    if model_type != _MODEL_TYPE:
        raise ModelError(f"{setting} is a {model_type!r} model; rsgrpo trains Qwen2.5-VL ({_MODEL_TYPE!r})")


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredTensor:
    """A tensor of a model's weights.

    Attributes:
        file: the file that holds the tensor.
        shape: the shape of the tensor.
    """

    file: Path
    shape: tuple[int, ...]


def stored_tensors(folder: Path, setting: str = "") -> dict[str, StoredTensor]:
    """Every tensor of a model's weights by name, from the headers of their files.

    Args:
        folder: the folder that holds the model.
        setting: the key and value that name it, for the message; empty: ``model.path``.

    Raises:
        ModelError: there are no weights, or a file of them is missing or cut off.
    """
    setting = setting or _own_setting(folder)
    tensors = {}
    for file in _weight_files(folder, setting):
        try:
            with safe_open(file, framework="np") as weights:
                for name in weights.keys():  # noqa: SIM118 - it is no dictionary
                    tensors[name] = StoredTensor(file=file, shape=tuple(weights.get_slice(name).get_shape()))
        except (OSError, SafetensorError) as error:
            raise ModelError(
                f"{setting}: the weights {shown(file)} cannot be read ({shown(error)}); fetch the model again"
            ) from error
    return tensors


def _own_setting(folder: Path) -> str:
    return f"model.path={shown(folder)!r}"


def _weight_files(folder: Path, setting: str) -> list[Path]:
    single, index = folder / _SINGLE, folder / _INDEX
    if single.is_file():
        return [single]
    if index.is_file():
        try:
            return [folder / name for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelError(f"{setting} has a damaged {_INDEX} ({shown(error)}); fetch the model again") from error
    files = visible_files(folder, "*.safetensors")
    if not files:
        raise ModelError(
            f"{setting} holds no weights (*.safetensors); fetch the model again, name another folder, or write older "
            "weights (*.bin) anew with transformers' save_pretrained"
        )
    return files


def check_sizes(folder: Path) -> None:
    """Refuse a ``config.json`` that describes no model, or another one than the weights beside it.

    Args:
        folder: the folder that holds the model.

    Raises:
        ModelError: a size does not fit; the message names it.
    """
    import torch
    from transformers import AutoConfig, Qwen2_5_VLForConditionalGeneration

    try:
        config = AutoConfig.from_pretrained(folder)
        with torch.device("meta"):  # without memory for weights
            Qwen2_5_VLForConditionalGeneration(config)
    except Exception as error:  # what stands in the file decides what transformers stumbles over
        raise ModelError(
            f"{shown(folder)}: config.json describes no Qwen2.5-VL that can be built: {reason(error)}; copy it from "
            "the model that the weights belong to"
        ) from error
    embedding, num_layers, num_blocks = _sizes_of_weights(stored_tensors(folder))
    text = config.get_text_config()
    wanted = {
        "vocab_size and hidden_size": (embedding, (text.vocab_size, text.hidden_size)),
        "num_hidden_layers": (num_layers, text.num_hidden_layers),
        "vision_config.depth": (num_blocks, config.vision_config.depth),
    }
    for name, (found, said) in wanted.items():
        if found != said:
            raise ModelError(
                f"{shown(folder)}: its weights have {name} {found}, its config.json says {said}; copy config.json from "
                "the model that the weights belong to"
            )


def _sizes_of_weights(tensors: Mapping[str, StoredTensor]) -> tuple[tuple[int, ...], int, int]:
    """The shape of the embedding, and how many layers language model and vision tower have, by the weights."""
    shape: tuple[int, ...] = ()
    layers, blocks = {-1}, {-1}
    for name, tensor in tensors.items():
        if name.endswith("embed_tokens.weight"):
            shape = tensor.shape
        numbered = _NUMBERED.search(name)
        if numbered:
            (blocks if numbered[1] == "blocks" else layers).add(int(numbered[2]))
    return shape, max(layers) + 1, max(blocks) + 1


def check_limits(folder: Path, config: Config) -> None:
    """Refuse sizes that the engine would refuse after loading the model.

    Args:
        folder: the folder that holds the model.
        config: the settings, of which ``rollout`` counts.

    Raises:
        ConfigError: a size is beyond a limit; the message names setting and limit.
    """
    from transformers import AutoConfig  # here for the same reason as below

    model = AutoConfig.from_pretrained(folder).get_text_config()
    rollout = config.rollout
    is_scaled = "factor" in (model.rope_parameters or {})  # YaRN and the like reach further than the table
    if rollout.max_model_tokens > model.max_position_embeddings and not is_scaled:
        raise ConfigError(
            f"rollout.max_model_tokens={rollout.max_model_tokens} is more than the {model.max_position_embeddings} "
            f"positions of the model in {shown(folder)}; lower it"
        )
    if model.num_attention_heads % rollout.tensor_parallel_size:
        raise ConfigError(
            f"rollout.tensor_parallel_size={rollout.tensor_parallel_size} does not divide the "
            f"{model.num_attention_heads} attention heads of the model in {shown(folder)}; choose one that does"
        )
    num_bytes = model.vocab_size * model.hidden_size * (4 if config.model.dtype == "float32" else 2)
    if rollout.weight_transfer == "object_store" and config.stage != "eval" and num_bytes > MAX_BUCKET_MIB * 2**20:
        raise ConfigError(
            f"rollout.weight_transfer=object_store sends a parameter in one message of at most {MAX_BUCKET_MIB} MiB, "
            f"the embedding of the model in {shown(folder)} has {num_bytes // 2**20} MiB in {config.model.dtype}; set "
            "rollout.weight_transfer=auto or model.dtype=bfloat16"
        )


def load_processor(folder: Path, setting: str = "") -> Qwen2_5_VLProcessor:
    """The model's tokenizer and image processor.

    Args:
        folder: the folder that holds the model.
        setting: the key and value that name it, for the message; empty: ``model.path``.

    Raises:
        ModelError: files of either are missing.
    """
    # Here, because it takes ten seconds, and the checks above never need it.
    from transformers import AutoProcessor, Qwen2_5_VLProcessor

    setting = setting or _own_setting(folder)
    try:
        processor = AutoProcessor.from_pretrained(folder)
    except Exception as error:  # what stands in its files decides what transformers stumbles over
        raise ModelError(
            f"{setting} has no complete processor: {reason(error)}; copy preprocessor_config.json, "
            "the tokenizer's files and chat_template.jinja from the model that it was trained from"
        ) from error
    if not isinstance(processor, Qwen2_5_VLProcessor):
        raise ModelError(
            f"{setting} has a {type(processor).__name__} where a Qwen2_5_VLProcessor is needed; copy "
            "preprocessor_config.json and the tokenizer's files from the model that it was trained from"
        )
    if not processor.chat_template:
        raise ModelError(
            f"{setting} has no chat template, or an empty one; copy chat_template.jinja from the model that it was "
            "trained from"
        )
    return processor
