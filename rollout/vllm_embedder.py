"""Embed questions and pages with vLLM's pooling runner: the vectors of sentence-transformers, on engines for GPUs.

vLLM pools the last token and the mean itself. Of the weighted mean it knows nothing; it gives the vectors of all
tokens then, and the mean is computed here.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from rsgrpo.cluster.environments import pooling_environment
from rsgrpo.config.embedder import EmbedderConfig
from rsgrpo.errors import shown
from rsgrpo.retrieval.embedders.embedder import EmbedderIdentity, EmbeddingError, PageImage, weights_digest
from rsgrpo.retrieval.embedders.embedder_inputs import EmbedderInputs, stacked_vectors
from rsgrpo.retrieval.embedders.model_loading import device_of, dtype_of, kept_dimension, model_folder, pinned
from rsgrpo.retrieval.embedders.saved_form import SavedForm, query_instruction, read_form
from rsgrpo.types import FloatArray

_VLLM_POOLINGS = {"lasttoken": "LAST", "mean": "MEAN", "weightedmean": ""}


class VllmEmbedder:
    """A model in vLLM's pooling runner as an :class:`~rsgrpo.retrieval.embedders.embedder.Embedder`.

    Its identity is that of :class:`~rsgrpo.retrieval.embedders.sentence_embedder.SentenceEmbedder` with the same
    settings: an index that one made is searched by the other.

    Args:
        config: the settings that name the model and say how it is run.

    Raises:
        EmbeddingError: the model is not there, does not fit the settings, or vLLM cannot run it.

    Example:
        ``VllmEmbedder(EmbedderConfig(model="runs/embedder", runner="vllm")).embed_queries(["Who signed it?"])`` is
        [1, 2048] float32.
    """

    def __init__(self, config: EmbedderConfig) -> None:
        folder = model_folder(config)
        self._config = pinned(config, folder)
        self._form = read_form(config, folder)
        reading = _Reading(folder, config.batch_tokens)
        dimension = kept_dimension(config, reading.hidden_size, folder)
        instruction, place = query_instruction(config, folder, self._form.query_prompt)
        self._identity = EmbedderIdentity(
            model=self._config.model,
            revision=weights_digest(folder),
            pooling=self._form.pooling,
            query_instruction=instruction,
            instruction_place=place,
            min_pixels=config.min_pixels,
            max_pixels=config.max_pixels,
            dpi=config.dpi,
            dimension=dimension,
        )
        self._inputs = EmbedderInputs(self._config, self._identity, reading)
        self._reading = reading
        self._engine = _engine(config, folder, self._form, reading)

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

        def encode(texts: list[str], prompt: str) -> list[FloatArray]:
            contents = [{"type": "text", "text": text} for text in texts]
            return self._pooled(self._engine.vectors([self._ids(content, prompt) for content in contents], []))

        return stacked_vectors(self._inputs.embed_queries(queries, encode), self._identity.dimension)

    def embed_pages(self, pages: Sequence[PageImage]) -> FloatArray:
        """Turn pages into vectors; see :class:`~rsgrpo.retrieval.embedders.embedder.Embedder`."""
        # The preset knows no prompt for pages; a saved model may have one.
        prompt = self._form.page_prompt if self._config.preset == "auto" else ""

        def encode(images: list[Image.Image]) -> list[FloatArray]:
            ids = self._ids({"type": "image"}, prompt)
            return self._pooled(self._engine.vectors([ids] * len(images), images))

        return stacked_vectors(self._inputs.embed_pages(pages, encode), self._identity.dimension)

    def image_tokens(self, page: PageImage) -> int:
        """Count the tokens of a page; see :class:`~rsgrpo.retrieval.embedders.embedder.CountsImageTokens`."""
        return self._inputs.image_tokens(page)

    def _ids(self, content: dict[str, str], prompt: str) -> list[int]:
        """Render an item as sentence-transformers does: a message of the user, with the prompt as the system's."""
        messages: list[dict[str, Any]] = [{"role": "user", "content": [content]}]
        if prompt:
            messages.insert(0, {"role": "system", "content": [{"type": "text", "text": prompt}]})
        text = self._reading.processor.apply_chat_template(
            messages, tokenize=False, **dict(self._form.template_settings)
        )
        ids: list[int] = self._reading.tokenizer.encode(text, add_special_tokens=False)
        return ids

    def _pooled(self, vectors: list[FloatArray]) -> list[FloatArray]:
        if self._form.pooling != "weightedmean":
            return vectors
        return [_weighted_mean(of_tokens) for of_tokens in vectors]


class _Reading:
    """How a model reads, as :class:`~rsgrpo.retrieval.embedders.embedder_inputs.ReadingModel` asks for it.

    Args:
        folder: the folder of the model.
        batch_tokens: the most tokens of a batch, and so of an item.
    """

    def __init__(self, folder: Path, batch_tokens: int) -> None:
        from transformers import AutoConfig, AutoProcessor

        try:
            config = AutoConfig.from_pretrained(folder)
            self.processor: Any = AutoProcessor.from_pretrained(folder)
        except (OSError, ValueError, KeyError, RuntimeError, ImportError, TypeError) as error:
            raise EmbeddingError(
                f"the embedder {shown(folder)} cannot be loaded ({shown(error, 200)}); embedder.model must be a folder "
                "with config.json, weights, tokenizer and processor"
            ) from error
        self.tokenizer: Any = getattr(self.processor, "tokenizer", None)
        if self.tokenizer is None or not hasattr(self.processor, "image_processor"):
            raise EmbeddingError(
                f"{shown(folder)} reads no images; pages need a vision-language model, such as a Qwen3-VL-Embedding"
            )
        text = config.get_text_config()
        self.hidden_size = int(text.hidden_size)
        self.architecture = str((config.architectures or [""])[0])
        self._max_tokens = min(int(self.tokenizer.model_max_length), int(text.max_position_embeddings), batch_tokens)

    def get_max_seq_length(self) -> int:
        return self._max_tokens


def _engine(config: EmbedderConfig, folder: Path, form: SavedForm, reading: _Reading) -> Any:
    """Load the model into vLLM.

    Raises:
        EmbeddingError: vLLM is not installed, or cannot run the model.
    """
    device = device_of(config)
    for name, value in pooling_environment(device).items():
        os.environ.setdefault(name, value)
    try:
        from rollout.pooling_engine import PoolingEngine, PoolingSpec
    except ImportError as error:
        raise EmbeddingError(
            f"embedder.runner=vllm needs vLLM ({shown(error, 80)}); install it with uv sync --extra gpu, or set "
            "embedder.runner=sentence_transformers"
        ) from error
    # sentence-transformers saves the model without its head, by another name.
    name = reading.architecture
    spec = PoolingSpec(
        model_folder=folder,
        architecture=f"{name.removesuffix('Model')}ForConditionalGeneration" if name.endswith("Model") else name,
        pooling=_VLLM_POOLINGS[form.pooling],
        dtype=dtype_of(config, device),
        device=device,
        max_tokens=reading.get_max_seq_length(),
        image_settings=form.image_settings,
    )
    try:
        return PoolingEngine(spec)
    except (OSError, ValueError, KeyError, RuntimeError, NotImplementedError, TypeError) as error:
        raise EmbeddingError(
            f"vLLM cannot run the embedder {shown(folder)} ({shown(error, 300)}); set "
            "embedder.runner=sentence_transformers"
        ) from error


def _weighted_mean(vectors: FloatArray) -> FloatArray:
    """Compute VisRAG's mean of token vectors [tokens, hidden], with the weights 1, 2, 3, …, in float64."""
    weights = np.arange(1, len(vectors) + 1, dtype=np.float64)
    found: FloatArray = (weights @ vectors.astype(np.float64) / weights.sum()).astype(np.float32)
    return found
