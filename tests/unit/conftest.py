"""Fixtures that several files of unit tests share."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import pytest

from rsgrpo.failures import run_command
from rsgrpo.types import ImageRef

if TYPE_CHECKING:  # hydra, which most tests do without
    from rsgrpo.config import Config


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path):
    """``train.py`` in this process: exit status, standard error, and the settings that the pipeline was given."""
    from hydra.core.global_hydra import GlobalHydra

    from recipes.commands.train import train

    begun: list[Config] = []
    pipeline = ModuleType("recipes.pipeline")
    pipeline.run = begun.append  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "recipes.pipeline", pipeline)

    def called(*arguments: str) -> tuple[int, str, list[Config]]:
        begun.clear()
        monkeypatch.setattr(sys, "argv", sys.argv)  # which the command sets for hydra
        GlobalHydra.instance().clear()
        try:
            status = run_command(lambda: train(arguments, "train.py"), log_folder=lambda: tmp_path)
        except SystemExit as end:  # hydra leaves by itself
            status = int(end.code or 0)
        return status, capfd.readouterr().err, list(begun)

    return called


@pytest.fixture(scope="module")
def keep(tmp_path_factory: pytest.TempPathFactory) -> Callable[[bytes], ImageRef]:
    """Puts bytes into a file; the next ones go over them."""
    file = tmp_path_factory.mktemp("pages") / "page"

    def put(data: bytes) -> ImageRef:
        file.write_bytes(data)
        return ImageRef(path="page", file=str(file))

    return put
