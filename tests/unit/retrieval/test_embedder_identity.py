"""Which vectors may meet: only those of one embedder, field by field; and what a vector must be."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rsgrpo.config.checks import ConfigError
from rsgrpo.config.embedder import EmbedderConfig
from rsgrpo.config.index import IndexConfig
from rsgrpo.retrieval.embedders.embedder import (
    EmbedderMismatchError,
    checked_vectors,
    normalised,
    weights_digest,
)
from rsgrpo.retrieval.embedders.padded_batches import padded_batches
from rsgrpo.retrieval.index.flat_index import create_index, open_index
from rsgrpo.retrieval.index.page_index import IndexedPage, PageFilter, PageIndexError, add_pages, find_pages
from tests.unit.retrieval.index_pages import DIMENSION, IDENTITY, SignEmbedder, make_page, sign_vector

NO_PRESET: dict[str, Any] = {"preset": "mean"}
OTHER: dict[str, Any] = {
    "revision": "sha256:01",
    "pooling": "weightedmean",
    "query_instruction": "Find: ",
    "instruction_place": "prompt",
    "min_pixels": 1,
    "max_pixels": 1001,
    "dpi": 150,
    "dimension": 8,
    "is_normalised": False,
    "is_multi_vector": True,
    "pool_factor": 3,
}


def test_every_field_but_the_model_name_has_another_value_above() -> None:
    assert set(OTHER) == {field.name for field in dataclasses.fields(IDENTITY)} - {"model"}


@pytest.mark.parametrize("name", sorted(OTHER))
def test_an_index_refuses_an_embedder_that_differs_in_one_field(tmp_path: Path, name: str) -> None:
    with create_index(tmp_path / "i", IDENTITY) as index:
        add_pages(index, SignEmbedder(), [dataclasses.replace(make_page(0), image_path="page 5")])
        index.save()
    other = SignEmbedder(dataclasses.replace(IDENTITY, **{name: OTHER[name]}))
    opened = open_index(tmp_path / "i")
    message = (
        rf"the index .* was made by the embedder models/embedder, .*\({name}: [^;]*, not [^;]*\); use the embedder"
    )
    with pytest.raises(EmbedderMismatchError, match=message):
        find_pages(opened, other, ["what 5"], 1)
    with pytest.raises(EmbedderMismatchError, match=message):
        add_pages(opened, other, [make_page(1)])


def test_the_embedder_that_made_an_index_may_have_moved(tmp_path: Path) -> None:
    moved = SignEmbedder(dataclasses.replace(IDENTITY, model="elsewhere"))
    with create_index(tmp_path / "i", IDENTITY) as index:
        pages = [make_page(number) for number in range(3)]
        add_pages(index, SignEmbedder(), [dataclasses.replace(page, image_path="p 5") for page in pages])
        (found,) = find_pages(index, moved, ["what 5"], 2)
        assert [hit.page.page_id for hit in found] == ["doc0.pdf#0", "doc1.pdf#1"]
        assert find_pages(index, moved, [], 2) == []
        with pytest.raises(PageIndexError, match="got 1 images for 3 pages"):
            add_pages(index, moved, pages, [None])  # type: ignore[list-item]


@given(num_tokens=st.lists(st.integers(1, 60), max_size=40), budget=st.integers(1, 100))
def test_padded_batches_hold_every_item_once_within_the_budget(num_tokens: list[int], budget: int) -> None:
    batches = padded_batches(num_tokens, budget)
    assert sorted(item for batch in batches for item in batch) == list(range(len(num_tokens)))
    for batch in batches:
        padded = len(batch) * max(num_tokens[item] for item in batch)
        assert padded <= budget or len(batch) == 1
    # A batch ends only where its next item would not fit.
    for batch, following in itertools.pairwise(batches):
        assert (len(batch) + 1) * num_tokens[batch[0]] > budget
        assert num_tokens[batch[-1]] >= num_tokens[following[0]]


def test_the_example_of_padded_batches() -> None:
    assert padded_batches([3, 10, 4, 3], 10) == [[1], [2, 0], [3]]


def test_normalised_vectors_are_checked_ones() -> None:
    rng = np.random.default_rng(0)
    vectors = normalised(rng.standard_normal((5, DIMENSION)).astype(np.float32) * 1e30)
    assert checked_vectors(vectors, list("abcde"), dimension=DIMENSION) is vectors
    with pytest.raises(ValueError, match="the vector of a is not finite"):
        checked_vectors(normalised(np.zeros((1, DIMENSION))), ["a"], dimension=DIMENSION)
    half = sign_vector(3).astype(np.float16)[None]
    assert checked_vectors(half, ["a"], dimension=DIMENSION).dtype == np.float32


def test_a_digest_follows_content_and_names_but_not_what_training_leaves(tmp_path: Path) -> None:
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    before = weights_digest(tmp_path)
    (tmp_path / "README.md").write_text("x")
    (tmp_path / "checkpoint-10").mkdir()
    (tmp_path / "checkpoint-10" / "model.safetensors").write_bytes(b"older")
    (tmp_path / "trainer_state.json").write_text("{}")
    assert weights_digest(tmp_path) == before
    (tmp_path / "1_Pooling" / "config.json").write_text("[]")
    assert weights_digest(tmp_path) != before


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: IndexedPage(page_id="", document="d", page_number=1), "a page needs an id and a document"),
        (
            lambda: IndexedPage(page_id="a", document="d", page_number=0),
            "page 'a' has the number 0; pages count from 1",
        ),
        (lambda: IndexedPage(page_id="a", document="d", page_number=1, date="1.2.26"), "no date; write YYYY-MM-DD"),
        (
            lambda: IndexedPage(page_id="a", document="\udcff.pdf", page_number=1),
            r"page 'a' has a document that is no UTF-8 text \('\\udcff.pdf'\); rename the file",
        ),
        (lambda: PageFilter(first_date="20260101"), "the filter's first date is '20260101'"),
        (lambda: PageFilter(last_date="2026-02-30"), "the filter's last date"),
    ],
)
def test_pages_and_filters_are_checked_where_they_are_made(make, message: str) -> None:
    with pytest.raises(PageIndexError, match=message):
        make()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: EmbedderConfig(model="m", **NO_PRESET),
            "embedder.preset='mean' is not known; choose one of auto",
        ),
        (lambda: EmbedderConfig(model="m", min_pixels=9, max_pixels=8), "embedder.min_pixels=9 is above"),
        (lambda: EmbedderConfig(model="~/m"), "begins with ~"),
        (lambda: EmbedderConfig(model="m", batch_tokens=0), "embedder.batch_tokens=0 is too small"),
        (lambda: IndexConfig(collection="a b"), "index.collection='a b' is no name"),
        (lambda: IndexConfig(url="localhost:6333"), "index.url='localhost:6333' is no address"),
        (lambda: IndexConfig(num_probes=0), "index.num_probes=0 is too small"),
    ],
)
def test_settings_are_checked(make, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()
