"""``rsgrpo index`` and ``rsgrpo search`` with a real multi-vector model, from image files to the page that is found."""

from __future__ import annotations

from pathlib import Path

import pytest
from qdrant_client import QdrantClient

from recipes.indexing.index_command import main as index_documents
from recipes.indexing.search_command import main as search_index
from rsgrpo.retrieval.index.flat_index import open_index
from tests.tiny_model import build_tiny_model, write_images

pytestmark = pytest.mark.filterwarnings(
    "ignore:Payload indexes have no effect:UserWarning", "ignore:Local mode performs exact:UserWarning"
)

SIZES = [(112, 140), (140, 84)]


def test_pages_with_many_vectors_take_the_same_two_commands(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build_tiny_model(tmp_path / "model")
    write_images(tmp_path / "pages", SIZES)
    folder = str(tmp_path / "i")
    call = [str(tmp_path / "pages"), "--out", folder, "--embedder", str(model), "embedder.preset=multi_vector"]
    assert index_documents([*call, "embedder.pool_factor=2"]) == 0
    index = open_index(Path(folder))
    # 20 and 15 patches of 28 × 28 pixels, two of which become one
    assert sorted(len(of_page) for of_page in index.vectors([page.page_id for page in index.pages()])) == [7, 10]
    capsys.readouterr()
    assert index_documents([*call, "embedder.pool_factor=2"]) == 0
    assert "0 embedded, 2 unchanged" in capsys.readouterr().out
    assert search_index([folder, "Who signed?"]) == 0
    found = capsys.readouterr().out
    assert "0.png" in found and "1.png" in found
    assert index_documents([*call, "embedder.pool_factor=3"]) > 0
    assert "pool_factor: 2, not 3" in capsys.readouterr().err
    client = QdrantClient(":memory:")
    monkeypatch.setattr(client, "close", lambda: None)
    monkeypatch.setattr("rsgrpo.retrieval.index.qdrant_index.connect", lambda config: client)
    place = ["index.url=http://localhost:6333"]
    assert index_documents([*call, "embedder.pool_factor=2", *place]) == 0
    capsys.readouterr()
    assert search_index([folder, "Who signed?", *place]) == 0
    assert capsys.readouterr().out == found
