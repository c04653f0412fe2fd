"""The index in a folder: it finds what a look at every vector finds, and survives what happens to files."""

from __future__ import annotations

import dataclasses
import errno
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rsgrpo.config.index import IndexConfig
from rsgrpo.io.atomic_files import read_json_object
from rsgrpo.retrieval import index_header
from rsgrpo.retrieval.embedder import EmbeddingError
from rsgrpo.retrieval.flat_index import FlatIndex, create_index, open_index
from rsgrpo.retrieval.index_header import HEADER_FILE, INDEX_VERSION
from rsgrpo.retrieval.page_index import PageFilter, PageIndexError
from tests.unit.retrieval.index_pages import (
    DIMENSION,
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


def save_pages(folder: Path, num: int, config: IndexConfig | None = None, dimension: int = 24) -> np.ndarray:
    vectors = unit_vectors(num, dimension)
    with create_index(folder, dataclasses.replace(IDENTITY, dimension=dimension), config) as index:
        index.add([spread_page(number) for number in range(num)], vectors)
        index.save()
    return vectors


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


_KILLED = """
import os, signal, sys
from pathlib import Path
from rsgrpo.retrieval import flat_index, vector_file
from tests.unit.retrieval.index_pages import make_page, unit_vectors

place = sys.argv[2]
def die(*arguments, **options):
    os.kill(os.getpid(), signal.SIGKILL)
if place == "vectors":
    write = vector_file.faiss.write_index
    vector_file.faiss.write_index = lambda index, writer: (write(index, writer), die())
elif place == "pages":
    flat_index.PageTable.write = die
elif place == "header":
    flat_index.write_header = die
elif place == "cleaning":
    flat_index.FlatIndex._take_away_others = die
index = flat_index.open_index(Path(sys.argv[1]), is_writable=True)
index.add([make_page(number) for number in range(100, 105)], unit_vectors(5, 24, seed=3))
index.save()
"""


@pytest.mark.parametrize(("place", "num_after"), [("vectors", 20), ("pages", 20), ("header", 20), ("cleaning", 25)])
def test_a_process_killed_while_it_saves_leaves_the_index_before_or_the_new_one(
    tmp_path: Path, place: str, num_after: int
) -> None:
    vectors = save_pages(tmp_path / "i", 20)
    ended = subprocess.run([sys.executable, "-c", _KILLED, str(tmp_path / "i"), place], capture_output=True, text=True)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    opened = open_index(tmp_path / "i")
    opened.verify()
    assert len(opened) == num_after
    assert opened.search(vectors[3:4], 1)[0][0].page == spread_page(3)
    # the next writer takes its leftovers away
    with open_index(tmp_path / "i", is_writable=True) as index:
        index.save()
    left = sorted(file.name for file in (tmp_path / "i").iterdir())
    number = read_json_object(tmp_path / "i" / HEADER_FILE)["content"]["save_number"]
    assert left == [".lock", HEADER_FILE, f"pages-{number:06d}.parquet", f"vectors-{number:06d}.faiss"]


def test_a_full_disk_is_named_and_leaves_the_index_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = save_pages(tmp_path / "i", 20)
    with open_index(tmp_path / "i", is_writable=True) as index:
        index.remove([spread_page(0).page_id])
        real_open = Path.open

        def full(path: Path, mode: str = "r", *arguments, **options):
            return real_open(Path("/dev/full") if "pages-" in path.name and "w" in mode else path, mode, *arguments)

        monkeypatch.setattr(Path, "open", full)
        with pytest.raises(PageIndexError, match=r"the disk of the index .* is full; free some space"):
            index.save()
        monkeypatch.undo()
        assert len(index) == 19  # still in memory
    assert len(open_index(tmp_path / "i")) == 20
    assert open_index(tmp_path / "i").search(vectors[:1], 1)[0][0].page == spread_page(0)
    assert len(list((tmp_path / "i").glob("vectors-*"))) == 1


def test_vectors_that_do_not_fit_on_the_disk_are_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # faiss itself passes over a piece that could not be written
    with create_index(tmp_path / "i", IDENTITY) as index:
        index.add([make_page(0)], sign_vectors([1]))
        real_open = Path.open
        monkeypatch.setattr(
            Path,
            "open",
            lambda path, mode="r", *arguments: real_open(
                Path("/dev/full") if "vectors-" in path.name else path, mode, 0 if "vectors-" in path.name else -1
            ),
        )
        with pytest.raises(PageIndexError, match="is full"):
            index.save()


def _header(folder: Path, **changes: object) -> None:
    document = read_json_object(folder / HEADER_FILE)
    document |= changes
    (folder / HEADER_FILE).write_text(json.dumps(document))


def _sealed(folder: Path, content: dict[str, object]) -> None:
    _header(folder, content=content, sha256=index_header._digest(content))


def damage(folder: Path, kind: str) -> None:
    header = folder / HEADER_FILE
    vectors, pages = folder / "vectors-000001.faiss", folder / "pages-000001.parquet"
    content = read_json_object(header)["content"]
    damages: dict[str, Callable[[], object]] = {
        "no header": header.unlink,
        "cut header": lambda: header.write_bytes(header.read_bytes()[:100]),
        "empty header": lambda: header.write_bytes(b""),
        "foreign": lambda: header.write_text('{"name": "site", "version": 1}'),
        "list": lambda: header.write_text("[]"),
        "version": lambda: _header(folder, version=INDEX_VERSION + 1),
        "edited": lambda: _header(folder, content=content | {"num_pages": 19}),
        "not finite": lambda: header.write_text(header.read_text().replace('"num_pages": 20', '"num_pages": NaN')),
        "unknown field": lambda: _sealed(folder, content | {"more": 1}),
        "wrong count": lambda: _sealed(folder, content | {"num_pages": 19}),
        "no vectors": vectors.unlink,
        "cut vectors": lambda: os.truncate(vectors, 500),
        "other pages": lambda: pages.write_bytes(bytes(pages.stat().st_size)),
    }
    damages[kind]()


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("no header", r"is half written: its index.json, which comes last, is missing; run the rsgrpo index command"),
        ("cut header", r"is damaged: .* is no JSON"),
        ("empty header", r"is damaged: .* is empty"),
        ("foreign", r"is of the kind None, expected 'rsgrpo page index': another program wrote it"),
        ("list", r"holds a list where an object is expected"),
        ("version", r"has version 2, and this release reads version 1; make it anew"),
        ("edited", r"was changed after it was written: its checksum differs"),
        ("not finite", r"was changed after it was written"),
        ("unknown field", r"more"),
        ("wrong count", r"20 vectors, 20 pages and dimension 24, its header says 19, 19 and 24"),
        ("no vectors", r"lacks vectors-000001.faiss; copy the folder again"),
        ("cut vectors", r"has 500 bytes, expected \d+: it was cut or changed"),
        ("other pages", r"is damaged: its checksum differs"),
    ],
)
def test_what_is_no_whole_index_is_refused_with_the_way_out(tmp_path: Path, kind: str, message: str) -> None:
    save_pages(tmp_path / "i", 20)
    damage(tmp_path / "i", kind)
    with pytest.raises(PageIndexError, match=message):
        open_index(tmp_path / "i")


def test_changed_vectors_are_found_by_verifying(tmp_path: Path) -> None:
    save_pages(tmp_path / "i", 20)
    file = tmp_path / "i" / "vectors-000001.faiss"
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)
    with pytest.raises(PageIndexError, match=r"vectors-000001.faiss is damaged"):
        open_index(tmp_path / "i").verify()


def test_a_path_without_an_index_is_told_from_a_file_and_a_missing_one(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "empty").mkdir()
    for name, message in (
        ("file", "is a file, and an index is a folder"),
        ("empty", "holds no index: there is no index.json in it"),
        ("missing", "there is no index .*; check the path, or make one with rsgrpo index"),
    ):
        for is_writable in (False, True):
            with pytest.raises(PageIndexError, match=message):
                open_index(tmp_path / name, is_writable=is_writable)
    assert list((tmp_path / "empty").iterdir()) == [] and not (tmp_path / "missing").exists()
    with pytest.raises(PageIndexError, match="is a file"):
        create_index(tmp_path / "file", IDENTITY)


def test_a_reader_meets_a_writer_between_header_and_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The writer replaces everything after the reader has read the header; the reader reads it once more.
    save_pages(tmp_path / "i", 20)
    load = FlatIndex._load
    calls: list[object] = []

    def late(index: FlatIndex, header) -> None:
        if not calls:
            calls.append(header)
            with open_index(tmp_path / "i", is_writable=True) as writer:
                writer.remove([spread_page(0).page_id])
                writer.save()
        load(index, header)

    monkeypatch.setattr(FlatIndex, "_load", late)
    assert len(open_index(tmp_path / "i")) == 19


def test_a_slash_behind_a_folder_changes_nothing() -> None:
    assert PageFilter(folders=("a/b/", "c")) == PageFilter(folders=("a/b", "c"))


def test_the_way_out_of_a_damaged_index_leads_out(tmp_path: Path) -> None:
    with create_index(tmp_path, IDENTITY) as index:
        index.add([make_page(1)], sign_vectors([1]))
        index.save()
    (tmp_path / "index.json").write_text("{")
    with pytest.raises(PageIndexError, match=r"delete its index\.json, and run rsgrpo index"):
        open_index(tmp_path)
    (tmp_path / "index.json").unlink()
    with create_index(tmp_path, IDENTITY) as index:
        index.save()
    assert len(open_index(tmp_path)) == 0


@pytest.mark.parametrize("name", ["index.json", "vectors-000001.faiss"])
def test_a_file_that_may_not_be_read_is_not_called_damaged(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_pages(tmp_path / "i", 20)

    def refusing(function: Callable[..., Any]) -> Callable[..., Any]:
        def refuse(file: object, *arguments: object, **named: object) -> Any:
            if str(file).endswith(name):  # root may read whatever the file's mode says
                raise PermissionError(errno.EACCES, "Permission denied", str(file))
            return function(file, *arguments, **named)

        return refuse

    monkeypatch.setattr(io, "open", refusing(io.open))
    monkeypatch.setattr(os, "open", refusing(os.open))
    with pytest.raises(PageIndexError, match="cannot be read") as caught:
        open_index(tmp_path / "i")
    assert "damaged" not in str(caught.value) and "delete" not in str(caught.value)
