"""At which size the model sees a page: the one place that knows.

A page is resized twice: by us (``rsgrpo.data.images.loading``, between ``data.min_pixels`` and ``data.max_pixels``),
then by the model's own image processor, which has bounds of its own (``preprocessor_config.json``) and brings both
sides to multiples of one image token. Pixels that Qwen2.5-VL writes are those of the second size.
"""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from rsgrpo.config import DataConfig, EndpointConfig
from rsgrpo.config.image_rules import ImageRules
from rsgrpo.data.images.loading import image_size, resized_size
from rsgrpo.errors import RsgrpoError
from rsgrpo.io.atomic_files import write_json
from rsgrpo.text.coordinates import PATCH_SIDE, smart_resize
from rsgrpo.types import ImageRef

_EDGES = ("shortest_edge", "longest_edge")


class ImageViewError(RsgrpoError, ValueError):
    """The size at which a model sees its pages cannot be told; the message says what is missing."""


class SizedProcessor(Protocol):
    """What is needed of a model's image processor."""

    size: object
    """The bounds on a page's size as the processor holds them: an area each, by ``shortest_edge`` and
    ``longest_edge``."""
    patch_size: int
    merge_size: int


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageView:
    """How pages reach the model. Made once, from the settings and the model's processor, and handed to all who ask.

    Attributes:
        min_pixels: ``data.min_pixels``: the area that smaller pages are scaled up to before the processor sees them.
        max_pixels: ``data.max_pixels``: the area that larger pages are scaled down to before the processor sees them.
        processor_min_pixels: the smallest area in pixels that the processor scales pages to.
        processor_max_pixels: the largest area in pixels that the processor scales pages to.
        processor_factor: the side of one image token in pixels: patch size times merge size.

    Example:
        ``ImageView(min_pixels=3136, max_pixels=1568000).of_size(2000, 2000)`` is ``(1260, 1260)``: we send 1252²,
        which is 44.7 tokens a side.
    """

    min_pixels: int
    max_pixels: int
    processor_min_pixels: int = 3136
    processor_max_pixels: int = 12845056
    processor_factor: int = PATCH_SIDE

    def of_size(self, width: int, height: int) -> tuple[int, int]:
        """Width and height at which the model sees a page of this size.

        Args:
            width: the width of the image as it is stored (upright), in pixels.
            height: the height of the image as it is stored (upright), in pixels.

        Raises:
            CoordinateError: the page is a strip of more than 200 to 1, or the bounds leave nothing of it.
        """
        return self._processed(resized_size(width, height, self.min_pixels, self.max_pixels))

    def seen_size(self, ref: ImageRef) -> tuple[int, int]:
        """Width and height at which the model sees a page, from the file's header alone.

        Raises:
            ImageError: the page is missing or no image.
            CoordinateError: the page is a strip of more than 200 to 1, or the bounds leave nothing of it.
        """
        rules = ImageRules(min_pixels=self.min_pixels, max_pixels=self.max_pixels, max_megapixels=math.inf)
        return self._processed(image_size(ref, rules))

    def _processed(self, size: tuple[int, int]) -> tuple[int, int]:
        return smart_resize(
            *size,
            min_pixels=self.processor_min_pixels,
            max_pixels=self.processor_max_pixels,
            factor=self.processor_factor,
        )


def model_view(data: DataConfig, image_processor: SizedProcessor) -> ImageView:
    """How a model sees pages that we hand to its processor.

    Args:
        data: the settings with our own bounds.
        image_processor: the image processor of the model that answers.

    Raises:
        ImageViewError: the processor's ``size`` holds no areas.
    """
    # A dictionary, or transformers' SizeDict, which is none but reads like one.
    size = image_processor.size
    found = {name: _edge(size, name) for name in _EDGES}
    if any(edge < 1 for edge in found.values()):
        raise ImageViewError(
            f"the model's image processor has size={size!s:.120}, expected areas in pixels under shortest_edge and "
            "longest_edge (or min_pixels and max_pixels); copy preprocessor_config.json from the model that this "
            "one was trained from"
        )
    return ImageView(
        min_pixels=data.min_pixels,
        max_pixels=data.max_pixels,
        processor_min_pixels=found["shortest_edge"],
        processor_max_pixels=found["longest_edge"],
        processor_factor=image_processor.patch_size * image_processor.merge_size,
    )


def endpoint_view(data: DataConfig, endpoint: EndpointConfig) -> ImageView:
    """How a model behind a server sees pages that we send it, by ``eval.endpoint.processor_*``."""
    return ImageView(
        min_pixels=data.min_pixels,
        max_pixels=data.max_pixels,
        processor_min_pixels=endpoint.processor_min_pixels,
        processor_max_pixels=endpoint.processor_max_pixels,
        processor_factor=endpoint.processor_factor,
    )


def write_view(file: Path, view: ImageView) -> None:
    """Keep a view beside a run's records: whoever reads them later has no model at hand."""
    write_json(file, dataclasses.asdict(view), indent=2)


def read_view(file: Path) -> ImageView | None:
    """What :func:`write_view` kept; None where there is no such file.

    Raises:
        ImageViewError: the file is damaged.
    """
    if not file.is_file():
        return None
    try:
        return ImageView(**json.loads(file.read_text()))
    except (ValueError, TypeError) as error:
        raise ImageViewError(
            f"{str(file)[-160:]} is damaged ({error!s:.120}); remove it, or take it from a copy"
        ) from error


def _edge(size: object, name: str) -> int:
    """One of a processor's bounds, an area in pixels; 0 where it has none."""
    try:
        value = size[name]  # type: ignore[index]
    except (KeyError, TypeError):
        return 0
    return value if isinstance(value, int) and not isinstance(value, bool) else 0
