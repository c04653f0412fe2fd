"""An eighth of the memory, and the processor's numbers to the bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from transformers import Qwen2VLImageProcessor

from rsgrpo.model.packed_pixels import PixelPacker
from tests.examples import examples

SIZE = {"shortest_edge": 784, "longest_edge": 50_000}
PROCESSOR = Qwen2VLImageProcessor(size=SIZE)
PACKER = PixelPacker(PROCESSOR)


def noise(width: int, height: int, seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


@given(st.integers(20, 300), st.integers(20, 300), st.integers(0, 99))
@examples(60)
def test_unpacked_pixels_are_the_processors_to_the_bit_and_packed_ones_take_an_eighth(width, height, seed):
    image = noise(width, height, seed)
    expected = PROCESSOR(images=[image], return_tensors="pt")
    packed, grid = PACKER.packed(image)
    assert packed.dtype == torch.uint8
    assert torch.equal(PACKER.unpacked(packed), expected["pixel_values"])
    assert list(grid) == expected["image_grid_thw"][0].tolist()
    assert packed.nbytes == PACKER.num_bytes(len(packed)) == expected["pixel_values"].nbytes // 8


@pytest.mark.parametrize(
    "settings",
    [
        {"image_mean": [0.1, 0.5, 0.9], "image_std": [0.3, 0.2, 0.1]},
        {"do_normalize": False},
        {"do_rescale": False},
        {"rescale_factor": 1 / 127},
        {"size": {"shortest_edge": 262_144, "longest_edge": 300_000}},  # larger than the picture that it is tried on
    ],
    ids=["mean", "no mean", "no scale", "scale", "size"],
)
def test_a_processor_with_settings_of_its_own_is_followed(settings):
    processor = Qwen2VLImageProcessor(**{"size": SIZE, **settings})
    packer = PixelPacker(processor)
    image = noise(100, 70, 0)
    packed, _ = packer.packed(image)
    expected = processor(images=[image], return_tensors="pt")["pixel_values"].to(torch.float32)
    assert packed.dtype == torch.uint8
    assert torch.equal(packer.unpacked(packed), expected)


def test_a_processor_of_another_kind_is_taken_as_it_is(monkeypatch: pytest.MonkeyPatch):
    processor = Qwen2VLImageProcessor(size=SIZE)
    normalize = processor.normalize

    def of_two_pixels(*args, **kwargs):
        made = normalize(*args, **kwargs)
        return made + made.roll(1, dims=-1)

    monkeypatch.setattr(processor, "normalize", of_two_pixels)
    packer = PixelPacker(processor)
    image = noise(100, 70, 0)
    packed, _ = packer.packed(image)
    expected = processor(images=[image], return_tensors="pt")["pixel_values"]
    assert packed.dtype == torch.float32
    assert torch.equal(packer.unpacked(packed), expected)
    assert packer.num_bytes(len(packed)) == packed.nbytes
