"""Settings as ``train.py`` gets them."""

from __future__ import annotations

import functools
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from rsgrpo.config import Config, load_config, register_schema

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
RECIPES = sorted(path.stem for path in (CONFIGS / "recipe").glob("*.yaml"))
ALGORITHMS = sorted(path.stem for path in (CONFIGS / "algorithm").glob("*.yaml"))


@functools.cache
def composed(*overrides: str) -> Config:
    """Composed, checked and built, once for each set of overrides: nobody changes what comes back.

    Args:
        overrides: as on the command line, such as ``recipe=quickstart``.
    """
    GlobalHydra.instance().clear()
    register_schema()
    with initialize_config_dir(str(CONFIGS), version_base=None):
        return load_config(compose("config", overrides=list(overrides)))
