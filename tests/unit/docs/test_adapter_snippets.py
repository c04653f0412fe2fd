"""The retrievers of docs/adapters.md, run against the real libraries over a real index of two pages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from recipes.indexing.index_command import main as index_documents
from tests.unit.docs.shell_blocks import REPOSITORY, split_page
from tests.unit.evaluation.retrieval_data import COLOURS, ColourEmbedder


@pytest.fixture
def namespace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The first example of the page, over an index of a red and a green picture."""
    for colour in ("red", "green"):
        page = Image.new("RGB", (56, 56), COLOURS[colour])
        page.putpixel((0, 0), (0, 0, 0))  # one colour alone would be a blank page, which is not indexed
        page.save(tmp_path / f"{colour}.png")
    arguments = [str(tmp_path / "red.png"), str(tmp_path / "green.png"), "--out", str(tmp_path / "manuals.index")]
    (tmp_path / "colours").mkdir()
    assert (
        index_documents([*arguments, "--embedder", str(tmp_path / "colours")], make_embedder=lambda _: ColourEmbedder())
        == 0
    )
    monkeypatch.setattr("recipes.indexing.places.make_any_embedder", lambda _: ColourEmbedder())
    monkeypatch.chdir(tmp_path)
    found: dict[str, Any] = {"__name__": "example"}
    exec(_example("IndexConfig"), found)
    return found


def _example(needle: str) -> str:
    blocks = [block.text for block in split_page(REPOSITORY / "docs/adapters.md")[0] if block.language == "python"]
    (block,) = [block for block in blocks if needle in block]
    return block


def test_langchain_finds_pages(namespace: dict[str, Any]) -> None:
    exec(_example("langchain_core"), namespace)
    first, second = namespace["retriever"].invoke("green")
    assert (first.id, first.metadata["document"], first.metadata["page"]) == ("green.png#1", "green.png", 1)
    assert first.metadata["score"] == pytest.approx(1.0, abs=1e-2)
    assert second.metadata["score"] < 0.5
    assert Path(first.metadata["image"]).is_file()


def test_haystack_finds_pages_in_a_pipeline(namespace: dict[str, Any]) -> None:
    haystack = pytest.importorskip("haystack")
    exec(_example("from haystack"), namespace)
    pipeline = haystack.Pipeline()
    pipeline.add_component("pages", namespace["PageRetriever"](k=1))
    (found,) = pipeline.run({"pages": {"query": "red"}})["pages"]["documents"]
    assert (found.id, found.meta["page"]) == ("red.png#1", 1)
    assert found.score == pytest.approx(1.0, abs=1e-2)


def test_llama_index_finds_pages(namespace: dict[str, Any]) -> None:
    pytest.importorskip("llama_index.core", reason="LlamaIndex is not installed beside vLLM")
    exec(_example("llama_index"), namespace)
    (found,) = namespace["PageRetriever"](k=1).retrieve("red")
    assert (found.node.id_, found.node.metadata["page"]) == ("red.png#1", 1)
