"""Embed questions and pages, many vectors each, with multi-vector models of sentence-transformers.

Three kinds of model are read: what sentence-transformers saved as a ``MultiVectorEncoder``; models that transformers
knows as retrievers (ColQwen2, ColPali, ColModernVBert), whose heads project tokens; and plain vision-language models.
Of the first two every token counts that the model's own mask lets through. Of a plain model the vectors are the last
hidden states of the image's tokens, and of all tokens from the question's first on: what the chat template puts before
has seen nothing of the question, and would add the same to a page's score whatever is asked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from sentence_transformers import MultiVectorEncoder
from sentence_transformers.base.modules import Normalize, Transformer
from sentence_transformers.multi_vector_encoder.modules import HierarchicalTokenPooling, MultiVectorMask

from rsgrpo.config.embedder import EmbedderConfig
from rsgrpo.errors import shown
from rsgrpo.io.atomic_files import read_json_object
from rsgrpo.retrieval.embedders.embedder import (
    EmbedderIdentity,
    EmbeddingError,
    PageImage,
    checked_vector_sets,
    normalised,
    weights_digest,
)
from rsgrpo.retrieval.embedders.embedder_inputs import Embedded, EmbedderInputs
from rsgrpo.retrieval.embedders.model_loading import (
    MULTI_VECTOR_KINDS,
    is_saved,
    kept_dimension,
    load_model,
    model_folder,
    pinned,
    saved_kind,
)
from rsgrpo.types import FloatArray

_RETRIEVER = "ForRetrieval"  # how transformers ends the names of models with a head that projects tokens


class SentenceMultiVectorEmbedder:
    """A model of sentence-transformers as a :class:`~rsgrpo.retrieval.embedders.embedder.MultiVectorEmbedder`.

    Args:
        config: the settings that name the model and say how it is run, with the preset ``multi_vector``.

    Raises:
        EmbeddingError: the model is not there, cannot be loaded, or does not fit the settings.

    Example:
        ``SentenceMultiVectorEmbedder(EmbedderConfig(model="vidore/colqwen2-v1.0-hf", preset="multi_vector"))`` makes of
        each page some hundred vectors of 128 numbers.
    """

    def __init__(self, config: EmbedderConfig) -> None:
        folder = model_folder(config)
        self._config = pinned(config, folder)
        is_plain = not (is_saved(folder) or _is_retriever(folder))
        self._model = _loaded(config, folder, is_plain=is_plain)
        instruction = config.query_instruction
        if instruction is None:
            instruction = self._model.prompts.get("query") or ""
        if is_plain:
            _add_token_choice(self._model, instruction)
        dimension = kept_dimension(config, int(self._model.get_embedding_dimension() or 0), folder)
        self._identity = EmbedderIdentity(
            model=self._config.model,
            revision=weights_digest(folder),
            pooling="image_tokens" if is_plain else "+".join(type(module).__name__ for module in self._model),
            query_instruction=instruction,
            instruction_place="prompt",
            min_pixels=config.min_pixels,
            max_pixels=config.max_pixels,
            dpi=config.dpi,
            dimension=dimension,
            is_multi_vector=True,
            pool_factor=config.pool_factor,
        )
        self._inputs = EmbedderInputs(
            self._config, self._identity, self._model, query_length=_query_length(self._model)
        )
        # As colpali-engine has it no token is spared: a page's first vector is a patch like any other.
        self._pooling = HierarchicalTokenPooling(float(config.pool_factor), num_protected_tokens=0)

    @property
    def identity(self) -> EmbedderIdentity:
        """Everything that the vectors depend on."""
        return self._identity

    @property
    def settings(self) -> EmbedderConfig:
        """The settings that make the same embedder again, with an absolute folder or the revision that was loaded."""
        return self._config

    def embed_queries(self, queries: Sequence[str]) -> list[FloatArray]:
        """Turn questions into vectors; see :class:`~rsgrpo.retrieval.embedders.embedder.MultiVectorEmbedder`."""

        def encode(texts: list[str], prompt: str) -> Any:
            return self._model.encode_query(
                texts, prompt=prompt, batch_size=len(texts), show_progress_bar=False, convert_to_numpy=True
            )

        return self._checked(self._inputs.embed_queries(queries, encode))

    def embed_pages(self, pages: Sequence[PageImage]) -> list[FloatArray]:
        """Turn pages into vectors; see :class:`~rsgrpo.retrieval.embedders.embedder.MultiVectorEmbedder`."""

        def encode(images: list[Image.Image]) -> Any:
            return self._model.encode_document(
                images, batch_size=len(images), show_progress_bar=False, convert_to_numpy=True
            )

        embedded = self._inputs.embed_pages(pages, encode)
        if self._config.pool_factor == 1:
            return self._checked(embedded)
        vectors = self._checked(embedded)  # before they are grouped, which does not survive NaN
        return self._checked(Embedded(embedded.names, [self._pooled(of_page) for of_page in vectors]))

    def _pooled(self, vectors: FloatArray) -> NDArray[Any]:
        found: NDArray[Any] = self._pooling.pool_one(torch.from_numpy(vectors)).numpy()
        return found

    def _checked(self, embedded: Embedded) -> list[FloatArray]:
        dimension = self._identity.dimension
        shortened = [normalised(np.asarray(vectors)[:, :dimension]) for vectors in embedded.vectors]
        return checked_vector_sets(shortened, embedded.names, dimension=dimension)


class _QuestionTokens(torch.nn.Module):
    """Leave out the tokens before the question, which are the same for all of them.

    Args:
        num_before: the number of tokens before the question, with padding on the right.
    """

    forward_kwargs: ClassVar[set[str]] = {"task"}  # sentence-transformers passes what stands here

    def __init__(self, num_before: int) -> None:
        super().__init__()
        self._num_before = num_before

    def forward(self, features: dict[str, Any], task: str | None = None) -> dict[str, Any]:
        if task != "query":
            return features
        mask = features["attention_mask"].bool().clone()
        mask[:, : self._num_before] = False
        return {**features, "attention_mask": mask}


def _loaded(config: EmbedderConfig, folder: Path, *, is_plain: bool) -> MultiVectorEncoder:
    """Load the model.

    Raises:
        EmbeddingError: the model cannot be loaded, or was saved as one that gives one vector an item.
    """
    kind = saved_kind(folder)
    if is_saved(folder) and kind not in MULTI_VECTOR_KINDS:
        # sentence-transformers would add a projection with random weights
        raise EmbeddingError(
            f"{shown(folder)} was saved as a {shown(kind or 'SentenceTransformer')}, which gives one vector a page; "
            "take a model that was trained for many, or set embedder.preset=auto"
        )

    def make(device: str, arguments: Mapping[str, Any]) -> MultiVectorEncoder:
        if not is_plain:
            return MultiVectorEncoder(str(folder), device=device, model_kwargs=dict(arguments), local_files_only=True)
        reader = Transformer(str(folder), model_kwargs=dict(arguments))
        normalise = Normalize(module_input_name="token_embeddings", module_output_name="token_embeddings")
        return MultiVectorEncoder(modules=[reader, normalise], device=device)

    return load_model(config, folder, make)


def _is_retriever(folder: Path) -> bool:
    if not (folder / "config.json").is_file():
        return False
    architectures = read_json_object(folder / "config.json").get("architectures") or []
    return any(str(name).endswith(_RETRIEVER) for name in architectures)


def _add_token_choice(model: MultiVectorEncoder, instruction: str) -> None:
    """Choose the tokens of a plain model that count, as the module's docstring describes.

    Raises:
        EmbeddingError: the model has no token for images.
    """
    token = getattr(model.processor, "image_token", None)
    if token is None:
        raise EmbeddingError(
            "the model's processor does not say which of its tokens are an image's; take a model that was saved as a "
            "MultiVectorEncoder of sentence-transformers"
        )
    model.tokenizer.padding_side = "right"
    first, second = (
        model.preprocess([question], prompt=instruction, task="query")["input_ids"][0].tolist()
        for question in ("a", "b")
    )
    num_before = next(i for i, (one, other) in enumerate(zip(first, second, strict=False)) if one != other)
    model.append(MultiVectorMask(keep_only_token_ids=[model.tokenizer.convert_tokens_to_ids(token)]))
    model.append(_QuestionTokens(num_before))


def _query_length(model: MultiVectorEncoder) -> int | None:
    """Find how many tokens of a question the model reads, where it cuts questions without a word."""
    reader = model[0]
    expansion = getattr(reader, "query_expansion", None)
    lengths = [getattr(reader, "query_length", None)]
    if expansion is not None and expansion["strategy"] == "fixed":
        lengths.append(expansion["length"])
    return min((int(length) for length in lengths if length is not None), default=None)
