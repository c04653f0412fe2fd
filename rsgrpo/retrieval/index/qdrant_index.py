"""An index on a Qdrant server; the one module that imports qdrant-client (extra ``qdrant``).

One collection is one index. Its metadata say what made it, as ``index.json`` does for a folder. A page is a point
whose id follows from the page's own, so that adding it twice replaces it. The server keeps what it has taken: ``save``
has nothing to do, and several processes may write at once. Up to ``index.lists_above_pages`` pages the server is asked
for an exact search, beyond them for a search of its own graph, which may miss a page.
"""

from __future__ import annotations

import dataclasses
import datetime
import os
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from qdrant_client import QdrantClient, models
from qdrant_client.http.exceptions import ApiException

from rsgrpo import __version__
from rsgrpo.config.embedder import EmbedderConfig
from rsgrpo.config.index import IndexConfig
from rsgrpo.errors import shown
from rsgrpo.io.record_codec import RecordError, from_plain, to_plain
from rsgrpo.retrieval.embedders.embedder import EmbedderIdentity, ItemVectors, checked_items
from rsgrpo.retrieval.index.exact_scores import (
    ROUNDING,
    SPARE_CANDIDATES,
    ScoreArray,
    best_rows,
    exact_scores,
    kth_score,
)
from rsgrpo.retrieval.index.maxsim import exact_maxsim, rounding_of
from rsgrpo.retrieval.index.page_index import (
    ALL_PAGES,
    FoundPage,
    IndexedPage,
    PageFilter,
    PageIndexError,
    check_ids,
    check_k,
    not_there,
    ranked,
)
from rsgrpo.types import FloatArray

COLLECTION_KIND = "rsgrpo page index"
COLLECTION_VERSION = 1

_NUMBERS_AT_ONCE = 1 << 19  # about 10 MB of JSON, below the server's limit of 32 MB for a request
_POINTS_AT_ONCE = 256  # with a vector each
_MULTI_VECTOR_POINTS_AT_ONCE = 8  # with some hundred vectors each
_PAGES_AT_ONCE = 1000
_TIMEOUT_SECONDS = 60
_POINT_IDS = uuid.UUID("5c2a9c0e-6d0e-4a53-9d0b-3f5f6f2b8f10")  # any will do, so long as it stays
_FIELDS = tuple(field.name for field in dataclasses.fields(IndexedPage))


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class CollectionHeader:
    """The metadata of a collection, which say what made it.

    Attributes:
        made_by: the version of rsgrpo that made the collection.
        identity: the identity of the embedder whose vectors the collection holds.
        embedder: the settings of that embedder; None: vectors were brought from elsewhere.
    """

    made_by: str
    identity: EmbedderIdentity
    embedder: EmbedderConfig | None


class QdrantIndex:
    """A page index on a Qdrant server; use :func:`create_qdrant_index` or :func:`open_qdrant_index` to get one.

    Args:
        client: the client that is connected to the server.
        config: the settings that name the collection and say how it is searched.
        header: the metadata of the collection.
    """

    def __init__(self, client: QdrantClient, config: IndexConfig, header: CollectionHeader) -> None:
        self._client = client
        self._config = config
        self._header = header

    @property
    def identity(self) -> EmbedderIdentity:
        """The identity of the embedder whose vectors the index holds."""
        return self._header.identity

    @property
    def embedder(self) -> EmbedderConfig | None:
        """The settings of that embedder; None: vectors were brought from elsewhere."""
        return self._header.embedder

    @property
    def name(self) -> str:
        """The name that messages call the index by."""
        return _name(self._config)

    def __len__(self) -> int:
        with _named_server(self._config):
            return int(self._client.count(self._config.collection, exact=True).count)

    def add(self, pages: Sequence[IndexedPage], vectors: ItemVectors) -> None:
        """Add pages; see :class:`~rsgrpo.retrieval.index.page_index.PageIndex`."""
        check_ids(pages)
        found = checked_items(vectors, [page.page_id for page in pages], self.identity)
        batches: list[list[models.PointStruct]] = []
        num_numbers = _NUMBERS_AT_ONCE
        for page, vector in zip(pages, found, strict=True):
            num_numbers += vector.size
            if num_numbers > _NUMBERS_AT_ONCE:
                batches.append([])
                num_numbers = vector.size
            point = models.PointStruct(id=_point_id(page.page_id), vector=vector.tolist(), payload=_payload(page))
            batches[-1].append(point)
        for points in batches:
            with _named_server(self._config):
                self._client.upsert(self._config.collection, points, wait=True)

    def remove(self, page_ids: Iterable[str]) -> int:
        """Take pages out; see :class:`~rsgrpo.retrieval.index.page_index.PageIndex`."""
        ids = sorted({_point_id(page_id) for page_id in page_ids})
        num_removed = 0
        for start in range(0, len(ids), _PAGES_AT_ONCE):
            with _named_server(self._config):
                there = self._client.retrieve(
                    self._config.collection, ids[start : start + _PAGES_AT_ONCE], with_payload=False
                )
                if there:
                    chosen = models.PointIdsList(points=[point.id for point in there])
                    self._client.delete(self._config.collection, chosen, wait=True)
            num_removed += len(there)
        return num_removed

    def search(self, vectors: ItemVectors, k: int, allowed: PageFilter = ALL_PAGES) -> list[list[FoundPage]]:
        """Find the best pages for each question; see :class:`~rsgrpo.retrieval.index.page_index.PageIndex`."""
        check_k(k)
        names = [f"question {number}" for number in range(1, len(vectors) + 1)]
        queries = checked_items(vectors, names, self.identity)
        if not len(queries):
            return []
        exact = not self._config.has_lists(len(self))
        return [self._search(query, k, _conditions(allowed), exact) for query in queries]

    def _search(self, query: FloatArray, k: int, conditions: models.Filter | None, exact: bool) -> list[FoundPage]:
        limit = k + SPARE_CANDIDATES
        while True:
            with _named_server(self._config):
                points = self._client.query_points(
                    self._config.collection,
                    query=query.tolist(),
                    query_filter=conditions,
                    limit=limit,
                    search_params=models.SearchParams(exact=exact),
                    with_payload=True,
                    with_vectors=True,
                ).points
            if not points:
                return []
            # The server's scores are of float32, and equal vectors need not score equally.
            scores = self._exact([np.array(point.vector, np.float32) for point in points], query)
            rounding = rounding_of(query) if self.identity.is_multi_vector else ROUNDING
            if (
                not exact
                or len(points) < limit
                or min(point.score for point in points) < kth_score(scores, k) - rounding
            ):
                break
            limit *= 4  # a page beyond those seen may tie with the last
        best = best_rows(np.arange(len(points)), scores, k)
        pages = [_page(points[row].payload) for row in best.rows]
        return ranked(zip(pages, best.scores, strict=True), k)

    def _exact(self, vectors: Sequence[FloatArray], query: FloatArray) -> ScoreArray:
        if self.identity.is_multi_vector:
            counts = np.array([len(of_page) for of_page in vectors], np.int64)
            return exact_maxsim(np.concatenate(list(vectors)), counts, query)
        return exact_scores([np.stack(list(vectors))], query)

    def vectors(self, page_ids: Sequence[str]) -> ItemVectors:
        """Look up the vectors of pages, as they are kept; see :class:`~rsgrpo.retrieval.index.page_index.PageIndex`."""
        found: list[FloatArray] = []
        at_once = _MULTI_VECTOR_POINTS_AT_ONCE if self.identity.is_multi_vector else _POINTS_AT_ONCE
        for start in range(0, len(page_ids), at_once):
            batch = page_ids[start : start + at_once]
            with _named_server(self._config):
                points = self._client.retrieve(
                    self._config.collection,
                    [_point_id(page_id) for page_id in batch],
                    with_payload=False,
                    with_vectors=True,
                )
            held = {str(point.id): point.vector for point in points}
            for page_id in batch:
                vector = held.get(_point_id(page_id))
                if vector is None:
                    raise not_there(page_id, self.name)
                found.append(np.array(vector, np.float32))
        if self.identity.is_multi_vector:
            return found
        return np.stack(found) if found else np.zeros((0, self.identity.dimension), np.float32)

    def pages(self, allowed: PageFilter = ALL_PAGES) -> list[IndexedPage]:
        """List pages without their vectors, in page order."""
        found: list[IndexedPage] = []
        following: Any = None
        while True:
            with _named_server(self._config):
                points, following = self._client.scroll(
                    self._config.collection, _conditions(allowed), limit=_PAGES_AT_ONCE, offset=following
                )
            found += [_page(point.payload) for point in points]
            if following is None:
                return sorted(found, key=lambda page: page.order)

    def save(self) -> None:
        """Do nothing: the server keeps what it has taken."""

    def close(self) -> None:
        """Close the connection to the server."""
        self._client.close()


def connect(config: IndexConfig) -> QdrantClient:
    """Make a client of the server at ``index.url``.

    Args:
        config: the settings with the address and the name of the variable that holds the key.

    Returns:
        The client; the server is first called when the client is used.

    Raises:
        PageIndexError: the variable is not set.
    """
    key = None
    if config.api_key_variable:
        key = os.environ.get(config.api_key_variable)
        if not key:
            raise PageIndexError(
                f"index.api_key_variable={shown(config.api_key_variable)} names an environment variable that is not "
                "set; export it"
            )
    return QdrantClient(url=config.url, api_key=key, timeout=_TIMEOUT_SECONDS, check_compatibility=False)


def has_collection(client: QdrantClient, config: IndexConfig) -> bool:
    """Whether ``index.collection`` is there, whoever made it.

    Args:
        client: the client of the server, as :func:`connect` makes it.
        config: the settings that name the collection.

    Raises:
        PageIndexError: the server cannot be reached.
    """
    with _named_server(config):
        return bool(client.collection_exists(config.collection))


def create_qdrant_index(
    client: QdrantClient, identity: EmbedderIdentity, config: IndexConfig, embedder: EmbedderConfig | None = None
) -> QdrantIndex:
    """Create an index, which is empty, as a new collection.

    Args:
        client: the client of the server, as :func:`connect` makes it.
        identity: the identity of the embedder whose vectors the index will hold.
        config: the settings that name the collection and give the precision of its vectors.
        embedder: the settings of that embedder; None: vectors are brought from elsewhere.

    Returns:
        The index, open for reading and writing.

    Raises:
        PageIndexError: the collection exists, or the server cannot be reached or is too old to keep metadata.
    """
    header = CollectionHeader(made_by=__version__, identity=identity, embedder=embedder)
    metadata = {"kind": COLLECTION_KIND, "version": COLLECTION_VERSION, "content": to_plain(header)}
    is_half = config.precision == "float16"
    maxsim = models.MultiVectorConfig(comparator=models.MultiVectorComparator.MAX_SIM)
    if has_collection(client, config):
        raise PageIndexError(f"{_name(config)} exists already; open it to add to it, or set index.collection=NAME")
    with _named_server(config):
        client.create_collection(
            config.collection,
            vectors_config=models.VectorParams(
                size=identity.dimension,
                distance=models.Distance.DOT,
                datatype=models.Datatype.FLOAT16 if is_half else models.Datatype.FLOAT32,
                multivector_config=maxsim if identity.is_multi_vector else None,
            ),
            metadata=metadata,
        )
        for name, kind in (
            ("document", models.PayloadSchemaType.KEYWORD),
            ("folders", models.PayloadSchemaType.KEYWORD),
            ("day", models.PayloadSchemaType.INTEGER),
        ):
            client.create_payload_index(config.collection, name, kind)
        if not client.get_collection(config.collection).config.metadata:
            client.delete_collection(config.collection)
            raise PageIndexError(
                f"the Qdrant server {shown(config.url)} keeps no metadata of a collection, so that an index could not "
                "say what made it; take version 1.16 or later"
            )
    return QdrantIndex(client, config, header)


def open_qdrant_index(client: QdrantClient, config: IndexConfig) -> QdrantIndex:
    """Open the index that a collection holds.

    Args:
        client: the client of the server, as :func:`connect` makes it.
        config: the settings that name the collection and say how it is searched.

    Returns:
        The index, open for reading and writing.

    Raises:
        PageIndexError: there is no such collection, another program or version made it, or the server cannot be
            reached.
    """
    if not has_collection(client, config):
        raise PageIndexError(f"there is no {_name(config)[4:]}; check index.url and index.collection")
    with _named_server(config):
        metadata = client.get_collection(config.collection).config.metadata or {}
    if metadata.get("kind") != COLLECTION_KIND:
        raise PageIndexError(
            f"{_name(config)} was made by another program: its metadata do not say {COLLECTION_KIND!r}; choose another "
            "index.collection"
        )
    if metadata.get("version") != COLLECTION_VERSION:
        raise PageIndexError(
            f"{_name(config)} has version {shown(metadata.get('version'), 20)}, and this release reads version "
            f"{COLLECTION_VERSION}; make it anew, or open it with the release that made it"
        )
    try:
        header = from_plain(CollectionHeader, metadata.get("content"))
    except RecordError as error:
        raise PageIndexError(f"the metadata of {_name(config)} are damaged: {error}; make it anew") from error
    return QdrantIndex(client, config, header)


def _name(config: IndexConfig) -> str:
    return f"the index {shown(config.collection)!r} on {shown(config.url) or 'the Qdrant server'}"


def _point_id(page_id: str) -> str:
    return str(uuid.uuid5(_POINT_IDS, page_id))


def _payload(page: IndexedPage) -> dict[str, Any]:
    """Collect a page's fields, and what filters go by: every folder above it, and its day as a number."""
    parts = page.folder.split("/") if page.folder else []
    folders = ["/".join(parts[:depth]) for depth in range(1, len(parts) + 1)] or [""]
    extra = {"day": datetime.date.fromisoformat(page.date).toordinal()} if page.date else {}
    return {**dataclasses.asdict(page), "folders": folders, **extra}


def _page(payload: dict[str, Any] | None) -> IndexedPage:
    return IndexedPage(**{name: (payload or {})[name] for name in _FIELDS})


def _conditions(wanted: PageFilter) -> models.Filter | None:
    if wanted.is_empty:
        return None
    conditions: list[Any] = []
    for key, values in (("document", wanted.documents), ("folders", wanted.folders)):
        if values:
            conditions.append(models.FieldCondition(key=key, match=models.MatchAny(any=list(values))))
    first, last = (
        datetime.date.fromisoformat(day).toordinal() if day else None for day in (wanted.first_date, wanted.last_date)
    )
    if first is not None or last is not None:
        conditions.append(models.FieldCondition(key="day", range=models.Range(gte=first, lte=last)))
    return models.Filter(must=conditions)


@contextmanager
def _named_server(config: IndexConfig) -> Iterator[None]:
    """Raise errors of the server or the network in the block as one that names the address and the way out."""
    try:
        yield
    except (ApiException, ConnectionError, TimeoutError) as error:
        raise PageIndexError(
            f"the Qdrant server {shown(config.url)} cannot serve {_name(config)} ({shown(error, 200)}); check "
            "index.url, whether it runs, and its log"
        ) from error
