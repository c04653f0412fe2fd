"""The index on Qdrant, against its in-memory client: the same laws as for a folder."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from qdrant_client import QdrantClient, models

from rsgrpo.config.embedder import EmbedderConfig
from rsgrpo.config.index import IndexConfig
from rsgrpo.retrieval.embedders.embedder import EmbeddingError
from rsgrpo.retrieval.index.page_index import PageIndexError
from rsgrpo.retrieval.index.qdrant_index import QdrantIndex, connect, create_qdrant_index, open_qdrant_index
from tests.unit.retrieval.index_pages import (
    FILTERS,
    IDENTITY,
    brute_force,
    make_page,
    sign_vector,
    sign_vectors,
    spread_page,
    told,
    unit_vectors,
)

pytestmark = pytest.mark.filterwarnings(
    "ignore:Payload indexes have no effect:UserWarning", "ignore:Local mode performs exact:UserWarning"
)

CONFIG = IndexConfig()


def new_index() -> QdrantIndex:
    return create_qdrant_index(QdrantClient(":memory:"), IDENTITY, CONFIG)


@given(
    numbers=st.lists(st.integers(0, 15), max_size=40),
    query=st.integers(0, 15),
    k=st.integers(1, 50),
    wanted=st.sampled_from(FILTERS),
)
def test_a_search_finds_what_a_look_at_every_vector_finds(numbers, query, k, wanted) -> None:
    pages = [spread_page(number) for number in range(len(numbers))]
    vectors = sign_vectors(numbers)
    index = new_index()
    index.add(pages, vectors)
    (found,) = index.search(sign_vector(query)[None], k, wanted)
    assert told(found) == brute_force(pages, vectors, sign_vector(query), k, wanted)


def test_many_equal_pages_come_in_page_order() -> None:
    # 60 equal pages, of which 5 + 16 are looked at first
    pages = [make_page(number) for number in range(60)]
    index = new_index()
    index.add(pages[::-1], sign_vectors([3] * 60))
    (found,) = index.search(sign_vector(3)[None], 5)
    assert [hit.page for hit in found] == sorted(pages, key=lambda page: page.order)[:5]


def test_adding_twice_replaces_and_removing_counts_what_was_there() -> None:
    index = new_index()
    index.add([make_page(0), make_page(1)], sign_vectors([1, 2]))
    index.add([make_page(0)], sign_vectors([9]))
    assert len(index) == 2
    assert index.search(sign_vector(9)[None], 1)[0][0].page == make_page(0)
    assert index.remove([make_page(0).page_id, "none", make_page(0).page_id]) == 1
    assert index.pages() == [make_page(1)]
    np.testing.assert_array_equal(index.vectors([make_page(1).page_id]), sign_vectors([2]))
    with pytest.raises(PageIndexError, match=r"has no page 'doc0.pdf#0'"):
        index.vectors([make_page(1).page_id, make_page(0).page_id])
    assert index.remove([]) == 0
    index.save()


def test_an_opened_index_knows_what_made_it() -> None:
    client = QdrantClient(":memory:")
    settings = EmbedderConfig(model="m", preset="visrag")
    create_qdrant_index(client, IDENTITY, CONFIG, settings).add([make_page(0)], sign_vectors([1]))
    opened = open_qdrant_index(client, CONFIG)
    assert (opened.identity, opened.embedder, len(opened)) == (IDENTITY, settings, 1)
    with pytest.raises(PageIndexError, match="the index 'pages' on the Qdrant server exists already"):
        create_qdrant_index(client, IDENTITY, CONFIG)


def test_what_is_no_index_of_ours_is_refused() -> None:
    client = QdrantClient(":memory:")
    with pytest.raises(PageIndexError, match=r"there is no index 'pages' on the Qdrant server; check index.url"):
        open_qdrant_index(client, CONFIG)
    vectors = models.VectorParams(size=4, distance=models.Distance.DOT)
    for name, metadata, message in (
        ("other", None, "was made by another program"),
        ("newer", {"kind": "rsgrpo page index", "version": 2}, "has version 2, and this release reads version 1"),
        ("broken", {"kind": "rsgrpo page index", "version": 1, "content": {"made_by": 3}}, "are damaged"),
    ):
        client.create_collection(name, vectors_config=vectors, metadata=metadata)
        with pytest.raises(PageIndexError, match=message):
            open_qdrant_index(client, dataclasses.replace(CONFIG, collection=name))


def test_bad_vectors_and_empty_searches() -> None:
    index = new_index()
    assert index.search(sign_vectors([1]), 3) == [[]] and index.search(sign_vectors([]), 3) == []
    index.add([], sign_vectors([]))
    with pytest.raises(EmbeddingError, match=r"expected \[1, 4\]"):
        index.search(unit_vectors(1, 3), 1)
    with pytest.raises(EmbeddingError, match=r"doc0.pdf#0 is not finite"):
        index.add([make_page(0)], np.full((1, 4), np.nan, np.float32))
    with pytest.raises(PageIndexError, match="k=0"):
        index.search(sign_vectors([1]), 0)
    with pytest.raises(PageIndexError, match="two of the pages"):
        index.add([make_page(0)] * 2, sign_vectors([1, 2]))


def test_a_server_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    config = IndexConfig(url="http://127.0.0.1:9")  # the discard port: nothing listens there
    with pytest.raises(PageIndexError, match=r"the Qdrant server http://127.0.0.1:9 cannot serve .*; check index.url"):
        open_qdrant_index(connect(config), config)
    with pytest.raises(PageIndexError, match="names an environment variable that is not set"):
        connect(dataclasses.replace(config, api_key_variable="RSGRPO_NO_SUCH_KEY"))
