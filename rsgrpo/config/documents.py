"""Settings for rendering documents: resolution, image format, worker processes, what to do about bad documents."""

from __future__ import annotations

import os
from dataclasses import dataclass

from rsgrpo.config.checks import ConfigError, Literal, at_least, at_most, check_choices, more_than
from rsgrpo.config.image_rules import MAX_MEGAPIXELS, ImageRules

MAX_DPI = 200.0
"""Highest resolution, in pixels per inch, at which a page is rendered when ``dpi`` is null."""

ImageFormat = Literal["png", "jpeg"]
OnBadDocument = Literal["reject", "skip", "skip_page"]
OcrEngine = Literal["none", "rapidocr"]

_MAX_WORKERS = 1024


@dataclass(frozen=True, kw_only=True, slots=True)
class RenderSettings:
    """How documents are rendered into a page store; the first three settings are fixed when the store is made.

    Example:
        ``RenderSettings(dpi=100, workers=8, on_bad_document="skip")``
    """

    dpi: float | None = None
    """The resolution at which PDF pages are rendered, in pixels per inch; it is lowered for a page that would exceed
    ``max_pixels``. null: the highest resolution that ``max_pixels`` allows, at most 200; for A4 that is 127."""
    max_pixels: int = 1_568_000
    """The largest area of a stored page, in pixels. The policy's ``data.max_pixels`` should be at least as large: then
    the policy sees exactly the pixels that were indexed."""
    image_format: ImageFormat = "png"
    """The format of the stored images. ``png`` keeps every pixel exactly. ``jpeg`` has quality 95 without subsampled
    colours; it is written in half the time, is larger than PNG for pages of text, and much smaller for photographs and
    scans."""
    workers: int = 0
    """The number of processes that render pages; 0: one for each processor core that this process may use."""
    on_bad_document: OnBadDocument = "reject"
    """What to do about a document that cannot be read. ``reject``: stop there and name it; the documents added before
    it stay. ``skip``: leave it out and name it in the report. ``skip_page``: the same as ``skip``, but of a document in
    which only some pages cannot be rendered, leave out just these pages."""
    ocr: OcrEngine = "none"
    """What reads the text of pages that have no text layer, for the text search. ``rapidocr``: PP-OCRv6, which reads
    Latin script, Chinese and Japanese and takes 5 to 12 seconds of a core a page (``uv sync --extra ocr``). A page is
    read once; documents that are in the store already are read when they are added again."""
    page_seconds: float = 120.0
    """The longest time that rendering a page may take, reading by OCR included, in seconds; a page that takes longer
    counts as one that cannot be rendered. Opening a document may take as long, plus a second for each MB of its file,
    plus ten minutes for LibreOffice if it is an office file."""
    max_image_megapixels: float = MAX_MEGAPIXELS
    """The largest image file that is read, in megapixels; a megapixel takes up to 10 MB of memory. Larger images cannot
    be read."""

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
        """The number of processes that render pages."""
        return self.workers or len(os.sched_getaffinity(0))

    @property
    def image_rules(self) -> ImageRules:
        """The rules by which image files are read."""
        return ImageRules(max_pixels=self.max_pixels, max_megapixels=self.max_image_megapixels)

    @property
    def most_dpi(self) -> float:
        """The resolution, in pixels per inch, of PDF pages so small that ``max_pixels`` does not lower it."""
        return MAX_DPI if self.dpi is None else self.dpi
