"""What a model's folder says of how its tokens become one vector, for runners other than sentence-transformers.

sentence-transformers saves a list of modules beside the model. Whatever another runner could not do alike is refused:
a pooling that is silently replaced, or a projection that is left out, would give vectors that look right.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rsgrpo.config.embedder import VISRAG_INSTRUCTION, EmbedderConfig
from rsgrpo.errors import shown
from rsgrpo.io.atomic_files import FileError, read_json, read_json_object, write_json
from rsgrpo.retrieval.embedders.embedder import EmbeddingError
from rsgrpo.retrieval.embedders.model_loading import is_saved

INSTRUCTION_FILE = "rsgrpo_embedder.json"
"""Beside a model that we trained: the text that stood in front of questions."""
POOLING_OF_PRESET: Mapping[str, str] = {"visrag": "weightedmean", "last_token": "lasttoken"}
"""The pooling, as sentence-transformers calls it, of each preset that has one."""

_POOLINGS = ("lasttoken", "mean", "weightedmean")
_KNOWN_SETTINGS = ("image", "chat_template")
_PAGE_PROMPTS = ("document", "passage", "corpus")  # in the order in which sentence-transformers looks for them


@dataclass(frozen=True, kw_only=True, slots=True)
class SavedForm:
    """How a model's tokens become one vector, and what stands around an item.

    Attributes:
        pooling: ``lasttoken``, ``mean`` or ``weightedmean``.
        query_prompt: the model's own prompt of questions; empty: none.
        page_prompt: the model's own prompt of pages; empty: none.
        image_settings: settings of the image processor that were saved with the model.
        template_settings: settings of the chat template that were saved with the model.
    """

    pooling: str
    query_prompt: str = ""
    page_prompt: str = ""
    image_settings: Mapping[str, Any] = field(default_factory=dict)
    template_settings: Mapping[str, Any] = field(default_factory=dict)


def read_form(config: EmbedderConfig, folder: Path) -> SavedForm:
    """Read how a model's tokens become one vector: from its preset, or from what was saved with it.

    Args:
        config: the settings of the embedder.
        folder: the folder of the model.

    Returns:
        The form.

    Raises:
        EmbeddingError: the folder does not say, differs from the preset, or names something that only
            sentence-transformers can do.
    """
    preset = POOLING_OF_PRESET.get(config.preset, "")
    if not is_saved(folder):
        if not preset:
            raise EmbeddingError(
                f"{shown(folder)} has no modules.json: it is no model of sentence-transformers, and does not say how "
                "its tokens become one vector; set embedder.preset=last_token or visrag"
            )
        return SavedForm(pooling=preset)
    try:
        found = _saved_form(folder)
    except FileError as error:
        raise EmbeddingError(f"{error}; copy the model's folder again") from error
    if preset and found.pooling != preset:
        raise EmbeddingError(
            f"{shown(folder)} was saved with the pooling {found.pooling}, embedder.preset={config.preset} is {preset}; "
            "set embedder.preset=auto"
        )
    return found


def query_instruction(config: EmbedderConfig, folder: Path, own_prompt: str) -> tuple[str, str]:
    """Choose the text in front of a question, and where it stands.

    Args:
        config: the settings of the embedder.
        folder: the folder of the model.
        own_prompt: the prompt of questions that was saved with the model; empty: none.

    Returns:
        The text, and ``text`` or ``prompt``, as in :class:`~rsgrpo.retrieval.embedders.embedder.EmbedderIdentity`.

    Raises:
        EmbeddingError: what was noted beside the model is damaged.
    """
    is_auto = config.preset == "auto"
    if config.query_instruction is not None:
        return config.query_instruction, "prompt" if is_auto else "text"
    if not is_auto:
        return VISRAG_INSTRUCTION if config.preset == "visrag" else "", "text"
    trained = read_instruction(folder)
    return (own_prompt, "prompt") if trained is None else (trained, "text")


def write_instruction(folder: Path, instruction: str) -> None:
    """Note beside a saved model which text stood in front of questions when it was trained.

    Models of sentence-transformers save prompts, which chat models get as their system message; this text stands in the
    question itself, as VisRAG's does.

    Args:
        folder: the folder of the model.
        instruction: the text; may be empty.
    """
    write_json(folder / INSTRUCTION_FILE, {"query_instruction": instruction}, indent=1)


def read_instruction(folder: Path) -> str | None:
    """Read the text that :func:`write_instruction` noted.

    Args:
        folder: the folder of the model.

    Returns:
        The text; None where none was noted.

    Raises:
        EmbeddingError: the file is damaged.
    """
    file = folder / INSTRUCTION_FILE
    if not file.is_file():
        return None
    try:
        instruction = read_json_object(file).get("query_instruction")
    except FileError as error:
        raise EmbeddingError(f"{error}; copy the model's folder again") from error
    if not isinstance(instruction, str):
        raise EmbeddingError(
            f"{shown(file)}: query_instruction is {shown(repr(instruction), 80)}, expected a text; copy the model's "
            "folder again"
        )
    return instruction


def _saved_form(folder: Path) -> SavedForm:
    """Read the form of a model that sentence-transformers saved.

    Raises:
        EmbeddingError: the model has something that only sentence-transformers can do.
        FileError: a file is missing or damaged.
    """
    paths = {}
    for module in read_json(folder / "modules.json"):
        kind = str(module["type"]).rpartition(".")[2]
        if kind not in ("Transformer", "Pooling", "Normalize") or (kind == "Transformer" and module["path"]):
            raise _only_there(folder, f"the module {kind} in {module['path'] or 'its folder'}")
        paths[kind] = str(module["path"])
    if "Pooling" not in paths:
        raise _only_there(folder, "no module Pooling")
    pooling = read_json_object(folder / paths["Pooling"] / "config.json")
    mode = pooling.get("pooling_mode") or [
        name.removeprefix("pooling_mode_").removesuffix("_tokens")
        for name, is_on in pooling.items()
        if name.startswith("pooling_mode_") and is_on
    ]
    mode = mode if isinstance(mode, str) else "+".join(map(str, mode))
    if mode not in _POOLINGS or pooling.get("include_prompt") is False:
        raise _only_there(folder, f"the pooling {mode}{' without the prompt' if mode in _POOLINGS else ''}")
    reader = _settings(folder / "sentence_bert_config.json")
    processing = dict(reader.get("processing_kwargs") or {})
    other = sorted(set(processing) - set(_KNOWN_SETTINGS))
    if other or "message" not in (reader.get("modality_config") or {"message": {}}):
        raise _only_there(folder, f"settings of {other[0]}" if other else "texts without a chat template")
    general = _settings(folder / "config_sentence_transformers.json")
    prompts = dict(general.get("prompts") or {})
    name = next((name for name in _PAGE_PROMPTS if name in prompts), general.get("default_prompt_name"))
    return SavedForm(
        pooling=mode,
        query_prompt=prompts.get("query") or "",
        page_prompt=(prompts.get(name) or "") if name else "",
        image_settings=dict(processing.get("image") or {}),
        template_settings=dict(processing.get("chat_template") or {}),
    )


def _settings(file: Path) -> dict[str, Any]:
    return read_json_object(file) if file.is_file() else {}


def _only_there(folder: Path, what: str) -> EmbeddingError:
    return EmbeddingError(
        f"{shown(folder)} was saved with {shown(what, 120)}, which embedder.runner=vllm cannot do alike; set "
        "embedder.runner=sentence_transformers"
    )
