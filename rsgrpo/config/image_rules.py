"""What decides how a page's file becomes the pixels that a model sees; one record, so that nobody forgets a part."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from PIL import ImageColor

Colour = tuple[int, int, int]

READING_VERSION = 4
"""A number that goes up with every change of what ``rsgrpo.data.images.loading`` makes of a file: features of pages
that were stored before it are then computed again."""

MAX_MEGAPIXELS = 256.0
"""The default of ``data.max_image_megapixels``: 16,000 × 16,000, which takes about 2 GB of memory while it is read."""


def parse_colour(name: str) -> Colour:
    """A colour from its name or from ``#rrggbb``.

    Args:
        name: the colour, such as ``white``, ``#fff`` or ``rgb(255, 250, 240)``.

    Raises:
        ValueError: the text names no colour, or a transparent one.
    """
    found = ImageColor.getrgb(name)
    if len(found) != 3:
        raise ValueError(f"{name!r} is transparent itself")
    return found


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageRules:
    """How pages are read; ``DataConfig.image_rules`` makes it from the settings.

    Attributes:
        min_pixels: the area in pixels that smaller pages are scaled up to; None: no bound.
        max_pixels: the area in pixels that larger pages are scaled down to; None: no bound.
        background: the colour that shows through where a page is transparent, as red, green and blue from 0 to 255.
        max_megapixels: the largest number of megapixels: larger files are refused, as they take too much memory while
            they are read.

    Example:
        ``ImageRules(min_pixels=3136, max_pixels=1568000)``; ``ImageRules()`` leaves every page its own size.
    """

    min_pixels: int | None = None
    max_pixels: int | None = None
    background: Colour = (255, 255, 255)
    max_megapixels: float = MAX_MEGAPIXELS

    def scaled_down(self, max_pixels: int) -> ImageRules:
        """The same rules with a lower bound on large images; small ones are not scaled up beyond it.

        Args:
            max_pixels: the area in pixels that larger pages are scaled down to; a bound that is lower already stays.
        """
        largest = max_pixels if self.max_pixels is None else min(max_pixels, self.max_pixels)
        smallest = None if self.min_pixels is None else min(self.min_pixels, largest)
        return dataclasses.replace(self, min_pixels=smallest, max_pixels=largest)

    @property
    def full_size(self) -> ImageRules:
        """The same rules without bounds: images keep the size that they have."""
        return dataclasses.replace(self, min_pixels=None, max_pixels=None)

    @property
    def fingerprint(self) -> str:
        """A text of everything that a page's pixels depend on beside its bytes and the libraries that decode them."""
        return f"{READING_VERSION}/{self.min_pixels}/{self.max_pixels}/{','.join(map(str, self.background))}"
