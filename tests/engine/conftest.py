"""What several engine tests start from; a module with other needs defines its own of the same name."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from rsgrpo.types import TrainingGroup
from tests.engine.worlds import Worlds, started_worlds
from tests.tiny_model import build_tiny_model, three_groups


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model, its head tied to the embedding."""
    return build_tiny_model(tmp_path_factory.mktemp("model"), tie=True)


@pytest.fixture(scope="module")
def groups(tmp_path_factory: pytest.TempPathFactory) -> list[TrainingGroup]:
    """Groups with several images, with one, and with none."""
    return three_groups(tmp_path_factory.mktemp("pages"))


@pytest.fixture(scope="module")
def worlds(folder: Path) -> Iterator[Worlds]:
    """Ranks that tests rebuild with settings of their own."""
    with started_worlds(folder) as started:
        yield started
