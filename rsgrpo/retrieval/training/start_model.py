"""The model that a page retriever is trained from, set up as it is trained and saved."""

from __future__ import annotations

from pathlib import Path

import torch
from sentence_transformers import SentenceTransformer

from rsgrpo.config import Config
from rsgrpo.config.embedder import EmbedderConfig
from rsgrpo.config.image_rules import ImageRules
from rsgrpo.config.model import ATTENDING_TARGETS, AUTO_TARGETS
from rsgrpo.config.retriever import MAX_READ_PIXELS
from rsgrpo.errors import shown
from rsgrpo.retrieval.embedders.embedder import EmbeddingError
from rsgrpo.retrieval.embedders.sentence_embedder import Float32Tokens, load_sentence_model

READING_RULES = ImageRules(min_pixels=None, max_pixels=MAX_READ_PIXELS)
"""How pages are read: as embedders read them by default; the model's processor bounds them further."""


def load_start_model(config: Config, folder: Path) -> SentenceTransformer:
    """Load the model that training starts from, set up as it will be trained and saved.

    Args:
        config: the settings: pooling, bounds of pages, longest text.
        folder: the folder of the model: one of sentence-transformers, or a plain vision-language model.

    Returns:
        The model in float32 on the CPU or this rank's GPU, in evaluation mode.

    Raises:
        EmbeddingError: the model cannot be loaded, or does not fit the settings.
    """
    settings = config.retriever
    try:
        loaded = load_sentence_model(embedder_config(config, folder), folder)
    except EmbeddingError as error:
        raise EmbeddingError(str(error).replace("embedder.", "retriever.")) from error
    # The embedder's conversion to float32 is no module of sentence-transformers: pooling sums in float32 by itself.
    modules = [module for module in loaded if not isinstance(module, Float32Tokens)]
    model = SentenceTransformer(modules=modules, prompts=dict(loaded.prompts), device=str(loaded.device))
    model.tokenizer.padding_side = "right"
    model.max_seq_length = settings.max_tokens
    images = getattr(model.processor, "image_processor", None)
    size = getattr(images, "size", None) or {}
    if images is None or not {"shortest_edge", "longest_edge"} <= set(dict(size)):
        raise EmbeddingError(
            f"the image processor of {shown(folder)} does not bound pages by their area, as that of Qwen2.5-VL and "
            "Qwen3-VL does; take such a model"
        )
    images.size = {**dict(size), "shortest_edge": settings.min_pixels, "longest_edge": settings.max_pixels}
    model.eval()
    return model


def embedder_config(config: Config, folder: Path) -> EmbedderConfig:
    """Give the settings of an embedder that embeds with a model as training does.

    Args:
        config: the settings of the run.
        folder: the folder of the model.
    """
    settings = config.retriever
    return EmbedderConfig(
        model=str(folder),
        preset=settings.preset,
        query_instruction=settings.query_instruction,
        device={"cpu": "cpu", "gpu": "cuda", "auto": "auto"}[config.cluster.device],  # type: ignore[arg-type]  # a choice of each
        dtype="float32",
    )


def choose_trained(model: SentenceTransformer, config: Config) -> None:
    """Freeze what is not trained, and put adapters in where there shall be some.

    Args:
        model: the model; changed in place.
        config: the settings: ``model.freeze_vision`` and ``model.lora``.

    Raises:
        EmbeddingError: the model has no layers that adapters shall go into.
    """
    lora = config.model.lora
    if config.model.freeze_vision:
        for name, parameter in model.named_parameters():
            if "visual." in name:
                parameter.requires_grad_(False)
    if not lora.rank:
        return
    from peft import LoraConfig as PeftLoraConfig

    targets = list(ATTENDING_TARGETS) if lora.targets == (AUTO_TARGETS,) else lora.target_modules
    try:
        model.add_adapter(
            PeftLoraConfig(
                r=lora.rank,
                lora_alpha=lora.alpha,
                lora_dropout=lora.dropout,
                target_modules=targets if isinstance(targets, str) else list(targets),
                exclude_modules=None if lora.include_vision else r"(.*\.)?visual\..*",
                bias="none",
            )
        )
    except ValueError as error:
        raise EmbeddingError(
            f"model.lora.target_modules={shown(targets, 80)} does not fit the model: {shown(error, 160)}; name layers "
            "such as [q_proj, v_proj]"
        ) from error


def merge_adapters(model: torch.nn.Module) -> None:
    """Put the plain layers in place of those with adapters, with weights that compute the same.

    Args:
        model: a model that peft has put adapters into; changed in place.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, layer in list(model.named_modules()):
        if isinstance(layer, BaseTunerLayer):
            layer.merge(safe_merge=True)
            parent = model.get_submodule(name.rpartition(".")[0])
            setattr(parent, name.rpartition(".")[2], layer.get_base_layer())
    model._hf_peft_config_loaded = False  # type: ignore[assignment]  # a flag of transformers, not a module
