"""A folder for documents, and an empty store of pages whose workers are this process."""

from __future__ import annotations

from pathlib import Path

import pytest

from rsgrpo.config.documents import RenderSettings
from rsgrpo.documents.page_store import PageStore
from tests.unit.documents.in_process_pool import in_process


@pytest.fixture
def files(tmp_path: Path) -> Path:
    folder = tmp_path / "files"
    folder.mkdir()
    return folder


@pytest.fixture
def store(tmp_path: Path) -> PageStore:
    return in_process(PageStore.open(tmp_path / "store", RenderSettings()))
