"""Image files as documents, read in the same way as training images; each picture of a TIFF file is a page."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
from PIL import Image

from rsgrpo.config.documents import RenderSettings
from rsgrpo.data.images.headers import DECODING_ERRORS, ImageFacts, open_image
from rsgrpo.data.images.loading import (
    MAX_ASPECT_RATIO,
    SKIP_ADVICE,
    image_facts,
    image_from_image,
    load_image,
    resized_size,
)
from rsgrpo.data.images.sources import ImageError, image_bytes
from rsgrpo.documents.pdf import RenderedPage
from rsgrpo.documents.records import DocumentError
from rsgrpo.errors import shown
from rsgrpo.types import ImageRef

_PLAIN_FORMATS = {"PNG": ".png", "JPEG": ".jpg"}
_SETTINGS = {  # what messages about training data call them
    SKIP_ADVICE: "",  # the store says so of every document
    "data.max_image_megapixels": "max_image_megapixels",
    "data.min_pixels and data.max_pixels": "max_pixels",
    "data.max_pixels": "max_pixels",
}


class PictureDocument:
    """An image file whose pictures are pages.

    Args:
        path: the path of the file.
        settings: the settings, of which ``max_pixels`` and ``max_image_megapixels`` matter here.

    Raises:
        DocumentError: the file is cut off, damaged, too large, or not an image.
    """

    def __init__(self, path: Path, settings: RenderSettings) -> None:
        self._ref = ImageRef(path=path.name, file=str(path))
        self._rules = settings.image_rules
        try:
            self._facts: ImageFacts = image_facts(self._ref, self._rules)
        except ImageError as error:
            raise DocumentError(_reworded(error)) from error
        self.num_pages = self._facts.num_frames if self._facts.format == "TIFF" else 1
        self._data = b""

    def outline(self) -> tuple[tuple[int, str], ...]:
        """Return an empty outline: image files have none."""
        return ()

    def page(self, number: int) -> RenderedPage:
        """Read a picture of the file as a page.

        Args:
            number: the number of the picture, from 1 on.

        Raises:
            DocumentError: the picture is cut off, damaged, too large, or a strip too long for the model to read.
        """
        try:
            if number > 1:
                return RenderedPage(pixels=np.asarray(self._later_picture(number)))
            image = load_image(self._ref, self._rules)
            if self._is_plain(image):
                return RenderedPage(
                    pixels=np.asarray(image), file=image_bytes(self._ref), suffix=_PLAIN_FORMATS[self._facts.format]
                )
            return RenderedPage(pixels=np.asarray(image))
        except ImageError as error:
            raise DocumentError(_reworded(error)) from error

    def _is_plain(self, image: Image.Image) -> bool:
        """Tell whether every program reads exactly these pixels from the file, so that it can be stored as it is."""
        facts = self._facts
        return (
            facts.format in _PLAIN_FORMATS
            and facts.mode in ("L", "RGB")
            and facts.orientation == 1
            and facts.bits == 8
            and facts.num_frames == 1
            and not facts.has_transparency
            and (facts.width, facts.height) == image.size
        )

    def _later_picture(self, number: int) -> Image.Image:
        self._data = self._data or image_bytes(self._ref)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)
                stored = open_image(self._data).image
                stored.seek(number - 1)
            self._check_size(stored.width, stored.height)
            image = image_from_image(stored, self._rules)
        except DECODING_ERRORS as error:
            raise DocumentError(f"it is cut or damaged: {shown(error, 120)}; replace the file") from error
        width, height = resized_size(image.width, image.height, self._rules.min_pixels, self._rules.max_pixels)
        if (width, height) == image.size:
            return image
        return image.resize((max(1, width), max(1, height)), Image.Resampling.BICUBIC)

    def _check_size(self, width: int, height: int) -> None:
        if width * height > self._rules.max_megapixels * 1e6:
            raise DocumentError(
                f"it has {width}×{height} pixels; the limit is max_image_megapixels={self._rules.max_megapixels:g}"
            )
        if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
            raise DocumentError(
                f"it is {width}×{height}: a strip longer than {MAX_ASPECT_RATIO} to 1, which no model here reads; "
                "cut it into pages"
            )

    def close(self) -> None:
        """Release the memory that holds the file's bytes."""
        self._data = b""


def _reworded(error: ImageError) -> str:
    """Replace the names of training settings in an error message by those of the settings for documents."""
    text = str(error)
    for name, here in _SETTINGS.items():
        text = text.replace(name, here)
    return text
