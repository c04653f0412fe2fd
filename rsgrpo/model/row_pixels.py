"""The pixels of a step's rows, read ahead of the rows that are built of them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import partial

import torch
from torch import Tensor

from rsgrpo.model.micro_batches import Piece
from rsgrpo.model.vision_cache import PageFeatures
from rsgrpo.model.vlm import EncodedPrompt, ProcessedImage, PromptEncoder, row_pages
from rsgrpo.types import ImageRef


class RowPixels:
    """Hands out the pixels of one row after another.

    Args:
        encoder: reads pages.
        device: where rows are built.
        features: of a frozen tower, with their store; None: rows carry pixels.

    Attributes:
        waited_seconds: for pages, since the last step began.
    """

    def __init__(self, encoder: PromptEncoder, device: torch.device, features: PageFeatures | None = None) -> None:
        self._features = features
        self._encoder = encoder
        self._device = device
        self._feed: Iterator[Mapping[ImageRef, Tensor]] = iter(())
        self._row: Mapping[ImageRef, Tensor] = {}
        self.waited_seconds = 0.0

    @contextmanager
    def of_step(self, plan: Sequence[Sequence[Piece]], prompts: Sequence[EncodedPrompt]) -> Iterator[None]:
        """Read the pages of a step's rows within the block, in their order.

        Args:
            plan: the pieces of each row.
            prompts: encoded, by piece.group.
        """
        self.waited_seconds = 0.0
        with closing(self._encoder.pixel_feed([row_pages(pieces, prompts) for pieces in plan])) as feed:
            self._feed = feed
            try:
                yield
            finally:
                self._feed, self._row = iter(()), {}

    def begin_row(self) -> None:
        """Make the next row's pages those that :meth:`of` gives at once.

        Raises:
            ImageError: a page of the row is damaged.
            PromptError: a page of the row is not what it was when the prompt was encoded.
        """
        self._row = {}  # before the next one comes: the feed counts it until then
        start = time.perf_counter()
        self._row = next(self._feed, {})
        self.waited_seconds += time.perf_counter() - start

    def of(self, page: ProcessedImage) -> Tensor:
        """A page's pixels [patches, 1176] float32 on the device; one that was not read ahead is read now.

        That is so outside of a step, and of a page whose features were stored when the step was prepared, but are no
        more.

        Args:
            page: as it stands in an encoded prompt.
        """
        if page.ref not in self._row:
            return self._encoder.pixels(page)
        return self._encoder.unpacked(self._row[page.ref].to(self._device))

    def features_of(self, page: ProcessedImage) -> Tensor:
        """A page's features on the device, from the store, or from its pixels.

        Args:
            page: as it stands in an encoded prompt.
        """
        assert self._features is not None
        return self._features.features(page.ref, page.grid, partial(self.of, page))
