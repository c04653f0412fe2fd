"""Embed questions and pages, one vector each, with models of sentence-transformers.

Three presets: what was saved with the model (``auto``), VisRAG's weighted mean (``visrag``; arXiv:2410.10594, §3.2) and
the last token (``last_token``). With hidden states ``h_t`` of the real tokens ``t = 1 … T`` the weighted mean is

    v = sum_t t · h_t / sum_t t,        e = v / |v|

and the score of a page is the inner product of its vector and the question's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling

from rsgrpo.config.embedder import EmbedderConfig
from rsgrpo.errors import shown
from rsgrpo.retrieval.embedders.embedder import (
    EmbedderIdentity,
    EmbeddingError,
    PageImage,
    weights_digest,
)
from rsgrpo.retrieval.embedders.embedder_inputs import EmbedderInputs, stacked_vectors
from rsgrpo.retrieval.embedders.model_loading import (
    MULTI_VECTOR_KINDS,
    is_saved,
    kept_dimension,
    load_model,
    model_folder,
    pinned,
    saved_kind,
)
from rsgrpo.retrieval.embedders.saved_form import POOLING_OF_PRESET, query_instruction
from rsgrpo.types import FloatArray


class SentenceEmbedder:
    """A model of sentence-transformers as an :class:`~rsgrpo.retrieval.embedders.embedder.Embedder`.

    Args:
        config: the settings that name the model and say how it is run.
        model: the model, where it is in memory already; its weights may change, so that vectors of one time cannot be
            kept for another. None: it is loaded.

    Raises:
        EmbeddingError: the model is not there, cannot be loaded, or does not fit the settings.

    Example:
        ``SentenceEmbedder(EmbedderConfig(model="runs/embedder", preset="visrag")).embed_queries(["Who signed it?"])``
        is [1, 2048] float32.
    """

    def __init__(self, config: EmbedderConfig, model: SentenceTransformer | None = None) -> None:
        folder = model_folder(config)
        self._config = pinned(config, folder)
        self._model = load_sentence_model(config, folder) if model is None else model
        dimension = kept_dimension(config, int(self._model.get_embedding_dimension() or 0), folder)
        instruction, place = query_instruction(config, folder, self._model.prompts.get("query") or "")
        self._identity = EmbedderIdentity(
            model=self._config.model,
            revision=weights_digest(folder) if model is None else "in memory",
            pooling=_pooling(self._model),
            query_instruction=instruction,
            instruction_place=place,
            min_pixels=config.min_pixels,
            max_pixels=config.max_pixels,
            dpi=config.dpi,
            dimension=dimension,
        )
        self._inputs = EmbedderInputs(self._config, self._identity, self._model)

    @property
    def identity(self) -> EmbedderIdentity:
        """Everything that the vectors depend on."""
        return self._identity

    @property
    def settings(self) -> EmbedderConfig:
        """The settings that make the same embedder again, with an absolute folder or the revision that was loaded."""
        return self._config

    def embed_queries(self, queries: Sequence[str]) -> FloatArray:
        """Turn questions into vectors; see :class:`~rsgrpo.retrieval.embedders.embedder.Embedder`."""

        def encode(texts: list[str], prompt: str) -> Any:
            return self._model.encode_query(
                texts, prompt=prompt, batch_size=len(texts), show_progress_bar=False, convert_to_numpy=True
            )

        return stacked_vectors(self._inputs.embed_queries(queries, encode), self._identity.dimension)

    def embed_pages(self, pages: Sequence[PageImage]) -> FloatArray:
        """Turn pages into vectors; see :class:`~rsgrpo.retrieval.embedders.embedder.Embedder`."""
        # The preset knows no prompt for pages; a saved model may have one.
        prompts: dict[str, str] = {} if self._config.preset == "auto" else {"prompt": ""}

        def encode(images: list[Image.Image]) -> Any:
            return self._model.encode_document(
                images, batch_size=len(images), show_progress_bar=False, convert_to_numpy=True, **prompts
            )

        return stacked_vectors(self._inputs.embed_pages(pages, encode), self._identity.dimension)

    def image_tokens(self, page: PageImage) -> int:
        """Count the tokens of a page; see :class:`~rsgrpo.retrieval.embedders.embedder.CountsImageTokens`."""
        return self._inputs.image_tokens(page)


class Float32Tokens(torch.nn.Module):
    """Convert token vectors to float32 before they are pooled: VisRAG's float32 weights promote its sum as well."""

    def forward(self, features: dict[str, Any]) -> dict[str, Any]:
        """Convert ``token_embeddings``, [items, tokens, hidden]; everything else stays."""
        return {**features, "token_embeddings": features["token_embeddings"].float()}


def load_sentence_model(config: EmbedderConfig, folder: Path) -> SentenceTransformer:
    """Load a model, and put it in evaluation mode on its device.

    Args:
        config: the settings, which say how tokens become one vector, in which precision and on which device.
        folder: the folder of the model.

    Raises:
        EmbeddingError: the model cannot be loaded, has no pooling or another one than the preset's, or gives many
            vectors an item.
    """
    if config.preset == "multi_vector":
        raise EmbeddingError(
            f"embedder.preset=multi_vector gives many vectors a page of {shown(folder)}, and here each page needs one; "
            "take a model and a preset that give one"
        )
    if saved_kind(folder) in MULTI_VECTOR_KINDS:  # sentence-transformers would take the mean instead
        raise EmbeddingError(
            f"{shown(folder)} gives many vectors a page, and embedder.preset={config.preset} is of models that give "
            "one; set embedder.preset=multi_vector"
        )
    if config.preset == "auto" and not is_saved(folder):
        raise EmbeddingError(
            f"{shown(folder)} has no modules.json: it is no model of sentence-transformers, and does not say how "
            "its tokens become one vector; set embedder.preset=last_token or visrag"
        )

    def make(device: str, arguments: Mapping[str, Any]) -> SentenceTransformer:
        if is_saved(folder):
            return SentenceTransformer(str(folder), device=device, model_kwargs=dict(arguments), local_files_only=True)
        reader = Transformer(str(folder), model_kwargs=dict(arguments))
        pooling = Pooling(reader.get_embedding_dimension(), POOLING_OF_PRESET[config.preset])
        return SentenceTransformer(modules=[reader, Float32Tokens(), pooling, Normalize()], device=device)

    model = load_model(config, folder, make)
    wanted = POOLING_OF_PRESET.get(config.preset, "")
    if wanted and _pooling(model) != wanted:
        raise EmbeddingError(
            f"{shown(folder)} was saved with the pooling {_pooling(model)}, embedder.preset={config.preset} is "
            f"{wanted}; set embedder.preset=auto"
        )
    # With most processors the tokenizer's own side; either gives the same vectors, and one of them is tested.
    if config.preset != "auto" and model.tokenizer is not None:
        model.tokenizer.padding_side = "right"
    return model


def _pooling(model: SentenceTransformer) -> str:
    """Name the way in which token vectors become one: the mode of the pooling, or the names of the modules."""
    for module in model:
        if isinstance(module, Pooling):
            modes = module.pooling_mode
            return modes if isinstance(modes, str) else "+".join(modes)
    return "+".join(type(module).__name__ for module in model)
