"""The index in a folder: it finds what a look at every vector finds, and survives what happens to files."""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rsgrpo.config.index import IndexConfig
from rsgrpo.retrieval.embedders.embedder import EmbeddingError
from rsgrpo.retrieval.index.flat_index import create_index, open_index
from rsgrpo.retrieval.index.page_index import PageFilter, PageIndexError
from tests.unit.retrieval.index_pages import (
    DIMENSION,
    FILTERS,
    IDENTITY,
    brute_force,
    make_page,
    save_pages,
    sign_vector,
    sign_vectors,
    spread_page,
    told,
    unit_vectors,
)


@given(
    numbers=st.lists(st.integers(0, 15), max_size=40),
    query=st.integers(0, 15),
    k=st.integers(1, 50),
    wanted=st.sampled_from(FILTERS),
    num_saved=st.integers(0, 40),
)
def test_a_search_finds_what_a_look_at_every_vector_finds(numbers, query, k, wanted, num_saved) -> None:
    # With 16 different vectors nearly every place is tied; some pages are saved, the others only in memory.
    pages = [spread_page(number) for number in range(len(numbers))]
    vectors = sign_vectors(numbers)
    with tempfile.TemporaryDirectory() as folder, create_index(Path(folder) / "i", IDENTITY) as index:
        index.add(pages[:num_saved], vectors[:num_saved])
        index.save()
        index.add(pages[num_saved:], vectors[num_saved:])
        (found,) = index.search(sign_vector(query)[None], k, wanted)
    assert told(found) == brute_force(pages, vectors, sign_vector(query), k, wanted)


@pytest.mark.parametrize("num_pages", [600, 3000])
@pytest.mark.parametrize("wanted", FILTERS[:4])
def test_faiss_and_all_its_ties_agree_with_numpy(tmp_path: Path, num_pages: int, wanted: PageFilter) -> None:
    # Above 512 pages faiss looks for candidates; a third of all pages are equal, as blank ones are.
    vectors = unit_vectors(num_pages, 24)
    vectors[::3] = vectors[0]
    identity = dataclasses.replace(IDENTITY, dimension=24)
    pages = [spread_page(number) for number in range(num_pages)]
    queries = np.concatenate([vectors[:2], unit_vectors(3, 24, seed=1)])
    with create_index(tmp_path / "i", identity) as index:
        index.add(pages, vectors)
        index.save()
        results = index.search(queries, 7, wanted)
    for query, found in zip(queries, results, strict=True):
        assert told(found) == brute_force(pages, vectors, query, 7, wanted)


@given(
    changes=st.lists(
        st.one_of(
            st.tuples(st.just("add"), st.lists(st.tuples(st.integers(0, 12), st.integers(0, 15)), max_size=4)),
            st.tuples(st.just("remove"), st.lists(st.integers(0, 12), max_size=3)),
            st.tuples(st.sampled_from(["save", "open"]), st.just([])),
        ),
        max_size=12,
    )
)
def test_adding_removing_and_saving_behave_as_a_dictionary(changes) -> None:
    expected: dict[str, int] = {}
    saved: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as folder:
        index = create_index(Path(folder) / "i", IDENTITY)
        index.save()
        for kind, items in changes:
            if kind == "add":
                drawn = dict(items)  # one page once in a call
                index.add([make_page(number) for number in drawn], sign_vectors(list(drawn.values())))
                expected |= {make_page(number).page_id: vector for number, vector in drawn.items()}
            elif kind == "remove":
                ids = [make_page(number).page_id for number in items]
                assert index.remove(ids) == len({page_id for page_id in ids if expected.pop(page_id, None) is not None})
            elif kind == "save":
                index.save()
                saved = dict(expected)
            else:  # what was not saved is gone
                index.close()
                index = open_index(Path(folder) / "i", is_writable=True)
                expected = dict(saved)
            assert len(index) == len(expected)
            assert {page.page_id for page in index.pages()} == set(expected)
            np.testing.assert_array_equal(index.vectors(list(expected)), sign_vectors(list(expected.values())))
        for vector in range(16):
            (found,) = index.search(sign_vector(vector)[None], 20)
            best = {page_id for page_id, score in told(found) if score == 1.0}
            assert best == {page_id for page_id, number in expected.items() if number == vector}
        index.close()


def test_a_filter_also_finds_what_was_added_after_it_was_first_used(tmp_path: Path) -> None:
    wanted = PageFilter(documents=("doc1.pdf",))
    with create_index(tmp_path / "i", IDENTITY) as index:
        for number, expected in ((1, ["doc1.pdf#1"]), (2, ["doc1.pdf#1"]), (11, ["doc1.pdf#1", "doc1.pdf#11"])):
            index.add([make_page(number)], sign_vectors([5]))
            (found,) = index.search(sign_vector(5)[None], 5, wanted)
            assert [hit.page.page_id for hit in found] == expected


def test_equal_scores_come_in_page_order_whatever_the_order_of_adding(tmp_path: Path) -> None:
    pages = [make_page(number, document=f"doc{number % 12}.pdf") for number in range(40)]
    vectors = sign_vectors([5] * 40)
    results = []
    for name, order in (("forward", range(40)), ("backward", range(39, -1, -1))):
        with create_index(tmp_path / name, IDENTITY) as index:
            index.add([pages[i] for i in order], vectors)
            results.append([hit.page.page_id for hit in index.search(sign_vector(5)[None], 6)[0]])
    # doc2 before doc10; pages 1, 13, 25, 37 of doc0, then the first of doc1
    assert results[0] == results[1] == [f"doc0.pdf#{n}" for n in (0, 12, 24, 36)] + ["doc1.pdf#1", "doc1.pdf#13"]


def test_an_index_that_is_opened_again_is_the_one_that_was_saved(tmp_path: Path) -> None:
    vectors = unit_vectors(700, 24)
    pages = [spread_page(number) for number in range(700)]
    with create_index(tmp_path / "i", dataclasses.replace(IDENTITY, dimension=24)) as index:
        index.add(pages, vectors)
        before = [told(found) for found in index.search(vectors[:20], 5)]
        index.save()
        assert [told(found) for found in index.search(vectors[:20], 5)] == before
    shutil.copytree(tmp_path / "i", tmp_path / "elsewhere")
    opened = open_index(tmp_path / "elsewhere")
    assert [told(found) for found in opened.search(vectors[:20], 5)] == before
    assert opened.pages() == sorted(pages, key=lambda page: page.order)
    assert opened.identity == dataclasses.replace(IDENTITY, dimension=24)
    opened.verify()


def test_half_precision_moves_scores_by_its_rounding_only(tmp_path: Path) -> None:
    vectors = save_pages(tmp_path / "i", 700, IndexConfig(half_above_pages=500))
    opened = open_index(tmp_path / "i")
    found = opened.search(vectors[:30], 1)
    assert [hits[0].page.page_id for hits in found] == [spread_page(number).page_id for number in range(30)]
    # each entry is rounded by at most 2^-11 of itself, so a score of 1 by at most that
    assert all(abs(hits[0].score - 1.0) < 2**-11 for hits in found)
    assert (tmp_path / "i" / "vectors-000001.faiss").stat().st_size < 700 * 24 * 2 + 200


def test_inverted_lists_find_nearly_all_and_are_exact_where_all_lists_are_read(tmp_path: Path) -> None:
    config = IndexConfig(lists="always", num_lists=8, num_probes=8)
    vectors = save_pages(tmp_path / "i", 1200, config)
    pages = [spread_page(number) for number in range(1200)]
    opened = open_index(tmp_path / "i", config)
    for wanted in FILTERS[:4]:
        for query, found in zip(vectors[:10], opened.search(vectors[:10], 5, wanted), strict=True):
            assert told(found) == brute_force(pages, vectors, query, 5, wanted)
    few = open_index(tmp_path / "i", dataclasses.replace(config, num_probes=1))
    assert all(hits[0].score > 0.999 for hits in few.search(vectors[:30], 1))  # a page is in its own list


def test_vectors_that_are_none_are_refused_by_the_page_name(tmp_path: Path) -> None:
    with create_index(tmp_path / "i", IDENTITY) as index:
        bad = sign_vectors([1, 2])
        bad[1, 2] = np.nan
        with pytest.raises(EmbeddingError, match=r"vector of doc1.pdf#1 is not finite"):
            index.add([make_page(0), make_page(1)], bad)
        with pytest.raises(EmbeddingError, match=r"doc0.pdf#0 has length 2, expected 1"):
            index.add([make_page(0)], 2 * sign_vectors([1]))
        with pytest.raises(EmbeddingError, match=r"shape \[1, 3\] for 1 items, expected \[1, 4\]"):
            index.search(np.ones((1, 3), np.float32), 1)
        with pytest.raises(EmbeddingError, match="question 1 has length 0"):
            index.search(np.zeros((1, DIMENSION), np.float32), 1)
        with pytest.raises(PageIndexError, match=r"two of the pages to add have the id 'doc0.pdf#0'"):
            index.add([make_page(0), make_page(0)], sign_vectors([1, 2]))
        assert len(index) == 0


def test_an_empty_index_finds_nothing_and_can_be_saved(tmp_path: Path) -> None:
    with create_index(tmp_path / "i", IDENTITY) as index:
        assert index.search(sign_vectors([1, 2]), 3) == [[], []]
        with pytest.raises(PageIndexError, match=r"has no page 'x'; pages\(\) lists those that it has"):
            index.vectors(["x"])
        assert index.search(sign_vectors([]), 3) == []
        index.add([], sign_vectors([]))
        index.save()
    opened = open_index(tmp_path / "i")
    assert len(opened) == 0 and opened.pages() == [] and opened.search(sign_vectors([1]), 3) == [[]]
    with pytest.raises(PageIndexError, match="k=0 asks for no page"):
        opened.search(sign_vectors([1]), 0)


def test_a_reader_does_not_write_and_two_processes_do_not_write_at_once(tmp_path: Path) -> None:
    save_pages(tmp_path / "i", 3)
    reader = open_index(tmp_path / "i")
    with pytest.raises(PageIndexError, match="was opened for reading; open it with is_writable=True"):
        reader.remove(["doc0.pdf#0"])
    with open_index(tmp_path / "i", is_writable=True) as writer:
        # flock counts by open file, so a second one in this process meets what another process would
        with pytest.raises(PageIndexError, match=r"another process is writing the index .*; wait until it has ended"):
            open_index(tmp_path / "i", is_writable=True)
        with pytest.raises(PageIndexError, match="another process is writing"):
            create_index(tmp_path / "i", IDENTITY)
        writer.remove(["doc0.pdf#0"])
        writer.save()
        assert len(reader.search(unit_vectors(1, 24), 5)[0]) == 3  # it keeps what it opened
        assert len(open_index(tmp_path / "i")) == 2
    open_index(tmp_path / "i", is_writable=True).close()  # free again
    with pytest.raises(PageIndexError, match="holds an index already"):
        create_index(tmp_path / "i", IDENTITY)
