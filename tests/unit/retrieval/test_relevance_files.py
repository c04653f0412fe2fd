"""Data sets in VisRAG's layout, from parquet and JSON lines, and what is wrong with them."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from rsgrpo.config.image_rules import ImageRules
from rsgrpo.data.files import DataError
from rsgrpo.data.images.loading import load_image
from rsgrpo.retrieval.measuring.measures import measure_run
from rsgrpo.retrieval.measuring.relevance_files import (
    RetrievalPage,
    RetrievalQuery,
    RetrievalSet,
    fill_template,
    oracle_page_ids,
    read_judged_queries,
    read_retrieval_set,
)
from tests.unit.retrieval.rankings import pages

Parity = Callable[[str], Any]


def _png(color: tuple[int, int, int]) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (40, 30), color).save(file, "PNG")
    return file.getvalue()


def _write(folder: Path, part: str, rows: list[dict[str, Any]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A data set of two pages and three queries, in JSON lines."""
    (tmp_path / "imgs").mkdir()
    (tmp_path / "imgs" / "a.png").write_bytes(_png((255, 0, 0)))
    _write(tmp_path, "corpus", [{"corpus-id": "a.png", "image": "imgs/a.png"}, {"corpus-id": "b", "text": "Revenue"}])
    queries: list[dict[str, Any]] = [
        {"query-id": "a.png-1", "query": "Which?", "answer": "red", "options": ["A. red", "B. blue"]},
        {"query-id": "a.png-2", "query": "How many?", "answer": 2},
        {"query-id": "b-1", "query": "What?", "answer": ["it", 3]},
    ]
    _write(tmp_path, "queries", queries)
    judged = [("a.png-1", "a.png", 1), ("a.png-1", "b", 0), ("b-1", "b", 1)]
    _write(tmp_path, "qrels", [dict(zip(("query-id", "corpus-id", "score"), row, strict=True)) for row in judged])
    return tmp_path


def test_judged_queries_need_no_corpus(folder: Path) -> None:
    whole = read_retrieval_set(folder)
    (folder / "corpus.jsonl").unlink()
    judged = read_judged_queries(folder)
    assert [query.query_id for query in judged.queries] == ["a.png-1", "b-1"]  # the second is not judged
    assert judged.relevant == whole.relevant
    judged.check_pages(["a.png", "b", "c"], "the index i")
    with pytest.raises(DataError, match=r"2 page ids are not in the index i: 'a.png' .*, 'b'"):
        judged.check_pages(["A.png"], "the index i")


def test_json_lines_are_read_with_answers_of_their_types(folder: Path) -> None:
    found = read_retrieval_set(folder)
    assert found.queries == (
        RetrievalQuery(query_id="a.png-1", text="Which?", answer="red", options=("A. red", "B. blue")),
        RetrievalQuery(query_id="a.png-2", text="How many?", answer=2),
        RetrievalQuery(query_id="b-1", text="What?", answer=("it", 3)),
    )
    assert found.relevant == {"a.png-1": {"a.png": 1, "b": 0}, "b-1": {"b": 1}}
    assert found.unjudged_query_ids == ("a.png-2",)
    first, second = found.pages
    assert first.image is not None
    assert load_image(first.image, ImageRules()).getpixel((0, 0)) == (255, 0, 0)
    assert second == RetrievalPage(page_id="b", text="Revenue")
    run = {"a.png-1": pages(("b", 1.0), ("a.png", 0.5))}
    assert measure_run(run, found.relevant, mode="official", measures=["mrr@10"]).values == {"mrr@10": 0.5}


def _hub_folder(folder: Path, colors: dict[str, tuple[int, int, int]]) -> None:
    """Write a data set as VisRAG's test sets lie on the hub: a folder for each part, several files of a corpus."""
    for part in ("corpus", "queries", "qrels"):
        (folder / part).mkdir(parents=True)
    images = datasets.Features({"corpus-id": datasets.Value("string"), "image": datasets.Image()})
    names = list(colors)
    for number, share in enumerate((names[::2], names[1::2])):
        rows = {
            "corpus-id": share,
            "image": [{"bytes": _png(colors[name]), "path": name} for name in share],
        }
        table = datasets.Dataset.from_dict(rows, features=images)
        table.to_parquet(folder / "corpus" / f"train-0000{number}-of-00002.parquet")
    queries = {"query-id": [f"{name}-1" for name in names], "query": ["q"] * len(names), "answer": [1.5] * len(names)}
    pyarrow.parquet.write_table(pyarrow.table(queries), folder / "queries" / "train-00000-of-00001.parquet")
    judged = {"query-id": queries["query-id"], "corpus-id": names, "score": [1] * len(names)}
    pyarrow.parquet.write_table(pyarrow.table(judged), folder / "qrels" / "train-00000-of-00001.parquet")


def test_parquet_is_read_by_reference_and_decoded_only_when_loaded(tmp_path: Path, monkeypatch) -> None:
    colors = {f"page{number}.png": (number, 0, 0) for number in range(5)}
    _hub_folder(tmp_path, colors)
    with monkeypatch.context() as context:
        context.setattr(Image.Image, "load", None)  # decoding would fail
        found = read_retrieval_set(tmp_path)
    assert {page.page_id for page in found.pages} == set(colors)
    for page in found.pages:
        assert page.image is not None
        assert load_image(page.image, ImageRules()).getpixel((0, 0)) == colors[page.page_id]
    for query in found.queries:
        assert query.answer == 1.5
        # the convention of the oracle setting agrees with the judgements
        assert oracle_page_ids(query.query_id, dataset="ChartQA") == tuple(found.relevant[query.query_id])


def test_a_split_is_chosen_by_the_names_of_files(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for part, row in (
            ("corpus", {"corpus-id": split, "text": "x"}),
            ("queries", {"query-id": "q", "query": "x"}),
            ("qrels", {"query-id": "q", "corpus-id": split, "score": 1}),
        ):
            (tmp_path / part).mkdir(exist_ok=True)
            (tmp_path / part / f"{split}-00000-of-00001.jsonl").write_text(json.dumps(row) + "\n")
    assert [page.page_id for page in read_retrieval_set(tmp_path).pages] == ["train"]
    assert [page.page_id for page in read_retrieval_set(tmp_path, split="test").pages] == ["test"]


@pytest.mark.parametrize("key", ["_id", "id", "text_id", "sample_id", "filename", "corpus-id", "query-id"])
def test_ids_are_found_under_every_key_the_first_that_is_not_null(folder: Path, key: str) -> None:
    _write(folder, "corpus", [{"corpus-id": None, key: "a.png", "text": ""}, {key: "b", "text": ""}])
    assert [page.page_id for page in read_retrieval_set(folder).pages] == ["a.png", "b"]


def test_numbers_and_blanks_are_ids_as_everywhere(folder: Path) -> None:
    _write(folder, "corpus", [{"_id": 7, "id": "x", "text": ""}])
    _write(folder, "qrels", [{"query-id": " b-1\n", "corpus-id": 7.0, "score": 1.0}])
    assert read_retrieval_set(folder).relevant == {"b-1": {"7": 1}}


def test_images_as_base64_are_kept_in_the_media_folder(folder: Path, tmp_path: Path) -> None:
    text = base64.b64encode(_png((0, 255, 0))).decode()
    _write(folder, "corpus", [{"corpus-id": "a.png", "image": text}, {"corpus-id": "b", "image": None}])
    found = read_retrieval_set(folder, media_folder=str(tmp_path / "media"))
    assert found.pages[0].image is not None
    assert found.pages[0].image.file.startswith(str(tmp_path / "media"))
    assert found.pages[1].image is None


def test_templates_are_filled_as_visrag_does(parity: Parity, folder: Path) -> None:
    for vector in parity("retrieval_metrics")["template_vectors"]:
        assert fill_template(vector["template"], vector["data"]) == vector["out"]
    found = read_retrieval_set(folder, query_template="Represent this query: <query>")
    assert found.queries[0].text == "Represent this query: Which?"
    with pytest.raises(DataError, match=r"queries\.jsonl line 1: no question;.*query-id, query"):
        read_retrieval_set(folder, query_template="<question>")


@pytest.mark.parametrize(
    ("part", "rows", "message"),
    [
        ("corpus", [{"corpus-id": "a.png", "text": ""}] * 2, "'a.png' stands twice, in .*line 1 and in .*line 2"),
        (
            "corpus",
            [{"page": "a.png", "text": ""}],
            "corpus.jsonl line 1: no id in _id, id.*got the columns page, text",
        ),
        ("corpus", [{"corpus-id": 1.5, "text": ""}], "corpus-id is 1.5, expected a text or a whole number"),
        (
            "corpus",
            [{"corpus-id": "a.png", "picture": "x"}],
            "neither image nor text; got the columns corpus-id, picture",
        ),
        ("corpus", [{"corpus-id": "a.png", "image": "imgs/A.png"}], "corpus.jsonl line 1.*exists as 'imgs/a.png'"),
        ("corpus", [{"corpus-id": "a.png", "text": 7}], "text is 7"),
        ("corpus", [{"corpus-id": "a.png", "text": ""}], "1 page ids are not in the corpus: 'b'"),
        ("corpus", [{"corpus-id": "A.png", "text": ""}, {"corpus-id": "b", "text": ""}], "looks like 'A.png'"),
        ("queries", [{"query-id": "a.png-1", "query": "x"}], "1 query ids are not in the queries: 'b-1'"),
        ("queries", [{"query-id": "b-1", "query": "x", "answer": {}}], "answer is {}, expected a text"),
        ("queries", [{"query-id": "b-1", "query": "x", "options": "AB"}], "options is 'AB', expected a list of texts"),
        ("queries", [{"query-id": "b-1", "query": None}], "no query; got the columns query-id, query"),
        ("queries", ["b-1"], "'b-1', expected an object"),
        ("qrels", [{"query-id": "b-1", "corpus-id": "b"}], "expected query-id, corpus-id and score"),
        ("qrels", [{"query-id": "b-1", "corpus-id": "b", "score": 0.5}], "the score is 0.5"),
        ("qrels", [{"query-id": "b-1", "corpus-id": "b", "score": -1}], "the score is -1"),
        ("qrels", [{"query-id": "b-1", "corpus-id": "b", "score": 1}] * 2, "line 2.*are judged in qrels.jsonl line 1"),
    ],
)
def test_what_is_wrong_in_a_row_is_named(folder: Path, part: str, rows: list[Any], message: str) -> None:
    _write(folder, part, rows)
    with pytest.raises(DataError, match=message):
        read_retrieval_set(folder)


def test_a_page_in_two_files_of_a_corpus_is_named_with_both(folder: Path) -> None:
    (folder / "corpus-00001-of-00002.jsonl").write_text('{"corpus-id": "b", "text": ""}\n')
    with pytest.raises(DataError, match=r"'b' stands twice, in corpus.*\.jsonl line \d and in corpus.*two splits"):
        read_retrieval_set(folder)


def test_missing_parts_and_broken_files_are_named(folder: Path, tmp_path: Path) -> None:
    (folder / "queries.jsonl").write_text('{"query-id": "b-1", "query": "x"}\n{"query-id":\n')
    with pytest.raises(DataError, match=r"queries: queries\.jsonl line 2: the line is not JSON"):
        read_retrieval_set(folder)
    (folder / "queries.jsonl").unlink()
    with pytest.raises(DataError, match="has no queries; expected the folders or files"):
        read_retrieval_set(folder)
    with pytest.raises(DataError, match="there is no such folder"):
        read_retrieval_set(tmp_path / "nowhere")


def test_a_set_has_every_id_once() -> None:
    query, page = RetrievalQuery(query_id="q", text="x"), RetrievalPage(page_id="p")
    with pytest.raises(DataError, match="the page 'p' is in the set twice"):
        RetrievalSet(queries=(query,), pages=(page, page), relevant={})
    with pytest.raises(DataError, match="the query 'q' is in the set twice"):
        RetrievalSet(queries=(query, query), pages=(page,), relevant={})


@pytest.mark.parametrize(
    ("query_id", "dataset", "expected"),
    [
        ("1803.02279v3.pdf_3.jpg-12", "ArxivQA", ("1803.02279v3.pdf_3.jpg",)),
        ("two-col-7.png-1", "ChartQA", ("two-col-7.png",)),
        ("a.jpgtcy6b.jpgquery_number3", "SlideVQA", ("a.jpg", "b.jpg")),
        ("a-1.jpgquery_number_0", "SlideVQA", ("a-1.jpg",)),
    ],
)
def test_query_ids_name_the_gold_pages(query_id: str, dataset: str, expected: tuple[str, ...]) -> None:
    assert oracle_page_ids(query_id, dataset=dataset) == expected


@pytest.mark.parametrize(
    ("query_id", "dataset"),
    [("17", "ArxivQA"), ("-1", "PlotQA"), ("a.jpg-1", "SlideVQA"), ("query_number1", "SlideVQA")],
)
def test_query_ids_of_another_form_are_named(query_id: str, dataset: str) -> None:
    with pytest.raises(DataError, match="names no page: expected PAGE"):
        oracle_page_ids(query_id, dataset=dataset)
