"""The pixels of a step's sequences, read ahead of the sequences that are built of them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import partial

import torch
from torch import Tensor

from rsgrpo.model.micro_batches import Segment
from rsgrpo.model.vision_cache import ImageFeatures
from rsgrpo.model.vlm import EncodedPrompt, ProcessedImage, PromptEncoder, micro_batch_images
from rsgrpo.types import ImageRef


class MicroBatchPixels:
    """Hands out the pixels of one sequence after another.

    Args:
        encoder: the encoder, which reads images.
        device: the device that sequences are built on.
        features: the features of a frozen tower, with their store; None: sequences carry pixels.

    Attributes:
        waited_seconds: how many seconds were spent waiting for pages since the last step began.
    """

    def __init__(self, encoder: PromptEncoder, device: torch.device, features: ImageFeatures | None = None) -> None:
        self._features = features
        self._encoder = encoder
        self._device = device
        self._feed: Iterator[Mapping[ImageRef, Tensor]] = iter(())
        self._packed: Mapping[ImageRef, Tensor] = {}
        self.waited_seconds = 0.0

    @contextmanager
    def of_step(self, plan: Sequence[Sequence[Segment]], prompts: Sequence[EncodedPrompt]) -> Iterator[None]:
        """Read the pages of a step's sequences within the block, in their order.

        Args:
            plan: the segments of each sequence.
            prompts: the encoded prompts, by segment.group.
        """
        self.waited_seconds = 0.0
        with closing(self._encoder.pixel_feed([micro_batch_images(segments, prompts) for segments in plan])) as feed:
            self._feed = feed
            try:
                yield
            finally:
                self._feed, self._packed = iter(()), {}

    def begin_micro_batch(self) -> None:
        """Make the next sequence's pages those that :meth:`of` gives at once.

        Raises:
            ImageError: a page of the sequence is damaged.
            PromptError: a page of the sequence is not what it was when the prompt was encoded.
        """
        self._packed = {}  # before the next one comes: the feed counts it until then
        start = time.perf_counter()
        self._packed = next(self._feed, {})
        self.waited_seconds += time.perf_counter() - start

    def of(self, image: ProcessedImage) -> Tensor:
        """A page's pixels [patches, 1176] float32 on the device; one that was not read ahead is read now.

        That is so outside of a step, and of a page whose features were stored when the step was prepared, but are no
        more.

        Args:
            image: the image as it stands in an encoded prompt.
        """
        if image.ref not in self._packed:
            return self._encoder.pixels(image)
        return self._encoder.unpacked(self._packed[image.ref].to(self._device))

    def features_of(self, image: ProcessedImage) -> Tensor:
        """A page's features on the device, from the store, or from its pixels.

        Args:
            image: the image as it stands in an encoded prompt.
        """
        assert self._features is not None
        return self._features.features(image.ref, image.grid, partial(self.of, image))
