"""Embedders of sentence-transformers on a small random Qwen2.5-VL: what a vector is, and that batches do not matter."""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from tokenizers import AddedToken
from transformers.utils import logging as transformers_logging

from rsgrpo.config.embedder import VISRAG_INSTRUCTION, EmbedderConfig
from rsgrpo.config.image_rules import ImageRules
from rsgrpo.data.images.loading import load_image
from rsgrpo.retrieval.embedders.embedder import EmbeddingError
from rsgrpo.retrieval.embedders.sentence_embedder import SentenceEmbedder
from tests.tiny_model import build_tiny_model, write_images

SIZES = [(56, 56), (84, 56), (112, 140), (56, 56), (140, 140), (28, 84), (196, 112)]
QUERIES = ["Who signed?", "What is the total of all invoices in March?", "x", "中文问题", "Wer hat es unterschrieben?"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_model(tmp_path_factory.mktemp("embedder") / "plain")


@pytest.fixture(scope="module")
def saved(folder: Path) -> Path:
    """The same model as sentence-transformers saves it, with prompts of its own."""
    reader = Transformer(str(folder))
    pooling = Pooling(reader.get_embedding_dimension(), "lasttoken")
    model = SentenceTransformer(modules=[reader, pooling, Normalize()], prompts={"query": "Find the page."})
    model.save(str(folder.parent / "saved"))
    return folder.parent / "saved"


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory):
    return write_images(tmp_path_factory.mktemp("pages"), SIZES)


@pytest.fixture(scope="module")
def visrag(folder: Path) -> SentenceEmbedder:
    return SentenceEmbedder(EmbedderConfig(model=str(folder), preset="visrag"))


def hidden_states(embedder: SentenceEmbedder, item: object) -> np.ndarray:
    """Compute the hidden states of one item alone, [tokens, hidden], by the model's own processor and forward pass."""
    model = embedder._model
    features = model.preprocess([item])
    with torch.no_grad():
        states = model[0](features)["token_embeddings"]
    return states[0].double().numpy()


def weighted_mean(states: np.ndarray) -> np.ndarray:
    """Compute VisRAG's formula in float64: weights 1, 2, 3, … over the tokens, then length 1."""
    weights = np.arange(1, len(states) + 1)[:, None]
    mean = (weights * states).sum(axis=0) / weights.sum()
    return mean / np.linalg.norm(mean)


def test_visrag_is_the_weighted_mean_with_the_instruction_in_the_text(visrag, pages) -> None:
    vectors = visrag.embed_pages(pages)
    for page, vector in zip(pages, vectors, strict=True):
        image = load_image(page, ImageRules(max_pixels=1_568_000))
        np.testing.assert_allclose(vector, weighted_mean(hidden_states(visrag, image)), atol=2e-6)
    for query, vector in zip(QUERIES, visrag.embed_queries(QUERIES), strict=True):
        states = hidden_states(visrag, "Represent this query for retrieving relevant documents: " + query)
        np.testing.assert_allclose(vector, weighted_mean(states), atol=2e-6)


def test_pooling_agrees_with_the_original_functions(visrag, parity) -> None:
    # The vectors of VisRAG's own code: no padding, right padding, left padding.
    (cast, pooling) = visrag._model[1], visrag._model[2]
    vectors = json.loads((Path(__file__).parents[2] / "data" / "parity" / "visrag_numeric.json").read_text())["pooling"]
    assert len(vectors) == 3
    for vector in vectors:
        features = {
            "token_embeddings": torch.tensor(vector["hidden"]),
            "attention_mask": torch.tensor(vector["attention_mask"]),
        }
        pooled = pooling(cast(features))["sentence_embedding"]
        np.testing.assert_allclose(pooled.numpy(), vector["pooled"], atol=1e-6)
        normalised = torch.nn.functional.normalize(pooled, dim=1)
        np.testing.assert_allclose(normalised.numpy(), vector["normalized"], atol=1e-6)


def test_last_token_is_the_last_state(folder: Path, pages) -> None:
    embedder = SentenceEmbedder(EmbedderConfig(model=str(folder), preset="last_token"))
    assert embedder.identity.query_instruction == ""
    vector = embedder.embed_queries(["Who signed?"])[0]
    last = hidden_states(embedder, "Who signed?")[-1]
    np.testing.assert_allclose(vector, last / np.linalg.norm(last), atol=2e-6)


@pytest.mark.parametrize("batch_tokens", [1, 150, 100_000])
def test_vectors_depend_neither_on_batches_nor_on_order(folder: Path, visrag, pages, batch_tokens: int) -> None:
    embedder = SentenceEmbedder(EmbedderConfig(model=str(folder), preset="visrag", batch_tokens=batch_tokens))
    alone = np.concatenate([visrag.embed_pages([page]) for page in pages])
    np.testing.assert_allclose(embedder.embed_pages(pages), alone, atol=1e-5)
    np.testing.assert_allclose(embedder.embed_pages(pages[::-1]), alone[::-1], atol=1e-5)
    alone = np.concatenate([visrag.embed_queries([query]) for query in QUERIES])
    np.testing.assert_allclose(embedder.embed_queries(QUERIES), alone, atol=1e-5)
    np.testing.assert_allclose(embedder.embed_queries(QUERIES[::-1]), alone[::-1], atol=1e-5)


def test_vectors_are_float32_of_length_1_and_none_for_nothing(visrag, pages) -> None:
    for vectors in (visrag.embed_pages(pages), visrag.embed_queries(QUERIES)):
        assert vectors.dtype == np.float32 and vectors.shape[1] == visrag.identity.dimension == 32
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-6)
    assert visrag.embed_pages([]).shape == visrag.embed_queries([]).shape == (0, 32)


def test_open_images_are_read_as_their_files_are(visrag, pages) -> None:
    images = [Image.open(page.file) for page in pages]
    np.testing.assert_allclose(visrag.embed_pages(images), visrag.embed_pages(pages), atol=1e-6)


def test_max_pixels_bounds_files_and_open_images(folder: Path, pages) -> None:
    embedder = SentenceEmbedder(EmbedderConfig(model=str(folder), preset="visrag", max_pixels=56 * 56))
    large = pages[4:5]
    small = load_image(large[0], ImageRules(max_pixels=56 * 56))
    expected = weighted_mean(hidden_states(embedder, small))
    assert small.size == (56, 56)
    np.testing.assert_allclose(embedder.embed_pages(large)[0], expected, atol=2e-6)
    np.testing.assert_allclose(embedder.embed_pages([Image.open(large[0].file)])[0], expected, atol=2e-6)


def test_a_saved_model_brings_its_pooling_and_its_prompts(saved: Path, pages) -> None:
    embedder = SentenceEmbedder(EmbedderConfig(model=str(saved)))
    identity = embedder.identity
    assert (identity.pooling, identity.query_instruction, identity.instruction_place) == (
        "lasttoken",
        "Find the page.",
        "prompt",
    )
    plain = SentenceTransformer(str(saved))
    np.testing.assert_allclose(embedder.embed_queries(QUERIES), plain.encode_query(QUERIES), atol=1e-6)
    images = [Image.open(page.file) for page in pages]
    np.testing.assert_allclose(embedder.embed_pages(pages), plain.encode_document(images), atol=1e-6)
    other = SentenceEmbedder(EmbedderConfig(model=str(saved), query_instruction="Look for it."))
    np.testing.assert_allclose(
        other.embed_queries(QUERIES), plain.encode_query(QUERIES, prompt="Look for it."), atol=1e-6
    )


def test_a_shorter_dimension_keeps_the_first_entries_at_length_1(folder: Path, visrag, pages) -> None:
    short = SentenceEmbedder(EmbedderConfig(model=str(folder), preset="visrag", dimension=8)).embed_pages(pages)
    first = visrag.embed_pages(pages)[:, :8]
    np.testing.assert_allclose(short, first / np.linalg.norm(first, axis=1, keepdims=True), atol=1e-6)


def test_identity_follows_weights_and_settings_and_not_the_place(folder: Path, visrag, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    config = EmbedderConfig(model=str(copy), preset="visrag")
    assert visrag.identity.differences(SentenceEmbedder(config).identity) == []
    assert visrag.identity.query_instruction == VISRAG_INSTRUCTION
    changed = SentenceEmbedder(dataclasses.replace(config, preset="last_token", max_pixels=9000, dpi=150)).identity
    assert [difference.partition(":")[0] for difference in visrag.identity.differences(changed)] == [
        "pooling",
        "query_instruction",
        "max_pixels",
        "dpi",
    ]
    weights = copy / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    (found,) = visrag.identity.differences(SentenceEmbedder(config).identity)
    assert found.startswith("revision: 'sha256:")


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("", r"question 2 \(''\) is empty"),
        (" \n\t", r"question 2 .* is empty"),
        ("what is <|image_pad|>?", r"contains <\|image_pad\|>, which means something else than text"),
    ],
)
def test_questions_that_say_nothing_are_refused(visrag, query: str, message: str) -> None:
    with pytest.raises(EmbeddingError, match=message):
        visrag.embed_queries(["fine", query])


def test_a_question_in_a_script_that_the_tokenizer_does_not_know_is_refused(visrag, monkeypatch) -> None:
    class OneScript:
        """A tokenizer of lower-case letters and the blank."""

        unk_token_id = 0
        added_tokens_decoder = MappingProxyType({0: AddedToken("[UNK]", special=True)})

        def __call__(self, text: str, **_: object) -> dict[str, list[int]]:
            return {"input_ids": [ord(letter) if letter in " abc" else 0 for letter in text]}

        def decode(self, ids: list[int]) -> str:
            return "".join(chr(letter) if letter else "[UNK]" for letter in ids)

    monkeypatch.setattr(type(visrag._model), "tokenizer", property(lambda _: OneScript()))
    with pytest.raises(EmbeddingError, match=r"question 1 .* has no character that the model's tokenizer knows"):
        visrag._inputs.query_tokens("ქართული", "question 1 ('ქართული')")
    with pytest.raises(EmbeddingError, match=r"question 2 .* has no character that the model's tokenizer knows"):
        visrag._inputs.query_tokens(" ქართული ენა", "question 2 ('ქართული')")  # the blanks alone are known
    assert visrag._inputs.query_tokens("a ქ", "question 1") > 0


def test_lone_surrogates_do_not_stop_a_question(visrag) -> None:
    np.testing.assert_allclose(visrag.embed_queries(["a\ud83d"]), visrag.embed_queries(["a\ufffd"]), atol=1e-6)


def test_a_page_that_gives_no_finite_vector_is_named(folder: Path, pages, monkeypatch) -> None:
    embedder = SentenceEmbedder(EmbedderConfig(model=str(folder), preset="visrag", batch_tokens=1))
    encode = embedder._model.encode_document

    def broken(images, **arguments):
        vectors = encode(images, **arguments)
        return vectors * (np.nan if images[0].size == (112, 140) else 1.0)

    monkeypatch.setattr(embedder._model, "encode_document", broken)
    with pytest.raises(EmbeddingError, match=r"the vector of page 'imgs/2.png' is not finite"):
        embedder.embed_pages(pages)


def test_a_page_longer_than_the_model_reads_is_named(folder: Path, pages) -> None:
    embedder = SentenceEmbedder(EmbedderConfig(model=str(folder), preset="visrag"))
    embedder._model[0].max_seq_length = 60  # 140 × 140 pixels are 25 tokens, and 48 are kept for the template
    with pytest.raises(EmbeddingError, match=r"page 'imgs/4.png' is 140×140 pixels and takes about 73 tokens"):
        embedder.embed_pages(pages[4:])


def test_a_question_longer_than_the_model_reads_is_refused(folder: Path) -> None:
    embedder = SentenceEmbedder(EmbedderConfig(model=str(folder), preset="last_token"))
    embedder._model[0].max_seq_length = 100
    embedder.embed_queries(["a"])
    with pytest.raises(EmbeddingError, match=r"question 2 .* tokens with its instruction, and the model reads 100"):
        embedder.embed_queries(["a", "a " * 200])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"preset": "auto"}, "has no modules.json: it is no model of sentence-transformers"),
        ({"dimension": 33}, "embedder.dimension=33 is more than the 32 of the model"),
        ({"model": "no/such/place/at/all"}, "neither a folder nor a model that the hub gives"),
    ],
)
def test_models_that_cannot_serve_are_refused(folder: Path, changes: dict[str, Any], message: str) -> None:
    config = dataclasses.replace(EmbedderConfig(model=str(folder), preset="visrag"), **changes)
    with pytest.raises(EmbeddingError, match=message):
        SentenceEmbedder(config)


def test_settings_make_the_same_embedder_from_any_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    embedder = SentenceEmbedder(EmbedderConfig(model=folder.name, preset="visrag"))
    assert embedder.settings == EmbedderConfig(model=str(folder.resolve()), preset="visrag")


@pytest.mark.parametrize("is_disabled", [False, True])  # as after hydra has configured logging
@pytest.mark.parametrize(("preset", "verbosity"), [("auto", logging.WARNING), ("last_token", logging.ERROR)])
def test_a_folder_that_lacks_a_weight_is_refused(
    saved: Path,
    tmp_path: Path,
    preset: Literal["auto", "last_token"],
    verbosity: int,
    is_disabled: bool,
    capfd,
    request,
    monkeypatch,
) -> None:
    # transformers would draw it at random, and every vector would be wrong
    copy = shutil.copytree(saved, tmp_path / "copy")
    tensors = load_file(copy / "model.safetensors")
    name = next(name for name in tensors if "layers.1.mlp.up_proj" in name)
    save_file({other: tensor for other, tensor in tensors.items() if other != name}, copy / "model.safetensors")
    caller = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity(verbosity)
    request.addfinalizer(lambda: transformers_logging.set_verbosity(caller))
    monkeypatch.setattr(logging.getLogger("transformers.modeling_utils"), "disabled", is_disabled)
    with pytest.raises(EmbeddingError, match=r"lacks weights of the embedder: \S*mlp.up_proj.weight"):
        SentenceEmbedder(EmbedderConfig(model=str(copy), preset=preset))
    capfd.readouterr()
    SentenceEmbedder(EmbedderConfig(model=str(saved), preset=preset))
    told = capfd.readouterr().err
    assert "LOAD REPORT" not in told and "sharded" not in told


def test_adapters_alone_are_no_embedder(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "adapter_config.json").write_text("{}")
    with pytest.raises(EmbeddingError, match="holds adapters, whose base model lies elsewhere"):
        SentenceEmbedder(EmbedderConfig(model=str(copy), preset="visrag"))


def test_a_preset_does_not_override_what_a_model_was_saved_with(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(EmbeddingError, match=r"with the pooling lasttoken, embedder.preset=visrag is weightedmean"):
        SentenceEmbedder(EmbedderConfig(model=str(saved), preset="visrag"))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(EmbeddingError, match="cannot be loaded"):
        SentenceEmbedder(EmbedderConfig(model=str(tmp_path), preset="visrag"))
