"""Switches a running engine between pixels and stored features; runs inside its worker."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rollout.image_embeds import ImageEmbeds
from rsgrpo.config import Config


def feed_pixels(worker: Any) -> None:
    worker._engine._embeds = None


def feed_features(worker: Any, config: Config, model_folder: Path, features_folder: Path) -> None:
    worker._engine._embeds = ImageEmbeds(config, model_folder, features_folder, "cpu")
