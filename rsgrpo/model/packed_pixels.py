"""Pixels of pages in an eighth of the memory: as the 8 bits that the processor makes its numbers of.

Qwen2.5-VL's processor resizes a page in 8 bits, makes each of its numbers from one of them by the same rule for a
channel, and writes every patch twice, for two frames. What is kept here is the 8 bits, once; a table per channel makes
the processor's numbers of them, to the bit and on any device.
"""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import BaseImageProcessor

from rsgrpo.model.memory_bounds import CHANNELS, FP32, FRAMES

_LEVELS = 256
_TRIED_TOKENS = 4  # a side of the picture that a processor is tried on: it has more pixels than there are levels

Grid = tuple[int, int, int]


class PixelPacker:
    """Packs what a processor makes of pages, and unpacks it; one that does otherwise than Qwen's is not packed.

    Args:
        processor: the image processor of the model.
    """

    def __init__(self, processor: BaseImageProcessor) -> None:
        self._processor = processor
        self._patch_numbers = int(processor.patch_size) ** 2
        self._tables = self._find_tables(_TRIED_TOKENS * int(processor.patch_size) * int(processor.merge_size))

    def _find_tables(self, side: int) -> Tensor | None:
        """[3, 256] float32, what each level of each channel becomes; None: the processor works differently."""
        numbers = np.arange(CHANNELS * side * side, dtype=np.int64)
        every_level = Image.fromarray((numbers % _LEVELS).astype(np.uint8).reshape(side, side, CHANNELS))
        packed, _ = self._bits(every_level, do_resize=False)
        if packed is None:
            return None
        whole, _ = self._processed(every_level, do_resize=False)
        made = whole.reshape(len(whole), CHANNELS, FRAMES, -1)[:, :, 0]
        tables = torch.full((CHANNELS, _LEVELS), torch.nan)
        for channel in range(CHANNELS):
            tables[channel][packed[:, channel].reshape(-1).long()] = made[:, channel].reshape(-1)
        noise = np.random.default_rng(0).integers(0, _LEVELS, (side - 9, side + 5, CHANNELS), dtype=np.uint8)
        tried = Image.fromarray(noise)
        again, _ = self._bits(tried)
        is_same = again is not None and torch.equal(_unpacked(again, tables), self._processed(tried)[0])
        return tables if is_same and bool(tables.isfinite().all()) else None

    def packed(self, image: Image.Image) -> tuple[Tensor, Grid]:
        """A page's pixels and its grid (frames, rows, columns).

        Args:
            image: the image as ``load_image`` gives it.

        Returns:
            The pixels, [patches, 3, 196] uint8, or [patches, 1176] float32 where they cannot be packed; and the grid.
        """
        if self._tables is None:
            return self._processed(image)
        packed, grid = self._bits(image)
        assert packed is not None, "a processor that made pixels of 8 bits makes them of others"
        return packed, grid

    def num_bytes(self, num_patches: int) -> int:
        """How much memory a page's packed pixels take."""
        factor = FRAMES * FP32 if self._tables is None else 1
        return num_patches * CHANNELS * self._patch_numbers * factor

    def unpacked(self, pixels: Tensor) -> Tensor:
        """[patches, 1176] float32, as the processor makes them, on the device of ``pixels``."""
        return pixels if self._tables is None else _unpacked(pixels, self._tables.to(pixels.device))

    def _processed(self, image: Image.Image, **settings: bool) -> tuple[Tensor, Grid]:
        features = self._processor(images=[image], return_tensors="pt", **settings)
        frames, rows, columns = features["image_grid_thw"][0].tolist()
        return features["pixel_values"].to(torch.float32), (frames, rows, columns)

    def _bits(self, image: Image.Image, **settings: bool) -> tuple[Tensor | None, Grid]:
        """The 8-bit pixels that the processor makes its numbers of, None if there are none; and the page's grid."""
        features = self._processor(
            images=[image], return_tensors="pt", do_rescale=False, do_normalize=False, **settings
        )
        frames, rows, columns = features["image_grid_thw"][0].tolist()
        bits = features["pixel_values"]
        if bits.dtype != torch.uint8 or bits.shape[1] != CHANNELS * FRAMES * self._patch_numbers:
            return None, (frames, rows, columns)
        return bits.reshape(len(bits), CHANNELS, FRAMES, -1)[:, :, 0].contiguous(), (frames, rows, columns)


def _unpacked(packed: Tensor, tables: Tensor) -> Tensor:
    numbers = [
        tables[channel].index_select(0, packed[:, channel].reshape(-1).int()).reshape(len(packed), -1)
        for channel in range(CHANNELS)
    ]
    return torch.stack(numbers, dim=1)[:, :, None].expand(-1, -1, FRAMES, -1).reshape(len(packed), -1)
