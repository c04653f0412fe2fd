"""Multi-vector embedders on small random models: which tokens count, and that batches and names behave as elsewhere."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sentence_transformers import MultiVectorEncoder, SentenceTransformer
from transformers import ColQwen2ForRetrieval, ColQwen2Processor

from rsgrpo.config.checks import ConfigError
from rsgrpo.config.embedder import EmbedderConfig
from rsgrpo.retrieval.embedders.embedder import EmbedderMismatchError, EmbeddingError, checked_vector_sets
from rsgrpo.retrieval.embedders.multi_vector_embedder import SentenceMultiVectorEmbedder
from rsgrpo.retrieval.embedders.sentence_embedder import SentenceEmbedder
from tests.tiny_model import build_tiny_model, write_images
from tests.unit.retrieval.index_pages import sign_vectors
from tests.unit.retrieval.multi_vector_models import DIMENSION, build_colqwen, build_encoder

SIZES = [(56, 56), (84, 56), (112, 140), (56, 56), (140, 140)]
NUM_PATCHES = [4, 6, 20, 4, 25]  # of 28 × 28 pixels each
QUERIES = ["Who signed?", "What is the total of all invoices in March?", "x", "中文问题"]


@pytest.fixture(scope="module")
def plain_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_model(tmp_path_factory.mktemp("multi") / "plain")


@pytest.fixture(scope="module")
def saved_folder(plain_folder: Path) -> Path:
    return build_encoder(plain_folder, plain_folder.parent / "saved")


@pytest.fixture(scope="module")
def saved(saved_folder: Path) -> SentenceMultiVectorEmbedder:
    return embedder_of(saved_folder)


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory):
    return write_images(tmp_path_factory.mktemp("pages"), SIZES)


def embedder_of(folder: Path, **changes: Any) -> SentenceMultiVectorEmbedder:
    return SentenceMultiVectorEmbedder(EmbedderConfig(model=str(folder), preset="multi_vector", **changes))


def assert_equal(found: list[np.ndarray], expected: list[Any], atol: float = 1e-5) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == np.float32
        np.testing.assert_allclose(one, np.asarray(other), atol=atol)
        np.testing.assert_allclose(np.linalg.norm(one, axis=1), 1.0, atol=1e-6)


def test_a_saved_model_brings_its_projection_its_mask_and_its_prompt(saved, saved_folder: Path, pages) -> None:
    alone = MultiVectorEncoder(str(saved_folder))
    found = saved.embed_pages(pages)
    assert [vectors.shape for vectors in found] == [(num, DIMENSION) for num in NUM_PATCHES]
    assert_equal(found, alone.encode_document([Image.open(page.file) for page in pages], convert_to_numpy=True))
    assert_equal(saved.embed_queries(QUERIES), alone.encode_query(QUERIES, convert_to_numpy=True))
    identity = saved.identity
    assert (identity.is_multi_vector, identity.query_instruction, identity.dimension) == (True, "Find the page.", 16)


@pytest.mark.parametrize("batch_tokens", [1, 150])
def test_vectors_depend_neither_on_batches_nor_on_order(saved, saved_folder: Path, pages, batch_tokens: int) -> None:
    embedder = embedder_of(saved_folder, batch_tokens=batch_tokens)
    assert_equal(embedder.embed_pages(pages[::-1]), saved.embed_pages(pages)[::-1])
    assert_equal(embedder.embed_queries(QUERIES[::-1]), saved.embed_queries(QUERIES)[::-1])
    assert saved.embed_pages([]) == saved.embed_queries([]) == []


def test_a_plain_model_counts_image_tokens_and_what_follows_the_template(plain_folder: Path, pages) -> None:
    embedder = embedder_of(plain_folder)
    model = embedder._model
    for page, vectors in zip(pages, embedder.embed_pages(pages), strict=True):
        features = model.preprocess([Image.open(page.file)])
        with torch.no_grad():
            states = model[0](features)["token_embeddings"][0]
        patches = states[features["input_ids"][0] == model.tokenizer.convert_tokens_to_ids("<|image_pad|>")]
        assert_equal([vectors], [torch.nn.functional.normalize(patches, dim=1).numpy()])
    # One token a byte; behind the question stand <|im_end|> and a line break.
    assert [len(vectors) for vectors in embedder.embed_queries(QUERIES)] == [
        len(query.encode()) + 2 for query in QUERIES
    ]
    assert embedder.identity.pooling == "image_tokens"


def test_colqwen_gives_what_transformers_alone_gives(tmp_path: Path, pages) -> None:
    folder = build_colqwen(tmp_path / "colqwen")
    embedder = embedder_of(folder)
    processor, model = ColQwen2Processor.from_pretrained(folder), ColQwen2ForRetrieval.from_pretrained(folder).eval()
    with torch.no_grad():
        of_pages = [model(**processor(images=[Image.open(page.file)])).embeddings[0] for page in pages]
        of_queries = [model(**processor(text=[query])).embeddings[0] for query in QUERIES]
    assert_equal(embedder.embed_pages(pages), of_pages)
    assert_equal(embedder.embed_queries(QUERIES), of_queries)


def test_pool_factor_groups_the_vectors_of_pages_only(saved, saved_folder: Path, pages) -> None:
    embedder = embedder_of(saved_folder, pool_factor=3)
    found = embedder.embed_pages(pages)
    assert [len(vectors) for vectors in found] == [num // 3 for num in NUM_PATCHES]
    for vectors, whole in zip(found, saved.embed_pages(pages), strict=True):
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-6)
        # a mean of normalised vectors lies in their cone: each of the whole is near the one of its group
        assert (whole @ vectors.T).max(axis=1).min() > 0
    assert_equal(embedder.embed_queries(QUERIES), saved.embed_queries(QUERIES))
    (difference,) = saved.identity.differences(embedder.identity)
    assert difference == "pool_factor: 1, not 3"
    (alone,) = embedder.embed_pages(pages[2:3])
    assert_equal([found[2]], [alone])


def test_a_shorter_dimension_keeps_the_first_entries_at_length_1(saved, saved_folder: Path, pages) -> None:
    first = [vectors[:, :8] for vectors in saved.embed_pages(pages)]
    expected = [vectors / np.linalg.norm(vectors, axis=1, keepdims=True) for vectors in first]
    assert_equal(embedder_of(saved_folder, dimension=8).embed_pages(pages), expected)


def test_single_and_multi_vector_embedders_do_not_meet(plain_folder: Path) -> None:
    single = SentenceEmbedder(EmbedderConfig(model=str(plain_folder), preset="last_token")).identity
    with pytest.raises(EmbedderMismatchError, match=r"pooling: .*; is_multi_vector: False, not True"):
        single.check(embedder_of(plain_folder).identity, "the index")


def test_models_of_the_other_kind_are_refused(plain_folder: Path, saved_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(EmbeddingError, match=r"gives many vectors a page, .*; set embedder.preset=multi_vector"):
        SentenceEmbedder(EmbedderConfig(model=str(saved_folder)))
    SentenceTransformer(str(plain_folder)).save(str(tmp_path / "single"), create_model_card=False)
    with pytest.raises(EmbeddingError, match=r"saved as a SentenceTransformer, which gives one vector a page"):
        embedder_of(tmp_path / "single")
    with pytest.raises(EmbeddingError, match=r"embedder.dimension=17 is more than the 16 of the model"):
        embedder_of(saved_folder, dimension=17)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pool_factor": 0}, r"embedder.pool_factor=0"),
        ({"pool_factor": 3, "preset": "visrag"}, r"embedder.pool_factor=3 is of pages with many vectors"),
        ({"runner": "vllm"}, r"embedder.runner=vllm gives one vector a page"),
    ],
    ids=["no_group", "pooled_single", "vllm"],
)
def test_settings_that_do_not_fit_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(EmbedderConfig(model="m", preset="multi_vector"), **changes)


def test_bad_pages_and_questions_are_named(saved, saved_folder: Path, pages, monkeypatch) -> None:
    with pytest.raises(EmbeddingError, match=r"question 2 \(''\) is empty"):
        saved.embed_queries(["fine", " "])
    embedder = embedder_of(saved_folder, batch_tokens=1, pool_factor=2)
    encode = embedder._model.encode_document

    def broken(images, **arguments):
        return [vectors * (np.nan if images[0].size == (112, 140) else 1.0) for vectors in encode(images, **arguments)]

    monkeypatch.setattr(embedder._model, "encode_document", broken)
    with pytest.raises(EmbeddingError, match=r"the vector of page 'imgs/2.png' \(and of 19 more\) is not finite"):
        embedder.embed_pages(pages)


def test_a_model_that_cuts_questions_refuses_long_ones(saved_folder: Path, monkeypatch) -> None:
    monkeypatch.setattr("rsgrpo.retrieval.embedders.multi_vector_embedder._query_length", lambda _: 30)
    embedder = embedder_of(saved_folder)
    embedder.embed_queries(["short"])  # 14 tokens of the prompt and 5
    with pytest.raises(EmbeddingError, match=r"has 44 tokens with its instruction, and the model reads 30"):
        embedder.embed_queries(["x" * 30])


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        ([sign_vectors([1])], r"vectors of 1 items for 2"),
        ([sign_vectors([1]), sign_vectors([])], r"b has vectors of shape \[0, 4\], expected \[1 or more, 4\]"),
        (list(sign_vectors([1, 2])), r"a has vectors of shape \[4\]"),
        ([sign_vectors([1]), 2 * sign_vectors([1, 2])], r"the vector of b \(and of 1 more\) has length 2"),
    ],
    ids=["too_few", "none", "single", "long"],
)
def test_vectors_that_are_none_are_refused_by_name(vectors, message: str) -> None:
    with pytest.raises(EmbeddingError, match=message):
        checked_vector_sets(vectors, ["a", "b"], dimension=4)
