"""Embedders turn pages and questions into vectors; an identity says which embedder made a vector.

Vectors are comparable only if one embedder made them: the same weights, the same pooling, the same instruction, pages
read at the same size. :class:`EmbedderIdentity` records all of these. It stands in the header of an index, which takes
the vectors of no other embedder.

Most embedders give one vector an item, and the score of a page p for a question q is the inner product ``q · p``. A
multi-vector embedder (ColBERT, arXiv:2004.12832; ColPali, arXiv:2407.01449) gives an item a vector for each of its
tokens. Each vector of the question looks for its best match on the page (MaxSim):

    score(q, p) = sum_i max_j q_i · p_j
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rsgrpo.config.embedder import EmbedderConfig
from rsgrpo.errors import RsgrpoError, shown
from rsgrpo.types import FloatArray, ImageRef

PageImage = ImageRef | Image.Image
"""A page for an embedder: a reference to its image file, or an image that is open already."""

ItemVectors = NDArray[Any] | Sequence[NDArray[Any]]
"""The vectors of some items: [items, dimension] where each has one, else one array [vectors, dimension] an item."""

_NORM_TOLERANCE = 1e-3  # float16 leaves a unit vector within 5e-4 of 1
_WEIGHTS_AND_SETTINGS = (".safetensors", ".bin", ".json", ".jinja", ".txt", ".model")
_NOT_USED_TO_EMBED = ("trainer_state.json", "training_args.bin", "optimizer.bin", "manifest.json")
_SHOWN_VALUE = 120


class EmbeddingError(RsgrpoError, ValueError):
    """A page or a question cannot be turned into a vector; the message names it and the way out."""


class EmbedderMismatchError(RsgrpoError, ValueError):
    """Vectors of one embedder meet those of another; the message names every field that differs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EmbedderIdentity:
    """Everything that vectors depend on beside the page or the question.

    Attributes:
        model: the folder of the model or its name on the hub, for people: it is not compared, as a folder may be moved.
        revision: the digest of the weights and of all settings beside them (:func:`weights_digest`).
        pooling: the way in which token vectors become one vector, such as ``weightedmean`` or ``lasttoken``.
        query_instruction: the text that stands in front of a question.
        instruction_place: the place of the instruction: ``text`` (in front of the question) or ``prompt`` (where the
            model's own prompts go, with chat models the system message).
        min_pixels: the area in pixels that smaller pages are scaled up to; 0: they keep their size.
        max_pixels: the area in pixels that larger pages are scaled down to.
        dpi: the resolution, in pixels an inch, at which pages of documents were rendered; None: the highest that
            ``max_pixels`` allowed.
        dimension: how many numbers a vector has.
        is_normalised: whether every vector has length 1.
        is_multi_vector: whether an item has many vectors, which MaxSim compares, instead of one.
        pool_factor: how many vectors of a page were grouped into one; 1: none were.
    """

    model: str
    revision: str
    pooling: str
    query_instruction: str
    instruction_place: str
    min_pixels: int
    max_pixels: int
    dpi: float | None
    dimension: int
    is_normalised: bool = True
    is_multi_vector: bool = False
    pool_factor: int = 1

    def differences(self, other: EmbedderIdentity) -> list[str]:
        """List the fields in which another embedder differs.

        Args:
            other: the identity of the other embedder.

        Returns:
            One text ``field: ours, not theirs`` for each such field; empty where the vectors are comparable.
        """
        return [
            f"{field.name}: {_value(getattr(self, field.name))}, not {_value(getattr(other, field.name))}"
            for field in dataclasses.fields(self)
            if field.name != "model" and getattr(self, field.name) != getattr(other, field.name)
        ]

    def check(self, other: EmbedderIdentity, where: str) -> None:
        """Refuse an embedder whose vectors cannot be compared with those of this one.

        Args:
            other: the identity of the embedder that is to be used.
            where: the thing that this embedder made, for the message, such as ``the index runs/pages.index``.

        Raises:
            EmbedderMismatchError: a field differs; the message names every such field.
        """
        found = self.differences(other)
        if found:
            raise EmbedderMismatchError(
                f"{where} was made by the embedder {shown(self.model, _SHOWN_VALUE)}, and "
                f"{shown(other.model, _SHOWN_VALUE)} is another one ({'; '.join(found)}); use the embedder that made "
                "it, or make the index anew"
            )


class Embedder(Protocol):
    """Turns pages and questions into vectors of one space: the higher the inner product, the better a page fits."""

    @property
    def identity(self) -> EmbedderIdentity:
        """Everything that the vectors depend on."""

    @property
    def settings(self) -> EmbedderConfig | None:
        """The settings that make the same embedder again, from any folder and later on; None: no settings do."""

    def embed_queries(self, queries: Sequence[str]) -> FloatArray:
        """Turn questions into vectors.

        Args:
            queries: the questions, without an instruction.

        Returns:
            The vectors, [questions, dimension] float32, each of length 1, in the order of the questions.

        Raises:
            EmbeddingError: a question is empty, or none of its characters is known to the model.
        """

    def embed_pages(self, pages: Sequence[PageImage]) -> FloatArray:
        """Turn pages into vectors.

        Args:
            pages: the images of the pages.

        Returns:
            The vectors, [pages, dimension] float32, each of length 1, in the order of the pages, whatever the batches
            were.

        Raises:
            EmbeddingError: a page is too long for the model, or its vector is not finite.
            ImageError: the image of a page cannot be read.
        """


class MultiVectorEmbedder(Protocol):
    """Turns pages and questions into many vectors each, which MaxSim compares: the higher, the better a page fits."""

    @property
    def identity(self) -> EmbedderIdentity:
        """Everything that the vectors depend on; ``is_multi_vector`` is set."""

    @property
    def settings(self) -> EmbedderConfig | None:
        """The settings that make the same embedder again, from any folder and later on; None: no settings do."""

    def embed_queries(self, queries: Sequence[str]) -> list[FloatArray]:
        """Turn questions into vectors.

        Args:
            queries: the questions, without an instruction.

        Returns:
            For each question its vectors, [vectors, dimension] float32, at least one, each of length 1.

        Raises:
            EmbeddingError: a question is empty, or none of its characters is known to the model.
        """

    def embed_pages(self, pages: Sequence[PageImage]) -> list[FloatArray]:
        """Turn pages into vectors.

        Args:
            pages: the images of the pages.

        Returns:
            For each page its vectors, [vectors, dimension] float32, at least one, each of length 1.

        Raises:
            EmbeddingError: a page is too long for the model, or one of its vectors is not finite.
            ImageError: the image of a page cannot be read.
        """


AnyEmbedder = Embedder | MultiVectorEmbedder
"""An embedder of either kind; ``identity.is_multi_vector`` says which."""


def checked_items(vectors: ItemVectors, names: Sequence[str], identity: EmbedderIdentity) -> ItemVectors:
    """Check the vectors of items, one or many each, as the identity of their embedder says.

    Args:
        vectors: the vectors, of any float type.
        names: the name of each item, which messages call it by.
        identity: the identity of the embedder.

    Returns:
        What :func:`checked_vectors` or :func:`checked_vector_sets` gives.

    Raises:
        EmbeddingError: the vectors do not fit, or one is not finite, zero, or not of length 1.
    """
    if identity.is_multi_vector:
        return checked_vector_sets(vectors, names, dimension=identity.dimension)
    if not isinstance(vectors, np.ndarray):
        raise EmbeddingError(
            f"got vectors of {len(vectors)} items as a {type(vectors).__name__}, expected an array with one vector an "
            "item; take them from the embedder that made the index"
        )
    return checked_vectors(vectors, names, dimension=identity.dimension)


def checked_vector_sets(vectors: ItemVectors, names: Sequence[str], *, dimension: int) -> list[FloatArray]:
    """Check that every item has vectors, all finite and of length 1, and bring them to float32.

    Args:
        vectors: the vectors of each item, [vectors, dimension] of any float type.
        names: the name of each item, which messages call it by.
        dimension: how many numbers each vector must have.

    Returns:
        The vectors of each item, [vectors, dimension] float32, contiguous.

    Raises:
        EmbeddingError: an item has no vectors or vectors of another dimension, or one is not finite, zero, or not of
            length 1.
    """
    if len(vectors) != len(names):
        raise EmbeddingError(f"got vectors of {len(vectors)} items for {len(names)}; every item needs its own")
    for of_item, name in zip(vectors, names, strict=True):
        if np.ndim(of_item) != 2 or not len(of_item) or np.shape(of_item)[1] != dimension:
            raise EmbeddingError(
                f"{shown(name, _SHOWN_VALUE)} has vectors of shape {list(np.shape(of_item))}, expected [1 or more, "
                f"{dimension}]; take them from the multi-vector embedder that made the index"
            )
    if not names:
        return []
    num_vectors = [len(of_item) for of_item in vectors]
    name_of_row = [name for name, num in zip(names, num_vectors, strict=True) for _ in range(num)]
    rows = checked_vectors(np.concatenate(list(vectors)), name_of_row, dimension=dimension)
    return np.split(rows, np.cumsum(num_vectors)[:-1])


@runtime_checkable
class CountsImageTokens(Protocol):
    """An embedder that can say what a page costs it."""

    def image_tokens(self, page: PageImage) -> int:
        """Count the tokens of a page, from its size alone.

        Args:
            page: the image of the page.

        Raises:
            ImageError: the image of the page cannot be read.
        """


def checked_vectors(vectors: NDArray[Any], names: Sequence[str], *, dimension: int) -> FloatArray:
    """Check that vectors are finite and of length 1, and bring them to float32.

    Args:
        vectors: the vectors, [items, dimension] of any float type.
        names: the name of each item, which messages call it by.
        dimension: how many numbers each vector must have.

    Returns:
        The vectors, [items, dimension] float32, contiguous; a copy only where one is needed.

    Raises:
        EmbeddingError: the shape is not [items, dimension], or a vector is not finite, zero, or not of length 1.
    """
    found: FloatArray = np.ascontiguousarray(vectors, dtype=np.float32)
    if found.ndim != 2 or found.shape != (len(names), dimension):
        raise EmbeddingError(
            f"got vectors of shape {list(np.shape(vectors))} for {len(names)} items, expected [{len(names)}, "
            f"{dimension}]; take them from the embedder that made the index"
        )
    # In float64: the square of a large float32 would overflow, and read like a vector that is not finite.
    lengths = np.sqrt(np.einsum("nd,nd->n", found, found, dtype=np.float64))
    wrong = np.flatnonzero(~(np.abs(lengths - 1.0) <= _NORM_TOLERANCE))
    if wrong.size:
        first = int(wrong[0])
        more = f" (and of {wrong.size - 1} more)" if wrong.size > 1 else ""
        name = shown(names[first], _SHOWN_VALUE)
        if not np.isfinite(lengths[first]):
            raise EmbeddingError(
                f"the vector of {name}{more} is not finite; run the model in another precision, such as "
                "embedder.dtype=float32, or take the page out"
            )
        raise EmbeddingError(
            f"the vector of {name}{more} has length {lengths[first]:.4g}, expected 1; normalise vectors before they "
            "are handed over"
        )
    return found


def normalised(vectors: NDArray[Any]) -> FloatArray:
    """Scale vectors to length 1, computed in float64; zero vectors become NaN, which :func:`checked_vectors` refuses.

    Args:
        vectors: the vectors, [items, dimension] of any float type.

    Returns:
        The scaled vectors, [items, dimension] float32.
    """
    wide = np.asarray(vectors, dtype=np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        found: FloatArray = (wide / np.linalg.norm(wide, axis=-1, keepdims=True)).astype(np.float32)
    return found


def weights_digest(folder: Path) -> str:
    """Compute the digest of all files that a model's vectors depend on: weights, settings, tokenizer, chat template.

    Args:
        folder: the folder of the model. Folders in it count too: sentence-transformers saves modules in them.

    Returns:
        ``sha256:`` and 64 hexadecimal digits; the same for a copy of the folder.

    Raises:
        OSError: a file cannot be read.
    """
    names = sorted(
        file.relative_to(folder).as_posix()
        for file in folder.rglob("*")
        if file.suffix in _WEIGHTS_AND_SETTINGS
        and file.name not in _NOT_USED_TO_EMBED
        and not any(part.startswith((".", "checkpoint-")) for part in file.relative_to(folder).parts)
        and file.is_file()
    )

    def digest(name: str) -> str:
        with (folder / name).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    # Hashing leaves the interpreter free.
    with ThreadPoolExecutor(max_workers=max(1, min(len(names), os.cpu_count() or 1))) as pool:
        lines = [f"{name}\0{file_digest}\n" for name, file_digest in zip(names, pool.map(digest, names), strict=True)]
    return f"sha256:{hashlib.sha256(''.join(lines).encode()).hexdigest()}"


def _value(value: object) -> str:
    return shown(repr(value) if isinstance(value, str) else value, _SHOWN_VALUE)
