"""The vectors of an index in a folder, one or many for each page: kept, searched, mapped and written alike.

A row is a page. Pages with one vector each lie in a file of faiss (:mod:`rsgrpo.retrieval.index.vector_file`), pages
with many in three of numpy (:mod:`rsgrpo.retrieval.index.multi_vector_file`); the embedder's identity says which.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

from rsgrpo.config.index import IndexConfig
from rsgrpo.io.manifest import FileDigest, digest
from rsgrpo.retrieval.embedders.embedder import EmbedderIdentity, ItemVectors
from rsgrpo.retrieval.index.exact_scores import BestRows, RowArray
from rsgrpo.retrieval.index.multi_vector_file import MultiVectorRows, write_multi_vectors
from rsgrpo.retrieval.index.page_index import PageIndexError
from rsgrpo.retrieval.index.vector_file import VectorRows
from rsgrpo.types import BoolArray

_LISTS_A_ROOT = 4  # lists for each unit of the square root of the number of pages: faiss's own advice


class StoredRows(Protocol):
    """Pages with one or many vectors each, numbered from 0 as they were added."""

    def __len__(self) -> int:
        """Count the pages."""

    @property
    def dimension(self) -> int:
        """How many numbers each vector has."""

    def add(self, vectors: Any) -> None:
        """Append pages, by their vectors as :func:`~rsgrpo.retrieval.embedders.embedder.checked_items` gives them."""

    def rows(self, rows: RowArray) -> ItemVectors:
        """Copy the vectors of the pages of some numbers, [n] int64, in their order."""

    def best(self, queries: Any, k: int, allowed: BoolArray | None = None) -> list[BestRows]:
        """Find the best pages for each question; ``allowed`` says whether each page may be found, None: all may."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RowFiles:
    """The files that hold the vectors of an index.

    Attributes:
        vectors: the name, size and checksum of the file of the vectors.
        lists: those of the file of the inverted lists; None: there are none.
        offsets: those of the file that says which vectors belong to a page; None: each page has one.
        means: those of the file of the mean of each page's vectors; None: each page has one.
    """

    vectors: FileDigest
    lists: FileDigest | None = None
    offsets: FileDigest | None = None
    means: FileDigest | None = None


def check_searchable(identity: EmbedderIdentity, config: IndexConfig) -> None:
    """Refuse settings of the other kind of index, which would do nothing.

    Raises:
        PageIndexError: inverted lists are asked for over many vectors a page, or candidates over one.
    """
    if identity.is_multi_vector and config.lists == "always":
        raise PageIndexError(
            "index.lists=always is of embedders that give one vector a page; leave it at auto, and set "
            "index.candidates=NUMBER for quicker, inexact searches"
        )
    if config.candidates and not identity.is_multi_vector:
        raise PageIndexError(
            f"index.candidates={config.candidates} is of embedders that give many vectors a page; leave it at 0, and "
            "set index.lists=always for quicker, inexact searches"
        )


def empty_rows(identity: EmbedderIdentity) -> StoredRows:
    """Make an object without pages, in memory, to which some can be added.

    Args:
        identity: the identity of the embedder.
    """
    kind = MultiVectorRows if identity.is_multi_vector else VectorRows
    return kind.empty(identity.dimension)


def map_rows(folder: Path, files: RowFiles, config: IndexConfig) -> StoredRows:
    """Map the vectors of an index, of which only what a search touches is read.

    Args:
        folder: the folder that the index lies in.
        files: the files that hold the vectors.
        config: the settings by which the index is searched.

    Returns:
        The pages, mapped.

    Raises:
        VectorFileError: a file cannot be read or holds something else, or they do not fit together.
    """
    vectors = folder / files.vectors.name
    if files.offsets is not None and files.means is not None:
        return MultiVectorRows.mapped(
            vectors, folder / files.offsets.name, folder / files.means.name, config.candidates
        )
    return VectorRows.mapped(vectors, folder / files.lists.name if files.lists else None, config.num_probes)


def write_rows(
    folder: Path,
    number: int,
    sources: Sequence[tuple[StoredRows, RowArray]],
    identity: EmbedderIdentity,
    config: IndexConfig,
) -> RowFiles:
    """Write the vectors of pages under the number of a save.

    Args:
        folder: the folder that the index lies in.
        number: the number of the save, which file names end in.
        sources: the pages to write: an object that holds some, and their numbers in it, rising, [n] int64.
        identity: the identity of the embedder.
        config: the settings by which the index is kept.

    Returns:
        The files that were written.

    Raises:
        OSError: the disk is full, or there is no permission.
    """

    def name(what: str, ending: str) -> str:
        return f"{what}-{number:06d}.{ending}"

    if identity.is_multi_vector:
        names = [name(what, "npy") for what in ("vectors", "offsets", "means")]
        multi = [(cast(MultiVectorRows, rows_of), rows) for rows_of, rows in sources]
        num_vectors = sum(int(rows_of.counts(rows).sum()) for rows_of, rows in multi)
        vectors_file, offsets_file, means_file = (folder / file for file in names)
        write_multi_vectors(vectors_file, offsets_file, means_file, multi, is_half=config.is_half(num_vectors))
        vectors, offsets, means = (digest(folder, file) for file in names)
        return RowFiles(vectors=vectors, offsets=offsets, means=means)
    num_pages = sum(len(rows) for _, rows in sources)
    single = VectorRows.empty(identity.dimension, is_half=config.is_half(num_pages))
    for rows_of, rows in sources:
        for copied in cast(VectorRows, rows_of).copies(rows):
            single.add(copied)
    single.write(folder / name("vectors", "faiss"))
    lists = None
    if config.has_lists(num_pages):
        num_lists = config.num_lists or max(1, int(_LISTS_A_ROOT * math.sqrt(num_pages)))
        single.write_lists(folder / name("lists", "faiss"), num_lists)
        lists = digest(folder, name("lists", "faiss"))
    return RowFiles(vectors=digest(folder, name("vectors", "faiss")), lists=lists)
