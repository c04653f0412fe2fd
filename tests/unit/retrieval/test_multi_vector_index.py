"""Indexes of pages with many vectors, in a folder and on Qdrant: both find what MaxSim over every page finds."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from qdrant_client import QdrantClient

from rsgrpo.config.index import IndexConfig
from rsgrpo.retrieval.embedders.embedder import EmbedderMismatchError, EmbeddingError
from rsgrpo.retrieval.index import multi_vector_file
from rsgrpo.retrieval.index.flat_index import create_index, open_index
from rsgrpo.retrieval.index.maxsim import exact_maxsim, maxsim_scores, rounding_of, starts_of
from rsgrpo.retrieval.index.multi_vector_file import MultiVectorRows
from rsgrpo.retrieval.index.page_index import PageFilter, PageIndex, PageIndexError, add_pages, find_pages
from rsgrpo.retrieval.index.qdrant_index import create_qdrant_index, open_qdrant_index
from rsgrpo.types import FloatArray
from tests.examples import examples
from tests.unit.retrieval.index_pages import (
    FILTERS,
    MULTI_IDENTITY,
    SignEmbedder,
    SignSetEmbedder,
    brute_force,
    brute_maxsim,
    make_page,
    sign_vectors,
    spread_page,
    told,
    unit_vectors,
)

pytestmark = pytest.mark.filterwarnings(
    "ignore:Payload indexes have no effect:UserWarning", "ignore:Local mode performs exact:UserWarning"
)

SETS = st.lists(st.integers(0, 15), min_size=1, max_size=4)


def vector_sets(num: int, dimension: int, *, most: int = 40, seed: int = 0) -> list[FloatArray]:
    """Draw the vectors of pages that have 1 to ``most`` of them."""
    counts = np.random.default_rng(seed).integers(1, most + 1, num)
    return np.split(unit_vectors(int(counts.sum()), dimension, seed=seed), np.cumsum(counts)[:-1])


def test_maxsim_of_the_docstring() -> None:
    page = np.array([[1, 0], [0, 1]], np.float32)
    query = np.array([[1, 0], [0.6, 0.8]], np.float32)
    (score,) = maxsim_scores(page, np.array([2]), [query])
    np.testing.assert_allclose(score, [1.8], rtol=1e-6)
    assert starts_of([3, 1, 2]).tolist() == [0, 3, 4]


@examples(40)
@given(pages=st.lists(SETS, max_size=15), query=SETS, k=st.integers(1, 20), wanted=st.sampled_from(FILTERS))
def test_both_homes_find_what_a_look_at_every_page_finds(pages, query, k, wanted) -> None:
    # Scores are multiples of 0.5, so nearly every place is tied; half of the pages are saved, the others in memory.
    records = [spread_page(number) for number in range(len(pages))]
    vectors, asked = [sign_vectors(numbers) for numbers in pages], [sign_vectors(query)]
    expected = brute_force(records, vectors, asked[0], k, wanted, brute_maxsim)
    half = len(pages) // 2
    with tempfile.TemporaryDirectory() as folder, create_index(Path(folder) / "i", MULTI_IDENTITY) as index:
        index.add(records[:half], vectors[:half])
        index.save()
        index.add(records[half:], vectors[half:])
        assert told(index.search(asked, k, wanted)[0]) == expected
    server = create_qdrant_index(QdrantClient(":memory:"), MULTI_IDENTITY, IndexConfig())
    server.add(records, vectors)
    assert told(server.search(asked, k, wanted)[0]) == expected


@pytest.mark.parametrize("precision", ["float32", "float16"])
@pytest.mark.parametrize("wanted", FILTERS[:4], ids=range(4))
def test_files_find_and_rank_as_a_look_at_every_page(
    tmp_path: Path, precision: Any, wanted: PageFilter, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Read in some twenty parts; a third of the pages are equal, as blank ones are.
    monkeypatch.setattr(multi_vector_file, "_VECTORS_AT_ONCE", 100)
    identity = dataclasses.replace(MULTI_IDENTITY, dimension=24)
    pages, vectors = [spread_page(number) for number in range(120)], vector_sets(120, 24)
    for number in range(0, 120, 3):
        vectors[number] = vectors[0]
    queries = [vectors[0], vectors[4][:3], *vector_sets(3, 24, most=9, seed=1)]
    with create_index(tmp_path / "i", identity, IndexConfig(precision=precision)) as index:
        index.add(pages, vectors)
        index.save()
    opened = open_index(tmp_path / "i")
    opened.verify()
    kept = opened.vectors([page.page_id for page in pages])
    for of_page, before in zip(kept, vectors, strict=True):
        np.testing.assert_allclose(of_page, before, rtol=0, atol=0 if precision == "float32" else 2**-11)
    for query, found in zip(queries, opened.search(queries, 7, wanted), strict=True):
        assert told(found) == brute_force(pages, list(kept), query, 7, wanted, brute_maxsim)


def test_quick_scores_are_within_the_bound_that_exact_ones_rely_on() -> None:
    sets = vector_sets(200, 128, most=30)
    queries = vector_sets(4, 128, most=60, seed=1)
    vectors, counts = np.concatenate(sets), np.array([len(of_page) for of_page in sets])
    quick = maxsim_scores(vectors, counts, queries)
    for query, of_query in zip(queries, quick.T, strict=True):
        exact = exact_maxsim(vectors, counts, query)
        assert np.abs(of_query - exact).max() < rounding_of(query)
        alone = [exact_maxsim(of_page, np.array([len(of_page)]), query)[0] for of_page in sets]
        assert exact.tolist() == alone  # to the last bit, whatever stands beside


def homes(tmp_path: Path) -> list[PageIndex]:
    return [
        create_index(tmp_path / "i", MULTI_IDENTITY),
        create_qdrant_index(QdrantClient(":memory:"), MULTI_IDENTITY, IndexConfig()),
    ]


def test_adding_twice_replaces_and_vectors_come_back_in_the_order_asked_for(tmp_path: Path) -> None:
    for index in homes(tmp_path):
        index.add([make_page(0), make_page(1)], [sign_vectors([1, 2]), sign_vectors([3])])
        index.save()
        index.add([make_page(0), make_page(2)], [sign_vectors([9]), sign_vectors([4, 5, 6])])
        assert len(index) == 3
        ids = [make_page(number).page_id for number in (2, 0, 1)]
        held = index.vectors(ids)
        assert [of_page.tolist() for of_page in held] == [
            sign_vectors(numbers).tolist() for numbers in ([4, 5, 6], [9], [3])
        ]
        assert index.remove([ids[0], "none"]) == 1
        index.save()
        index.add([make_page(2)], [held[0]])
        assert told(index.search([sign_vectors([4, 9])], 1)[0]) == [("doc2.pdf#2", 1.0)]  # 1 and 0; page 0: 0.5 less
        assert index.search([], 3) == []
        with pytest.raises(PageIndexError, match="has no page 'no'"):
            index.vectors(["no"])
        index.close()


def test_identities_and_vectors_of_another_kind_are_refused(tmp_path: Path) -> None:
    for index in homes(tmp_path):
        with pytest.raises(EmbedderMismatchError, match=r"is_multi_vector: True, not False"):
            find_pages(index, SignEmbedder(), ["what 5"], 1)
        with pytest.raises(EmbeddingError, match=r"question 1 has vectors of shape \[4\]"):
            index.search(sign_vectors([1]), 1)
        with pytest.raises(EmbeddingError, match=r"doc0.pdf#0 has vectors of shape \[0, 4\]"):
            index.add([make_page(0)], [sign_vectors([])])
        index.close()
    with create_index(tmp_path / "single", SignEmbedder().identity) as single:
        with pytest.raises(EmbedderMismatchError, match=r"is_multi_vector: False, not True"):
            add_pages(single, SignSetEmbedder(), [make_page(0)])
        with pytest.raises(EmbeddingError, match="vectors of 1 items as a list, expected an array"):
            single.search([sign_vectors([1])], 1)
    with pytest.raises(PageIndexError, match=r"index.lists=always is of embedders that give one vector a page"):
        create_index(tmp_path / "lists", MULTI_IDENTITY, IndexConfig(lists="always"))
    with pytest.raises(PageIndexError, match=r"index.candidates=5 is of embedders that give many vectors a page"):
        create_index(tmp_path / "candidates", SignEmbedder().identity, IndexConfig(candidates=5))


def test_a_qdrant_index_opened_again_is_of_many_vectors() -> None:
    client = QdrantClient(":memory:")
    create_qdrant_index(client, MULTI_IDENTITY, IndexConfig()).add([make_page(0)], [sign_vectors([1, 2])])
    opened = open_qdrant_index(client, IndexConfig())
    assert opened.identity == MULTI_IDENTITY
    assert told(opened.search([sign_vectors([2, 2])], 1)[0]) == [("doc0.pdf#0", 2.0)]


def test_candidates_are_the_pages_whose_mean_is_nearest(tmp_path: Path) -> None:
    # Page 0 has the best match for each vector of the question, but its mean points away from both.
    pages = [make_page(number) for number in range(3)]
    axes = np.eye(4, dtype=np.float32)
    vectors = [np.stack([axes[0], axes[1], -axes[0], -axes[1], -axes[0]]), axes[:1], axes[1:2]]
    question = [axes[:2]]
    with create_index(tmp_path / "i", MULTI_IDENTITY) as index:
        index.add(pages, vectors)
        index.save()
        assert told(index.search(question, 3)[0]) == [("doc0.pdf#0", 2.0), ("doc1.pdf#1", 1.0), ("doc2.pdf#2", 1.0)]
    two = open_index(tmp_path / "i", IndexConfig(candidates=2))
    assert told(two.search(question, 3)[0])[:1] == [("doc0.pdf#0", 2.0)]  # three are asked for: all are looked at
    assert told(two.search(question, 2)[0]) == [("doc1.pdf#1", 1.0), ("doc2.pdf#2", 1.0)]
    assert told(two.search(question, 2, PageFilter(documents=("doc0.pdf", "doc2.pdf")))[0])[0] == ("doc0.pdf#0", 2.0)


def test_float16_begins_above_the_bound_of_vectors(tmp_path: Path) -> None:
    for most, size in ((6, 4), (5, 2)):
        folder = tmp_path / f"i{most}"
        with create_index(folder, MULTI_IDENTITY, IndexConfig(half_above_pages=most)) as index:
            index.add([make_page(0), make_page(1)], [sign_vectors([1, 2, 3]), sign_vectors([4, 5, 6])])
            index.save()
        # 128 bytes of numpy's header, 6 vectors of 4 numbers
        assert (folder / "vectors-000001.npy").stat().st_size == 128 + 6 * 4 * size
        assert sorted(file.name for file in folder.glob("*-*")) == [
            "means-000001.npy",
            "offsets-000001.npy",
            "pages-000001.parquet",
            "vectors-000001.npy",
        ]


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("offsets", np.array([0, 1, 2]), r"its offsets are not of the 3 vectors beside them"),
        ("offsets", np.array([0, 3, 3]), r"a page has no vectors"),
        ("means", np.zeros((1, 4), np.float32), r"its offsets and means are not of the same pages"),
        ("vectors", np.zeros(12, np.float32), r"it holds float32 of the shape \[12\]"),
    ],
    ids=["other_vectors", "empty_page", "other_means", "flat"],
)
def test_files_that_do_not_fit_together_are_refused(tmp_path: Path, name: str, array: Any, message: str) -> None:
    with create_index(tmp_path / "i", MULTI_IDENTITY) as index:
        index.add([make_page(0), make_page(1)], [sign_vectors([1, 2]), sign_vectors([4])])
        index.save()
    files = {what: tmp_path / "i" / f"{what}-000001.npy" for what in ("vectors", "offsets", "means")}
    np.save(files[name], array)
    with pytest.raises(ValueError, match=message):
        MultiVectorRows.mapped(files["vectors"], files["offsets"], files["means"])
    with pytest.raises(PageIndexError, match=r"was cut or changed|is damaged"):
        open_index(tmp_path / "i")
