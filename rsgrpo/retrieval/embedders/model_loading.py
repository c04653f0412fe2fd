"""Find an embedder's model and load it: what is missing or does not fit is refused before anything is computed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch

from rsgrpo.config.embedder import EmbedderConfig
from rsgrpo.data.hub import HubError, fetch_from_hub
from rsgrpo.errors import shown
from rsgrpo.io.atomic_files import read_json_object
from rsgrpo.retrieval.embedders.embedder import EmbeddingError
from rsgrpo.retrieval.embedders.weight_report import watched_loading

_MODULES_FILE = "modules.json"  # what sentence-transformers saves beside a model
_KIND_FILE = "config_sentence_transformers.json"
_ADAPTER_FILE = "adapter_config.json"
MULTI_VECTOR_KINDS = ("MultiVectorEncoder", "ColBERT")
"""The kinds that sentence-transformers and PyLate write into the folders of models with many vectors an item."""

Model = TypeVar("Model")


def model_folder(config: EmbedderConfig) -> Path:
    """Find the folder of the model; a model on the hub is downloaded, or taken from the hub's cache.

    Args:
        config: the settings that name the model.

    Returns:
        The folder.

    Raises:
        EmbeddingError: no model is named, there is neither such a folder nor such a model on the hub, or the folder
            holds adapters alone.
    """
    if not config.model:
        raise EmbeddingError("embedder.model is empty; name a folder, or a model on the hub")
    folder = Path(config.model)
    if not folder.is_dir():
        try:
            folder = fetch_from_hub(config.model, "model", revision=config.revision)
        except HubError as error:
            raise EmbeddingError(
                f"embedder.model={shown(config.model)!r} is neither a folder nor a model that the hub gives: {error}; "
                "give a folder, or check the name and the network"
            ) from error
    if (folder / _ADAPTER_FILE).exists():
        raise EmbeddingError(
            f"{shown(folder)} holds adapters, whose base model lies elsewhere and may change; merge them, and name the "
            "folder of the whole model"
        )
    return folder


def pinned(config: EmbedderConfig, folder: Path) -> EmbedderConfig:
    """Make settings that load the same model from any working folder and later on.

    Args:
        config: the settings that name the model.
        folder: the folder that :func:`model_folder` found for them.

    Returns:
        The settings with an absolute folder, or with the revision that the hub gave.
    """
    if Path(config.model).is_dir():
        return dataclasses.replace(config, model=str(folder.resolve()))
    return dataclasses.replace(config, revision=folder.name)  # the hub's cache calls a snapshot by its commit


def is_saved(folder: Path) -> bool:
    """Whether sentence-transformers saved the model, with all that it does to token vectors."""
    return (folder / _MODULES_FILE).is_file()


def saved_kind(folder: Path) -> str:
    """Read the kind of model that sentence-transformers says a folder holds; empty where it says none.

    Args:
        folder: the folder of the model.
    """
    if not (folder / _KIND_FILE).is_file():
        return ""
    return str(read_json_object(folder / _KIND_FILE).get("model_type") or "")


def device_of(config: EmbedderConfig) -> str:
    """Choose the device that the model runs on.

    Args:
        config: the settings of the embedder.

    Returns:
        ``cuda`` or ``cpu``.

    Raises:
        EmbeddingError: a GPU is asked for, and there is none.
    """
    device = config.device if config.device != "auto" else ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        raise EmbeddingError("embedder.device=cuda, and torch finds no GPU here; set embedder.device=cpu")
    return device


def dtype_of(config: EmbedderConfig, device: str) -> str:
    """Choose the type of the weights.

    Args:
        config: the settings of the embedder.
        device: the device that :func:`device_of` chose.

    Returns:
        The name that torch has for the type, such as ``bfloat16``.
    """
    return config.dtype if config.dtype != "auto" else ("bfloat16" if device == "cuda" else "float32")


def kept_dimension(config: EmbedderConfig, own: int, folder: Path) -> int:
    """Find how many numbers of each vector are kept.

    Args:
        config: the settings, of which ``dimension`` counts; 0: all numbers.
        own: how many numbers the model's vectors have.
        folder: the folder of the model, for the message.

    Raises:
        EmbeddingError: more numbers are asked for than the model gives.
    """
    if config.dimension > own:
        raise EmbeddingError(
            f"embedder.dimension={config.dimension} is more than the {own} of the model {shown(folder)}; lower it, or "
            "set 0 for all of them"
        )
    return config.dimension or own


def load_model(config: EmbedderConfig, folder: Path, make: Callable[[str, Mapping[str, Any]], Model]) -> Model:
    """Load a model of sentence-transformers, and put it in evaluation mode on its device.

    Args:
        config: the settings that say how the model is run.
        folder: the folder of the model.
        make: the function that makes the model on a device, with arguments for transformers.

    Returns:
        The model.

    Raises:
        EmbeddingError: the model cannot be loaded, lacks weights, or reads no images.
    """
    device = device_of(config)
    arguments = {"dtype": getattr(torch, dtype_of(config, device))}
    try:
        with watched_loading() as missing:
            model: Any = make(device, arguments)
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, TypeError) as error:
        if isinstance(error, EmbeddingError):
            raise
        raise EmbeddingError(
            f"the embedder {shown(folder)} cannot be loaded ({shown(error, 200)}); embedder.model must be a folder "
            "with config.json, weights, tokenizer and processor"
        ) from error
    if missing:
        more = f" and {len(missing) - 1} others" if len(missing) > 1 else ""
        raise EmbeddingError(
            f"{shown(folder)} lacks weights of the embedder: {shown(missing[0])}{more}; they would be drawn at random: "
            "copy the folder again, or name the one that holds the whole model"
        )
    if "image" not in model.modalities:
        raise EmbeddingError(
            f"{shown(folder)} reads {', '.join(map(str, model.modalities))}, not images; pages need a vision-language "
            "model, such as a Qwen3-VL-Embedding"
        )
    model.eval()
    found: Model = model
    return found
