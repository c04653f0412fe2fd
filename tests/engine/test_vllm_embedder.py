"""Embedders on vLLM's pooling runner give the vectors of sentence-transformers, so that an index takes either."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling

from rsgrpo.cluster.environments import pooling_environment
from rsgrpo.config.embedder import EmbedderConfig
from rsgrpo.retrieval.embedders.embedder import EmbedderIdentity
from rsgrpo.retrieval.embedders.sentence_embedder import SentenceEmbedder
from tests.tiny_model import build_tiny_model, write_images

pytestmark = pytest.mark.engine

SIZES = [(56, 56), (112, 140), (84, 56)]
QUERIES = ["Who signed?", "What is the total of all invoices in March?"]

# Importing vLLM takes longer than an engine; both engines live in one process, which is left with all that they took.
# Compiling takes longer than all else that an engine does here, and is vLLM's.
_EMBED = """
import functools, gc, pickle, sys
import rollout.pooling_engine
from rollout.vllm_embedder import VllmEmbedder
rollout.pooling_engine.LLM = functools.partial(rollout.pooling_engine.LLM, enforce_eager=True)
configs, pages, queries = pickle.loads(sys.stdin.buffer.read())
found = []
for config in configs:
    embedder = VllmEmbedder(config)
    found.append((embedder.identity, embedder.embed_pages(pages), embedder.embed_queries(queries)))
    del embedder
    gc.collect()
with open(sys.argv[1], "wb") as file:
    pickle.dump(found, file)
"""


def of_vllm(configs: list[EmbedderConfig], pages: list[Any], folder: Path) -> list[tuple[EmbedderIdentity, Any, Any]]:
    """Embed pages and questions in another process."""
    ended = subprocess.run(
        [sys.executable, "-c", _EMBED, str(folder / "vectors")],
        input=pickle.dumps((configs, pages, QUERIES)),
        capture_output=True,
        env={**os.environ, **pooling_environment("cpu"), "CUDA_VISIBLE_DEVICES": ""},
    )
    assert ended.returncode == 0, ended.stderr.decode()[-3000:]
    found: list[tuple[EmbedderIdentity, Any, Any]] = pickle.loads((folder / "vectors").read_bytes())
    return found


def test_vllm_gives_the_vectors_of_sentence_transformers(tmp_path: Path) -> None:
    # Its attention on a CPU takes heads of 32 numbers, none of 16.
    folder = build_tiny_model(tmp_path / "model", hidden=128)
    reader = Transformer(str(folder))
    pooling = Pooling(reader.get_embedding_dimension(), "lasttoken")
    model = SentenceTransformer(
        modules=[reader, pooling, Normalize()], prompts={"query": "Find the page.", "document": "A page."}
    )
    model.save(str(tmp_path / "saved"), create_model_card=False)
    configs = [
        EmbedderConfig(model=str(folder), preset="visrag", batch_tokens=2048),
        EmbedderConfig(model=str(tmp_path / "saved"), batch_tokens=2048),
    ]
    pages = write_images(tmp_path / "pages", SIZES)
    for config, found in zip(configs, of_vllm(configs, pages, tmp_path), strict=True):
        identity, page_vectors, query_vectors = found
        expected = SentenceEmbedder(config)
        assert identity == expected.identity
        np.testing.assert_allclose(page_vectors, expected.embed_pages(pages), atol=1e-5)
        np.testing.assert_allclose(query_vectors, expected.embed_queries(QUERIES), atol=1e-5)
