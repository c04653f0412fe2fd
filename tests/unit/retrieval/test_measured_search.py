"""Measuring an embedder on a data set: what is found, how fast, what is kept, and what cannot be embedded."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest
from PIL import Image

from rsgrpo.data.file_bytes import DataError
from rsgrpo.data.images.sources import ImageError
from rsgrpo.retrieval.embedders.embedder import EmbedderMismatchError, EmbeddingError, PageImage
from rsgrpo.retrieval.index.flat_index import create_index, open_index
from rsgrpo.retrieval.measuring.measured_search import measure_embedder
from rsgrpo.retrieval.measuring.relevance_files import RetrievalPage, RetrievalQuery, RetrievalSet
from rsgrpo.types import FloatArray, ImageRef
from tests.unit.retrieval.index_pages import IDENTITY, SignEmbedder

Write = Callable[..., RetrievalSet]


class CountingEmbedder(SignEmbedder):
    """A sign embedder that counts its pages, takes 10 ms for each and 2 ms for a query, and refuses page 13."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.num_pages = 0

    def embed_queries(self, queries: Sequence[str]) -> FloatArray:
        self.now += 0.002 * len(queries)
        return super().embed_queries(queries)

    def embed_pages(self, pages: Sequence[PageImage]) -> FloatArray:
        if any(isinstance(page, ImageRef) and page.path == "page 13" for page in pages):
            raise ImageError("page 13 is damaged")
        self.num_pages += len(pages)
        self.now += 0.010 * len(pages)
        return super().embed_pages(pages)


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a set whose page ``n`` has the sign vector ``n``; a query is known by its text."""

    def written(
        pages: Sequence[int], queries: Sequence[str], relevant: Mapping[str, Mapping[str, int]], *, texts: int = 0
    ) -> RetrievalSet:
        with_images = []
        for number in pages:
            file = tmp_path / f"{number}.png"
            Image.new("RGB", (8, 8), (number, 0, 0)).save(file)
            with_images.append(
                RetrievalPage(page_id=f"p{number}", image=ImageRef(path=f"page {number}", file=str(file)))
            )
        with_text = [RetrievalPage(page_id=f"t{number}", text="Revenue") for number in range(texts)]
        return RetrievalSet(
            queries=tuple(RetrievalQuery(query_id=text or "empty", text=text) for text in queries),
            pages=(*with_images, *with_text),
            relevant=relevant,
        )

    return written


def test_measures_run_and_speed(write: Write) -> None:
    # Sign vectors: 15 · 15 = 1, 15 · 7 = 15 · 11 = 0.5 (equal scores go in page order), 15 · 0 = -1.
    # "find 15" wants p11, third: 1/3. "find 0" wants p0, first: 1. The mean is 2/3; "find 7" is not judged.
    data = write([0, 7, 11, 15], ["find 15", "find 0", "find 7"], {"find 15": {"p11": 1}, "find 0": {"p0": 1}})
    embedder = CountingEmbedder()
    found = measure_embedder(embedder, data, k=3, clock=lambda: embedder.now)
    assert [page.page_id for page in found.run["find 15"]] == ["p15", "p7", "p11", "p0"]
    assert found.values["mrr@3"] == pytest.approx(2 / 3)
    assert found.values["recall@3"] == 1
    assert (found.num_queries, found.num_pages, found.num_embedded_pages) == (2, 4, 4)
    assert found.query_embedding_milliseconds == pytest.approx(2.0)
    assert found.search_milliseconds == 0  # the clock stands still
    assert found.pages_per_second == pytest.approx(100.0)
    assert (found.missing_queries, found.unjudged_queries) == ((), ("find 7",))


def test_an_index_saves_embedding_again(write: Write, tmp_path: Path) -> None:
    data = write([0, 7, 15], ["find 7"], {"find 7": {"p7": 1}})
    embedder = CountingEmbedder()
    with create_index(tmp_path / "i", IDENTITY) as index:
        first = measure_embedder(embedder, data, index=index)
    # A page is gone, one is new, and the image of p15 is another one.
    data = write([7, 15, 3], ["find 7"], {"find 7": {"p7": 1}})
    Image.new("RGB", (9, 9)).save(tmp_path / "15.png")
    with open_index(tmp_path / "i", is_writable=True) as index:
        second = measure_embedder(embedder, data, index=index)
        assert sorted(page.page_id for page in index.pages()) == ["p15", "p3", "p7"]
        third = measure_embedder(embedder, data, index=index)
    assert (first.num_embedded_pages, second.num_embedded_pages, third.num_embedded_pages) == (3, 2, 0)
    assert embedder.num_pages == 5
    assert third.pages_per_second is None
    assert third.run == second.run


def test_an_index_of_another_embedder_is_refused(write: Write, tmp_path: Path) -> None:
    data = write([0, 7], ["find 7"], {"find 7": {"p7": 1}})
    other = dataclasses.replace(IDENTITY, revision="sha256:11")
    with create_index(tmp_path / "i", other) as index, pytest.raises(EmbedderMismatchError, match="revision"):
        measure_embedder(SignEmbedder(), data, index=index)


def test_what_cannot_be_embedded_stops_the_measurement_by_name(write: Write) -> None:
    judged = {"find 0": {"p0": 1}}
    with pytest.raises(EmbeddingError, match="1 of 2 pages have text and no image, such as 't0'"):
        measure_embedder(SignEmbedder(), write([0], ["find 0"], judged, texts=1))
    with pytest.raises(EmbeddingError, match="page 'p13' cannot be embedded: page 13 is damaged"):
        measure_embedder(CountingEmbedder(), write([0, 13], ["find 0"], judged))
    with pytest.raises(EmbeddingError, match="query 'empty' cannot be embedded: a question is empty"):
        measure_embedder(SignEmbedder(), write([0], ["find 0", ""], {**judged, "empty": {"p0": 1}}))


@pytest.mark.parametrize("mode,mean", [("official", 0.5), ("strict", 1 / 3)])
def test_what_was_skipped_counts_as_not_found(write: Write, mode, mean: float) -> None:
    # "find 0" finds p0; "find 13" wants p13, which was left out: 0. The empty query counts in strict mode alone.
    judged = {"find 0": {"p0": 1}, "find 13": {"p13": 1}, "empty": {"p0": 1}}
    data = write([0, 13], ["find 0", "find 13", ""], judged, texts=1)
    found = measure_embedder(CountingEmbedder(), data, on_bad_item="skip", mode=mode)
    assert found.values["mrr@10"] == pytest.approx(mean)
    assert found.num_pages == 1
    assert found.refused_pages == {
        "t0": "it has text and no image, and the embedder reads images",
        **{"p13": "page 13 is damaged"},
    }
    assert found.refused_queries == {"empty": "a question is empty"}
    assert found.missing_queries == ("empty",)


def test_nothing_to_measure_is_refused(write: Write) -> None:
    for data, what in (
        (write([], [], {}), "page"),
        (write([0], [], {}), "query"),
        (write([0], ["find 0"], {}), "judgement"),
    ):
        with pytest.raises(DataError, match=f"no {what}"):
            measure_embedder(SignEmbedder(), data)
    data = write([], ["find 0"], {"find 0": {"t0": 1}}, texts=2)
    with pytest.raises(EmbeddingError, match="none of"):
        measure_embedder(SignEmbedder(), data, on_bad_item="skip")
    with pytest.raises(ValueError, match="k=0"):
        measure_embedder(SignEmbedder(), data, k=0)
