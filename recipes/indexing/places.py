"""Where an index lies: in a folder, or on the Qdrant server that ``index.url`` names."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rsgrpo.config.embedder import EmbedderConfig
from rsgrpo.config.index import IndexConfig
from rsgrpo.errors import RsgrpoError, shown

if TYPE_CHECKING:  # they take long to import, which a slip in the call need not wait for
    from rsgrpo.retrieval.embedder import EmbedderIdentity
    from rsgrpo.retrieval.page_index import PageIndex


def open_any_index(folder: Path, settings: IndexConfig, *, is_writable: bool = False) -> PageIndex:
    """An index that is there.

    Args:
        folder: of the index, if it lies in one.
        settings: of the index.
        is_writable: whether pages will be added or removed.

    Raises:
        PageIndexError: there is none, or it cannot be read; the message says why.
        RsgrpoError: it lies on a server, and qdrant-client is not installed.
    """
    index: PageIndex
    if settings.url:
        qdrant = _qdrant()
        index = qdrant.open_qdrant_index(qdrant.connect(settings), settings)
    else:
        from rsgrpo.retrieval.flat_index import open_index

        index = open_index(folder, settings, is_writable=is_writable)
    return index


def is_there(folder: Path, settings: IndexConfig) -> bool:
    """Whether there is an index, be it one that cannot be read.

    Args:
        folder: of the index, if it lies in one.
        settings: of the index.

    Raises:
        PageIndexError: the server cannot be reached.
        RsgrpoError: it lies on a server, and qdrant-client is not installed.
    """
    if settings.url:
        qdrant = _qdrant()
        return bool(qdrant.has_collection(qdrant.connect(settings), settings))
    from rsgrpo.retrieval.index_header import HEADER_FILE

    return (folder / HEADER_FILE).exists()


def create_any_index(
    folder: Path, settings: IndexConfig, identity: EmbedderIdentity, embedder: EmbedderConfig | None
) -> PageIndex:
    """A new index, open for writing.

    Args:
        folder: of the index, if it lies in one.
        settings: of the index.
        identity: the embedder whose vectors it will hold.
        embedder: its settings; None: they are not known.

    Raises:
        PageIndexError: the folder or the server cannot take it.
        RsgrpoError: it lies on a server, and qdrant-client is not installed.
    """
    index: PageIndex
    if settings.url:
        qdrant = _qdrant()
        index = qdrant.create_qdrant_index(qdrant.connect(settings), identity, settings, embedder)
    else:
        from rsgrpo.retrieval.flat_index import create_index

        index = create_index(folder, identity, settings, embedder)
    return index


def _qdrant() -> Any:
    """The module, which needs a package that a plain installation lacks."""
    try:
        from rsgrpo.retrieval import qdrant_index
    except ImportError as error:
        raise RsgrpoError(
            f"index.url needs qdrant-client ({shown(error, 80)}); install it with uv sync --extra qdrant"
        ) from error
    return qdrant_index
