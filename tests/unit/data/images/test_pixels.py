"""Whatever a file holds, the page looks as in a viewer: an oracle in numpy over mode, orientation, depth and format."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from rsgrpo.config.image_rules import ImageRules
from rsgrpo.data.images.loading import image_size, load_image
from tests.examples import examples
from tests.unit.data.images.handmade_images import (
    MODES,
    encoded,
    exif,
    on,
    png,
    random_pixels,
    read,
    shown_upright,
    stored,
)

FORMATS = {"PNG": MODES, "TIFF": MODES, "WEBP": ["RGB", "RGBA"], "AVIF": ["RGB"], "JPEG": ["L", "RGB", "CMYK"]}


LOSSLESS: dict[str, dict[str, Any]] = {
    "WEBP": {"lossless": True, "exact": True},
    "AVIF": {"quality": 100, "subsampling": "4:4:4"},
}


@given(st.data(), st.sampled_from(sorted(FORMATS)), st.integers(1, 8), st.integers(1, 40), st.integers(1, 40))
@examples(150)
def test_every_mode_in_every_orientation_is_read_as_a_viewer_shows_it(keep, data, kind, orientation, width, height):
    mode = data.draw(st.sampled_from(FORMATS[kind]))
    image, expected = stored(mode, width * 41 + height, height, width)
    lossless = LOSSLESS.get(kind, {})
    if kind == "JPEG":
        lossless = {"quality": 100, **({"subsampling": 0} if mode == "RGB" else {})}
    found = read(keep, encoded(image, kind, exif=exif(orientation), **lossless))
    upright = shown_upright(expected, orientation)
    assert found.shape == upright.shape
    # One step of rounding where colours are mixed; JPEG and AVIF at their best lose a little more.
    allowed = {"JPEG": 6, "AVIF": 8}.get(kind, 0 if mode in ("1", "L", "P", "RGB", "I;16") else 1)
    assert np.abs(found - upright).max() <= allowed


@given(st.sampled_from(["1", "L", "P", "LA", "RGBA", "RGB", "I;16"]), st.integers(1, 8), st.integers(0, 99))
@examples(60)
def test_pages_are_converted_and_turned_before_they_are_resized(keep, mode, orientation, seed):
    image, expected = stored(mode, seed, 60, 90)
    rules = ImageRules(max_pixels=1000)
    ref = keep(encoded(image, "PNG", exif=exif(orientation)))
    plain = Image.fromarray(shown_upright(expected, orientation).astype(np.uint8))
    resized = plain.resize(image_size(ref, rules), Image.Resampling.BICUBIC)
    assert np.abs(np.asarray(load_image(ref, rules)).astype(int) - np.asarray(resized)).max() <= 1


@pytest.mark.parametrize("mode", ["1", "L", "P"])
def test_hairlines_of_a_scan_survive_being_made_smaller(keep, mode):
    # 310 lines of one pixel, 300 dpi, brought down by sqrt(1568000 / (2550 · 3300)) = 0.43
    image = Image.new("L", (2550, 3300), 255)
    draw = ImageDraw.Draw(image)
    for top in range(100, 3200, 10):
        draw.line([100, top, 2400, top], fill=0)
    read_image = load_image(keep(encoded(image.convert(mode), "PNG")), ImageRules(min_pixels=3136, max_pixels=1568000))
    is_line = np.asarray(read_image)[:, 550, 0] < 220
    assert int((is_line[1:] & ~is_line[:-1]).sum()) == 310


@given(
    st.sampled_from(["RGBA", "LA"]),
    st.tuples(st.integers(0, 255), st.integers(0, 255), st.integers(0, 255)),
    st.integers(0, 99),
)
@examples(40)
def test_transparent_parts_show_the_background_that_was_chosen(keep, mode, background, seed):
    pixels = random_pixels(seed, 9, 7, len(mode))
    image = Image.frombytes(mode, (7, 9), pixels.tobytes())
    colours = np.repeat(pixels[..., :1], 3, axis=2) if mode == "LA" else pixels[..., :3]
    found = read(keep, encoded(image, "PNG"), ImageRules(background=background))
    assert np.abs(found - on(background, colours, pixels[..., -1])).max() <= 1


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_one_grey_value_of_a_png_may_be_transparent(keep, depth):
    # The key is black, 0; a page of it is therefore white, and the largest sample is white by itself.
    row = {1: b"\x0f", 2: b"\x0f", 4: b"\x0f", 8: b"\x00\xff", 16: b"\0\0\xff\xff"}[depth]
    width = {1: 8, 2: 4, 4: 2, 8: 2, 16: 2}[depth]
    assert (read(keep, png(width, 1, depth, 0, row, (b"tRNS", b"\0\0"))) == 255).all()
    # With white as the key on a black background, all of it is black.
    key = struct.pack(">H", 2**depth - 1)
    found = read(keep, png(width, 1, depth, 0, row, (b"tRNS", key)), ImageRules(background=(0, 0, 0)))
    assert (found == 0).all()


@pytest.mark.parametrize("depth", [8, 16])
def test_one_colour_of_a_png_may_be_transparent(keep, depth):
    sample = {8: "B", 16: "H"}[depth]
    top = 2**depth - 1
    key = (0, top, 0)
    row = struct.pack(f">6{sample}", *key, top, 0, 0)
    found = read(keep, png(2, 1, depth, 2, row, (b"tRNS", struct.pack(">3H", *key))))
    assert found.tolist() == [[[255, 255, 255], [255, 0, 0]]]


def test_palettes_may_have_transparent_entries_of_every_kind(keep):
    palette = bytes([0, 0, 0, 255, 0, 0])
    # Entry 0 opaque to 0x80 of 255, entry 1 as it is: 255 · (1 - 128/255) = 127 for black on white.
    found = read(keep, png(8, 1, 1, 3, b"\x0f", (b"PLTE", palette), (b"tRNS", b"\x80")))
    assert found[0, 0].tolist() == [127, 127, 127] and found[0, 7].tolist() == [255, 0, 0]
    gif = Image.frombytes("P", (2, 1), b"\0\1")
    gif.putpalette(palette)
    assert read(keep, encoded(gif, "GIF", transparency=0)).tolist() == [[[255] * 3, [255, 0, 0]]]
    image = Image.new("RGBA", (40, 30))
    ImageDraw.Draw(image).rectangle([5, 5, 20, 10], fill="black")
    found = read(keep, encoded(image.quantize(8), "PNG"))
    assert found[0, 0].tolist() == [255] * 3 and found[7, 10].tolist() == [0] * 3
