"""Open an index wherever it lies, in a folder or on a Qdrant server, and make the embedder that settings describe."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rsgrpo.config.embedder import EmbedderConfig
from rsgrpo.config.index import IndexConfig
from rsgrpo.errors import RsgrpoError, shown

if TYPE_CHECKING:  # they take long to import, which a slip in the call need not wait for
    from rsgrpo.retrieval.embedders.embedder import AnyEmbedder, Embedder, EmbedderIdentity
    from rsgrpo.retrieval.index.page_index import PageIndex

PAGES_FOLDER = "pages"
"""Name of the folder with the pages' images and texts, in the index's folder."""


MakeSingleEmbedder = Callable[[EmbedderConfig], "Embedder"]
"""Makes an embedder that gives a page one vector; tests make one that needs no model."""


def open_any_index(folder: Path, settings: IndexConfig, *, is_writable: bool = False) -> PageIndex:
    """Open an index.

    Args:
        folder: the folder of the index; not used where ``index.url`` names a server.
        settings: the settings that say where and how the index is kept.
        is_writable: whether pages will be added or removed.

    Returns:
        The index; the caller closes it.

    Raises:
        PageIndexError: there is no index, or it cannot be read; the message says why.
        RsgrpoError: the index lies on a server, and qdrant-client is not installed.
    """
    index: PageIndex
    if settings.url:
        qdrant = _qdrant()
        index = qdrant.open_qdrant_index(qdrant.connect(settings), settings)
    else:
        from rsgrpo.retrieval.index.flat_index import open_index

        index = open_index(folder, settings, is_writable=is_writable)
    return index


def is_there(folder: Path, settings: IndexConfig) -> bool:
    """Whether there is an index, even one that cannot be read.

    Args:
        folder: the folder of the index; not used where ``index.url`` names a server.
        settings: the settings that say where and how the index is kept.

    Raises:
        PageIndexError: the server cannot be reached.
        RsgrpoError: the index lies on a server, and qdrant-client is not installed.
    """
    if settings.url:
        qdrant = _qdrant()
        return bool(qdrant.has_collection(qdrant.connect(settings), settings))
    from rsgrpo.retrieval.index.index_header import HEADER_FILE

    return (folder / HEADER_FILE).exists()


def saved_embedder(folder: Path, settings: IndexConfig) -> EmbedderConfig | None:
    """Read which embedder made an index, without its pages.

    Args:
        folder: the folder of the index; not used where ``index.url`` names a server.
        settings: the settings that say where and how the index is kept.

    Returns:
        The settings of the embedder; None: the index does not say.

    Raises:
        PageIndexError: there is no index, or its header cannot be read; the message says why.
        RsgrpoError: the index lies on a server, and qdrant-client is not installed.
    """
    if settings.url:
        return open_any_index(folder, settings).embedder
    from rsgrpo.retrieval.index.index_header import read_header

    return read_header(folder).embedder


def create_any_index(
    folder: Path, settings: IndexConfig, identity: EmbedderIdentity, embedder: EmbedderConfig | None
) -> PageIndex:
    """Create an index, open for writing.

    Args:
        folder: the folder of the index; not used where ``index.url`` names a server.
        settings: the settings that say where and how the index is kept.
        identity: the identity of the embedder whose vectors the index will hold.
        embedder: the settings of that embedder; None: they are not known.

    Returns:
        The index; the caller closes it.

    Raises:
        PageIndexError: the folder or the server cannot take the index, or has one already.
        RsgrpoError: the index lies on a server, and qdrant-client is not installed.
    """
    index: PageIndex
    if settings.url:
        qdrant = _qdrant()
        index = qdrant.create_qdrant_index(qdrant.connect(settings), identity, settings, embedder)
    else:
        from rsgrpo.retrieval.index.flat_index import create_index

        index = create_index(folder, identity, settings, embedder)
    return index


def make_any_embedder(config: EmbedderConfig) -> AnyEmbedder:
    """Make an embedder: one that gives a page one vector, or with the preset ``multi_vector`` many.

    Args:
        config: the settings of the embedder.

    Returns:
        The embedder, its model loaded.

    Raises:
        EmbeddingError: the model is not there, cannot be loaded, or does not fit the settings.
    """
    if config.preset == "multi_vector":
        from rsgrpo.retrieval.embedders.multi_vector_embedder import SentenceMultiVectorEmbedder

        return SentenceMultiVectorEmbedder(config)
    return make_single_embedder(config)


def make_single_embedder(config: EmbedderConfig) -> Embedder:
    """Make an embedder that gives a page one vector, run by the library that ``embedder.runner`` names.

    Args:
        config: the settings of the embedder.

    Returns:
        The embedder, its model loaded.

    Raises:
        EmbeddingError: the model is not there, cannot be loaded, does not fit the settings, or gives many vectors.
    """
    if config.runner == "vllm":
        from rollout.vllm_embedder import VllmEmbedder

        return VllmEmbedder(config)
    from rsgrpo.retrieval.embedders.sentence_embedder import SentenceEmbedder

    return SentenceEmbedder(config)


def _qdrant() -> Any:
    """Import the module of Qdrant indexes, which needs a package that a plain installation lacks."""
    try:
        from rsgrpo.retrieval.index import qdrant_index
    except ImportError as error:
        raise RsgrpoError(
            f"index.url needs qdrant-client ({shown(error, 80)}); install it with uv sync --extra qdrant"
        ) from error
    return qdrant_index
