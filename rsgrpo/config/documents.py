"""Settings of how documents become page images: resolution, format, worker processes, what to do about bad ones."""

from __future__ import annotations

import os
from dataclasses import dataclass

from rsgrpo.config.checks import ConfigError, Literal, at_least, at_most, check_choices, more_than
from rsgrpo.config.image_rules import MAX_MEGAPIXELS, ImageRules

MAX_DPI = 200.0
"""Resolution of pages so small that ``max_pixels`` would allow more."""

ImageFormat = Literal["png", "jpeg"]
OnBadDocument = Literal["reject", "skip", "skip_page"]

_MAX_WORKERS = 1024


@dataclass(frozen=True, kw_only=True, slots=True)
class RenderSettings:
    """How documents are rendered into a page store; the first three belong to the store and stay as they are.

    Example:
        ``RenderSettings(dpi=100, workers=8, on_bad_document="skip")``
    """

    dpi: float | None = None
    """Pixels an inch of PDF pages, less where a page would exceed ``max_pixels``; null: as many as ``max_pixels``
    allows, at most 200. A4 has 127 then."""
    max_pixels: int = 1_568_000
    """Largest area of a stored page. ``data.max_pixels`` of the policy should be no less: it then sees what was
    indexed, pixel for pixel."""
    image_format: ImageFormat = "png"
    """``png``: exactly what was rendered. ``jpeg``: quality 95 without subsampled colours; written in half the time,
    larger than PNG for pages of text, and much smaller for photographs and scans."""
    workers: int = 0
    """Processes that render; 0: one for each core that this process may use."""
    on_bad_document: OnBadDocument = "reject"
    """``reject``: stop at the first document that cannot be read, and name it; those before it stay. ``skip``: leave
    it out, and name it in the report. ``skip_page``: the same, but leave out single pages that cannot be rendered."""
    page_seconds: float = 120.0
    """A page that takes longer cannot be rendered, and a document cannot be opened that takes longer beside a second
    for each MB; LibreOffice has ten minutes."""
    max_image_megapixels: float = MAX_MEGAPIXELS
    """Larger image files cannot be read; a megapixel takes up to 10 MB of memory."""

    def __post_init__(self) -> None:
        check_choices(self, "")
        if self.dpi is not None:
            more_than("dpi", self.dpi, 0.0)
            at_most("dpi", self.dpi, 2400.0)
        if self.max_pixels < 1024:
            raise ConfigError(f"max_pixels={self.max_pixels} is too small to read anything; the default is 1568000")
        at_most("max_pixels", self.max_pixels, self.max_image_megapixels * 1e6)
        at_least("workers", self.workers, 0)
        at_most("workers", self.workers, _MAX_WORKERS)
        more_than("page_seconds", self.page_seconds, 0.0)
        more_than("max_image_megapixels", self.max_image_megapixels, 0.0)

    @property
    def num_workers(self) -> int:
        """Processes that render."""
        return self.workers or len(os.sched_getaffinity(0))

    @property
    def image_rules(self) -> ImageRules:
        """How image files are read."""
        return ImageRules(max_pixels=self.max_pixels, max_megapixels=self.max_image_megapixels)

    @property
    def most_dpi(self) -> float:
        """Resolution of PDF pages that ``max_pixels`` does not bound."""
        return MAX_DPI if self.dpi is None else self.dpi
