"""Pages as the features that the engine's own vision tower would compute, taken from the store of the trainer."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from rsgrpo.config import Config
from rsgrpo.model.folder import load_processor
from rsgrpo.model.setup import load_vision_tower, open_image_features
from rsgrpo.model.vlm import PromptEncoder
from rsgrpo.types import ImageRef


class ImageEmbeds:
    """A frozen tower beside the engine, and the store: whoever meets a page first computes it for all.

    Args:
        config: the run's settings.
        model_folder: the folder of the model whose vision tower is used; it is the same in every stage.
        features_folder: the folder of the feature store.
        device: ``cpu`` or ``gpu``.
    """

    def __init__(self, config: Config, model_folder: Path, features_folder: Path, device: str) -> None:
        place = torch.device("cuda", 0) if device == "gpu" else torch.device("cpu")
        processor = load_processor(model_folder)
        tower = load_vision_tower(model_folder, config.model, place)
        self._features = open_image_features(tower, config, features_folder, processor, place)
        self._encoder = PromptEncoder(
            processor,
            rules=config.data.image_rules,
            max_prompt_tokens=config.data.max_prompt_tokens,
            stored_grid=self._features.grid,
        )

    def of(self, refs: Sequence[ImageRef]) -> dict[str, Tensor]:
        """What stands for a prompt's pages in ``multi_modal_data``.

        Args:
            refs: the images in the prompt's order, at least one.

        Returns:
            ``image_embeds``, [tokens of all pages, H] in the tower's precision, and ``image_grid_thw``, [pages, 3]
            int64, both on the CPU.
        """
        known = self._encoder.images(refs)
        images = [known[ref] for ref in refs]
        features = [
            self._features.features(image.ref, image.grid, partial(self._encoder.pixels, image)) for image in images
        ]
        return {
            "image_embeds": torch.cat(features).cpu(),
            "image_grid_thw": torch.tensor([image.grid for image in images]),
        }
