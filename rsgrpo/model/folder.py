"""A model folder, looked at before its weights are loaded: config, headers of the weights, processor."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from rsgrpo.config import Config, ConfigError
from rsgrpo.config.rollout import MAX_BUCKET_MIB
from rsgrpo.data.hub import HubError, fetch_from_hub
from rsgrpo.errors import RsgrpoError, shown
from rsgrpo.failures import reason
from rsgrpo.io.natural_order import visible_files
from rsgrpo.model.families.family import Family
from rsgrpo.model.families.table import FAMILIES, supported_families

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, ProcessorMixin

_LISTED = "docs/families.md lists them"
_SHOWN_NAMES = 3
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
        ModelError: the model is of no family that is supported, or the hub does not give it.
    """
    folder = Path(path)
    if not folder.is_dir():
        try:
            folder = fetch_from_hub(path, "model", revision=revision, patterns=() if with_weights else _WITHOUT_WEIGHTS)
        except HubError as error:
            raise ModelError(
                f"model.path={shown(path)!r} is neither a folder nor a model that the hub gives: {error}; "
                "give the path of a model folder"
                f"{'' if with_weights else ' (its config and tokenizer suffice)'}, or check the name and the network"
            ) from error
    check_model_type(folder, f"model.path={path!r}")
    return folder.absolute()


def check_model_type(folder: Path, setting: str = "") -> Family:
    """Refuse what is of no supported family, or stored in a way that cannot be trained.

    Args:
        folder: the folder that holds the model.
        setting: the key and value that name it, for the message; empty: ``model.path``.

    Returns:
        The family of the model.

    Raises:
        ModelError: the folder has no readable ``config.json``, or that of a model that is not supported.
    """
    setting = setting or _own_setting(folder)
    try:
        content = json.loads((folder / "config.json").read_text())
        model_type = content.get("model_type")
    except (OSError, ValueError, AttributeError) as error:  # the last: a list or text where an object should be
        raise ModelError(
            f"{setting} has no readable config.json: {error}; name the folder of a {_any_family()}"
        ) from error
    family = FAMILIES.get(model_type) if isinstance(model_type, str) else None
    if family is None:
        raise ModelError(
            f"{setting} is a {shown(model_type, 40)!r} model{_kind(content)}; rsgrpo trains {supported_families()}: "
            f"{_LISTED}"
        )
    if content.get("quantization_config"):
        raise ModelError(
            f"{setting} is a quantised {family.name} (its config.json has quantization_config), whose weights cannot "
            "be trained; name the folder of the model that it was made from"
        )
    missing = family.missing_library()
    if missing:
        raise ModelError(f"{setting} is a {family.name}: {missing}")
    return family


def _any_family() -> str:
    return " or ".join(family.name for family in FAMILIES.values())


def _kind(content: Mapping[str, object]) -> str:
    """What about a model that is not supported its user should know first."""
    text = content.get("text_config")
    parts = (content, text) if isinstance(text, dict) else (content,)
    if any(key in part for part in parts for key in ("num_experts", "num_local_experts", "n_routed_experts")):
        return ", a mixture of experts"
    return "" if "vision_config" in content else " without a vision tower"


def check_layers(config: PreTrainedConfig, family: Family, folder: Path) -> None:
    """Refuse layers that packed sequences do not keep to, and features for layers that are not there.

    Args:
        config: the config of the model.
        family: its family.
        folder: the folder that holds it, for the message.

    Raises:
        ModelError: there are such layers or features.
    """
    kinds = getattr(config.get_text_config(), "layer_types", None) or ()
    other = next((kind for kind in kinds if kind not in family.layer_kinds), None)
    if other == "sliding_attention":
        raise ModelError(
            f"{_own_setting(folder)} has use_sliding_window=true: some of its layers see a window only, which packed "
            "rows do not keep to; set it to false in config.json if the model was trained without (as all published "
            f"{family.name} were), or train another model"
        )
    if other is not None:
        raise ModelError(
            f"{_own_setting(folder)} has layers of the kind {shown(other, 40)!r}, where a {family.name} has "
            f"{', '.join(family.layer_kinds)} only; copy config.json from the model that the weights belong to"
        )
    levels, layers = family.num_deepstack(config.vision_config), config.get_text_config().num_hidden_layers
    if levels > layers:
        raise ModelError(
            f"{_own_setting(folder)}: its vision_config hands {levels} levels of features to a language model of "
            f"{layers} layers, which would drop the others; copy config.json from the model that the weights belong to"
        )


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
    from transformers import AutoConfig

    family = check_model_type(folder)
    try:
        config = AutoConfig.from_pretrained(folder)
        with torch.device("meta"):  # without memory for weights
            model = family.model(config)
    except Exception as error:  # what stands in the file decides what transformers stumbles over
        raise ModelError(
            f"{shown(folder)}: config.json describes no {family.name} that can be built: {reason(error)}; copy it from "
            "the model that the weights belong to"
        ) from error
    check_layers(config, family, folder)
    tensors = stored_tensors(folder)
    embedding, num_layers, num_blocks = _sizes_of_weights(
        {name: tensor for name, tensor in tensors.items() if not name.startswith(family.unread_prefixes)}
    )
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
    check_names(model, family, tensors, folder)


def check_names(model: PreTrainedModel, family: Family, tensors: Mapping[str, StoredTensor], folder: Path) -> None:
    """Refuse files of weights that lack some of a model's, or have others.

    Args:
        model: the model, its parameters named as its class names them; values may be absent.
        family: its family.
        tensors: what its files hold.
        folder: the folder of the files, for the message.

    Raises:
        ModelError: names are missing or beyond the model's.
    """
    missing, surplus = _differing_names(model, family, tensors)
    if missing:
        raise ModelError(f"{_own_setting(folder)} lacks the weights {_some(missing)}; fetch the model again")
    if surplus:
        raise ModelError(
            f"{_own_setting(folder)} holds weights that a {family.name} of its config.json does not have: "
            f"{_some(surplus)}; take config.json and weights from one model, and merge adapters into it first"
        )


def _differing_names(model: PreTrainedModel, family: Family, stored: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Parameters that the files lack, and names in the files that are no parameter's or buffer's."""
    known: set[str] = set()
    found: dict[int, bool] = {}
    first_name: dict[int, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names = {family.checkpoint_name(name), name}
        known |= names
        first_name.setdefault(id(parameter), name)
        found[id(parameter)] = found.get(id(parameter), False) or any(one in stored for one in names)
    known |= {name for name, _ in model.named_buffers()}
    known |= {family.checkpoint_name(name) for name, _ in model.named_buffers()}
    missing = [first_name[key] for key, is_there in found.items() if not is_there]
    return missing, sorted(name for name in stored if name not in known and not name.startswith(family.unread_prefixes))


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN_NAMES} more" if len(names) > _SHOWN_NAMES else ""
    return ", ".join(shown(name, 80) for name in names[:_SHOWN_NAMES]) + more


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


def load_processor(folder: Path, setting: str = "") -> ProcessorMixin:
    """The model's tokenizer and image processor.

    Args:
        folder: the folder that holds the model.
        setting: the key and value that name it, for the message; empty: ``model.path``.

    Raises:
        ModelError: files of either are missing, or those of another model.
    """
    # Here, because it takes ten seconds, and the checks above never need it.
    from transformers import AutoProcessor

    setting = setting or _own_setting(folder)
    family = check_model_type(folder, setting)
    try:
        processor = AutoProcessor.from_pretrained(folder)
    except Exception as error:  # what stands in its files decides what transformers stumbles over
        raise ModelError(
            f"{setting} has no complete processor: {reason(error)}; copy preprocessor_config.json, "
            "the tokenizer's files and chat_template.jinja from the model that it was trained from"
        ) from error
    copied = "copy preprocessor_config.json and the tokenizer's files from the model that it was trained from"
    if type(processor).__name__ != family.processor_class:
        raise ModelError(
            f"{setting} has a {type(processor).__name__} where a {family.processor_class} is needed; {copied}"
        )
    problem = _processor_problem(processor, json.loads((folder / "config.json").read_text()), family)
    if problem:
        raise ModelError(f"{setting}: its processor {problem}; {copied}")
    if not processor.chat_template:
        raise ModelError(
            f"{setting} has no chat template, or an empty one; copy chat_template.jinja from the model that it was "
            "trained from"
        )
    return processor


def _processor_problem(processor: ProcessorMixin, config: Mapping[str, Any], family: Family) -> str:
    """Why a processor does not belong to a model with this ``config.json``; empty: it does."""
    images, vision = processor.image_processor, config.get("vision_config")
    vision = vision if isinstance(vision, dict) else {}
    wanted = {
        "patch_size": (images.patch_size, vision.get("patch_size", family.patch_pixels)),
        "merge_size": (images.merge_size, vision.get("spatial_merge_size", family.merge)),
        f"for {processor.image_token} the id": (processor.image_token_id, config.get("image_token_id")),
    }
    for name, (found, said) in wanted.items():
        if said is not None and found != said:
            return f"has {name} {found} where the model's config.json says {shown(said, 40)}"
    return ""
