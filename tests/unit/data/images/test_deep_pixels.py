"""Samples of more than 8 bits, integers and floats, as a viewer shows them."""

from __future__ import annotations

import struct
from typing import Literal

import numpy as np
import pytest

from rsgrpo.config.image_rules import ImageRules
from tests.unit.data.images.handmade_images import (
    WHITE,
    Pixels,
    on,
    png,
    read,
)


def tiff(
    pixels: Pixels,
    *,
    order: Literal["<", ">"] = "<",
    bits: int = 0,
    sample_format: int = 1,
    photometric: int = 1,
    **tags: int,
):
    """An uncompressed TIFF file of one grey channel."""
    data = pixels.astype(pixels.dtype.newbyteorder(order)).tobytes()
    height, width = pixels.shape
    entries = {
        256: width,
        257: height,
        258: bits or pixels.dtype.itemsize * 8,
        259: 1,
        262: photometric,
        273: 0,
        277: 1,
        278: height,
        279: len(data),
        339: sample_format,
        **{int(name.removeprefix("tag_")): value for name, value in tags.items()},
    }
    start = 8 + 2 + 12 * len(entries) + 4
    entries[273] = start
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "IH", 8, len(entries))
    body = b"".join(struct.pack(order + "HHII", tag, 4, 1, value) for tag, value in sorted(entries.items()))
    return head + body + struct.pack(order + "I", 0) + data


RAMP = np.arange(0, 65536, 546, dtype=np.uint16).reshape(11, 11)


@pytest.mark.parametrize("order", ["<", ">"])
def test_integers_are_scaled_by_their_types_range(keep, order):
    grey = np.rint(RAMP / 257)[..., None].repeat(3, axis=2)
    assert np.array_equal(read(keep, tiff(RAMP, order=order)), grey)
    signed = (RAMP.astype(int) - 32768).astype(np.int16)
    assert np.abs(read(keep, tiff(signed, order=order, sample_format=2)) - grey).max() <= 1
    wide = ((RAMP.astype(np.int64) - 32768) * 65536).astype(np.int32)
    assert np.abs(read(keep, tiff(wide, order=order, sample_format=2)) - grey).max() <= 1
    small = (RAMP.astype(int) // 257 - 128).astype(np.int8)
    assert np.abs(read(keep, tiff(small, order=order, sample_format=2)) - grey).max() <= 1


def test_unsigned_integers_of_32_bits_do_not_wrap_around(keep):
    grey = np.rint(RAMP / 257)[..., None].repeat(3, axis=2)
    assert np.abs(read(keep, tiff(RAMP.astype(np.uint32) * 65537)) - grey).max() <= 1


def test_a_page_scanned_with_white_as_zero_is_not_turned_into_its_negative(keep):
    grey = 255 - np.rint(RAMP / 257)[..., None].repeat(3, axis=2)
    assert np.array_equal(read(keep, tiff(RAMP, photometric=0)), grey)


def test_twelve_bits_are_scaled_by_their_own_range_where_the_file_says_so(keep):
    image = (RAMP // 16).astype(np.uint16)  # up to 4095
    declared = read(keep, tiff(image, tag_281=4095))
    assert np.array_equal(declared[..., 0], np.rint(image / 4095 * 255))
    assert np.array_equal(read(keep, tiff(image))[..., 0], np.rint(image / 257))  # else they are 16 bits


@pytest.mark.parametrize("order", ["<", ">"])
def test_floats_are_scaled_by_their_data(keep, order):
    values = np.array([[-3.0, 0.0, 5.0], [1.0, np.inf, -np.inf]], dtype=np.float32)
    # From -3 to 5: 0 is 3/8 of 255 = 95.6, 1 is a half, 127.5; infinities are cut off.
    found = read(keep, tiff(values, order=order, sample_format=3))[..., 0]
    assert np.abs(found - [[0, 95.6, 255], [127.5, 255, 0]]).max() <= 0.5


def test_a_float_that_is_no_number_counts_as_transparent(keep):
    values = np.array([[0.0, np.nan, 1.0]], dtype=np.float32)
    found = read(keep, tiff(values, sample_format=3), ImageRules(background=(10, 20, 30)))
    assert found.tolist() == [[[0] * 3, [10, 20, 30], [255] * 3]]
    blank = np.full((2, 2), np.nan, dtype=np.float32)
    assert (read(keep, tiff(blank, sample_format=3)) == 255).all()


@pytest.mark.parametrize(
    ("value", "expected"), [(0.0, 0), (1.0, 255), (0.5, 128), (255.0, 255), (51.0, 51), (9000.0, 255), (-2.0, 0)]
)
def test_a_blank_page_of_floats_keeps_its_shade(keep, value, expected):
    found = read(keep, tiff(np.full((3, 3), value, dtype=np.float32), sample_format=3))
    assert np.abs(found - expected).max() <= 0.5


def test_sixteen_bits_a_channel_are_read_in_colour_and_with_alpha(keep):
    deep = np.array([[0, 30000, 65535], [65535, 5000, 0]], dtype=">u2")
    colours = np.repeat(deep[..., None], 3, axis=2)
    assert np.abs(read(keep, png(3, 2, 16, 2, colours.tobytes())) - colours / 257).max() <= 1
    opaque = np.array([[65535, 65535, 0], [0, 65535, 32768]], dtype=">u2")
    shown = on(WHITE, colours / 257, opaque / 257)
    assert np.abs(read(keep, png(3, 2, 16, 6, np.dstack([colours, opaque]).astype(">u2").tobytes())) - shown).max() <= 2
    assert np.abs(read(keep, png(3, 2, 16, 4, np.dstack([deep, opaque]).astype(">u2").tobytes())) - shown).max() <= 2


def test_small_numbers_in_32_bits_do_not_become_one_grey(keep):
    # 0 to 64974 is less than a 255th of 2**32: by the type's range all were 128. By the data's: a 65536th each.
    values = RAMP.astype(np.int32)
    expected = np.rint(RAMP / RAMP.max() * 255)
    assert np.array_equal(read(keep, tiff(values, sample_format=2))[..., 0], expected)
    assert np.array_equal(read(keep, tiff(values.astype(np.uint32)))[..., 0], expected)
    assert (read(keep, tiff(np.full((3, 3), 2**31 - 1, dtype=np.int32), sample_format=2)) == 255).all()
