"""Run files: VisRAG's own form, round trips, and what is refused."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rsgrpo.io.atomic_files import FileError
from rsgrpo.retrieval.measuring.trec_runs import Run, RunError, ScoredPage, merge_runs, ordered, read_run, write_run
from tests.unit.retrieval.rankings import IDS, pages, rankings

Parity = Callable[[str], Any]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs") / "test.0.trec"


def test_files_are_written_and_read_as_visrag_does(parity: Parity, file: Path) -> None:
    for case in parity("retrieval_metrics")["cases"]:
        run = {query: pages(*map(tuple, ranking)) for query, ranking in case["run"].items()}
        write_run(file, run, tag="OpenMatch")
        assert file.read_text() == case["trec_file"], case["name"]
        assert read_run(file) == {query: ordered(ranking) for query, ranking in run.items()}


def test_runs_are_merged_as_visrag_does(parity: Parity) -> None:
    for vector in parity("retrieval_metrics")["merge_vectors"]:
        runs = [{query: pages(*found.items()) for query, found in given_run.items()} for given_run in vector["inputs"]]
        merged = merge_runs(runs, depth=2, mode="official")
        assert merged == {query: pages(*found.items()) for query, found in vector["topk2"].items()}
        with pytest.raises(RunError, match="'q1' has page 'b' in two of the runs"):
            merge_runs(runs)


@given(st.dictionaries(IDS, rankings(min_size=1), min_size=1, max_size=4))
def test_what_is_written_is_read_back_sorted(file: Path, run: Run) -> None:
    write_run(file, run)
    assert read_run(file) == {query: ordered(ranking) for query, ranking in run.items()}


@given(st.dictionaries(IDS, rankings(min_size=1), min_size=1, max_size=4), st.data())
def test_a_run_written_in_parts_is_read_whole(tmp_path_factory, run: Run, data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("parts")
    parts: list[dict[str, list[ScoredPage]]] = [{}, {}]
    for query, ranking in run.items():
        for page in ranking:
            parts[data.draw(st.integers(0, 1))].setdefault(query, []).append(page)
    files = []
    for number, part in enumerate(parts):
        if part:
            files.append(folder / f"test.{number}.trec")
            write_run(files[-1], part)
    read = read_run(*files)
    assert {query: set(ranking) for query, ranking in read.items()} == {
        query: set(ranking) for query, ranking in run.items()
    }
    assert read == {query: ordered(ranking) for query, ranking in read.items()}


@pytest.mark.parametrize(
    "text",
    [
        "q\tQ0\ta\t1\t0.5\tx\n",
        "q Q0 a 1 0.5 x",
        "\ufeffq\tQ0\ta\t1\t5e-1\tx\r\n\r\n",
        "q\ta\t0.5\n",
        "\n  q  a  0.5\n\n",
        "q\tQ0\ta\tsome rank\t0.5\ta tag\n",
    ],
)
def test_six_and_three_fields_are_read(file: Path, text: str) -> None:
    file.write_text(text)
    assert read_run(file) == {"q": pages(("a", 0.5))}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("q\ta\t1\nq\tQ0\ta\t1\n", "line 2: 4 fields, expected 6"),
        ("q Q0 page 7 1 0.5 x\n", "line 1: 7 fields.*underscores"),
        ("q\tQ0\tpage 7\t1\t0.5\tx\n", "line 1: the page id is 'page 7'.*underscores"),
        ("q\tQ0\t\t1\t0.5\tx\n", "the page id is ''"),
        ("q\ta\tnan\n", "line 1: the score is nan"),
        ("q\ta\t1e999\n", "line 1: the score is 1e999"),
        ("q\ta\thigh\n", "line 1: the score is 'high'"),
        ("q\ta\t1\nq\tb\t1\nq\ta\t0.5\n", "line 3: query 'q' has page 'a' in line 1 already"),
    ],
)
def test_a_line_that_is_none_of_a_run_is_named(file: Path, text: str, message: str) -> None:
    file.write_text(text)
    for mode in ("official", "strict"):
        with pytest.raises(RunError, match=message):
            read_run(file, mode=mode)


def test_bytes_that_are_no_text_and_missing_files_are_named(file: Path, tmp_path: Path) -> None:
    file.write_bytes(b"q\ta\xff\t1\n")
    with pytest.raises(RunError, match="line 1: byte 0xff is not UTF-8"):
        read_run(file)
    with pytest.raises(FileError, match="is missing"):
        read_run(tmp_path / "none.trec")
    file.write_bytes(b"")
    with pytest.raises(FileError, match="is empty"):
        read_run(file)
    with pytest.raises(RunError, match="no run to merge"):
        read_run()


@pytest.mark.parametrize(
    ("run", "message"),
    [
        ({"a query": pages(("a", 1.0))}, "the query id is 'a query'.*underscores"),
        ({"q": pages(("page 7", 1.0))}, "the page id is 'page 7'"),
        ({"q": pages(("page\u00a07", 1.0))}, "the page id is 'page"),
        ({"q": pages(("a", math.nan))}, "the score of page 'a' is nan"),
        ({"q": pages(("a", 1.0), ("a", 0.5))}, "has page 'a' twice"),
        ({"q": ()}, "holds no page for any query"),
        ({}, "holds no page for any query"),
    ],
)
def test_what_cannot_be_written_leaves_the_file_as_it_was(file: Path, run: Run, message: str) -> None:
    file.write_text("before")
    with pytest.raises(RunError, match=message):
        write_run(file, run)
    assert file.read_text() == "before"


def test_the_tag_is_one_word_and_a_depth_at_least_one(file: Path) -> None:
    with pytest.raises(RunError, match="the tag is 'my run'"):
        write_run(file, {"q": pages(("a", 1.0))}, tag="my run")
    with pytest.raises(RunError, match="depth is 0"):
        merge_runs([{}], depth=0)


def test_pages_of_equal_score_keep_their_order() -> None:
    assert ordered(pages(("a", 0.5), ("b", 0.9), ("c", 0.5))) == pages(("b", 0.9), ("a", 0.5), ("c", 0.5))
