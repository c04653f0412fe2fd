"""How many positions a page takes in a prompt, from its size alone: no pixel is decoded for it."""

from __future__ import annotations

from typing import Protocol

from rsgrpo.config.image_rules import ImageRules
from rsgrpo.data.images.loading import image_size
from rsgrpo.types import ImageRef


class PatchCounter(Protocol):
    """What is needed of a model's image processor."""

    merge_size: int

    def get_number_of_image_patches(self, height: int, width: int, images_kwargs: dict[str, object]) -> int:
        """How many patches an image of this size has."""


class ImageTokens:
    """Counts image tokens.

    Args:
        image_processor: the image processor of the model.
        rules: how pages are read (``DataConfig.image_rules``).
    """

    def __init__(self, image_processor: PatchCounter, rules: ImageRules) -> None:
        self._images = image_processor
        self._rules = rules
        self._of_size: dict[tuple[int, int], int] = {}

    def count(self, ref: ImageRef) -> int:
        """Image tokens of a page.

        Raises:
            ImageError: the page is missing, no image, or has a size that the processor refuses.
        """
        size = image_size(ref, self._rules)
        if size not in self._of_size:
            patches = self._images.get_number_of_image_patches(size[1], size[0], {})
            self._of_size[size] = patches // self._images.merge_size**2
        return self._of_size[size]
