"""JPEG files: the same pixels as Pillow's, and nothing that lost a part of its image passes as whole."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from rsgrpo.config.image_rules import ImageRules
from rsgrpo.data.images.jpeg import JpegDamageError, check_jpeg, jpeg_pixels
from rsgrpo.data.images.loading import check_image, load_image
from rsgrpo.data.images.sources import ImageError
from rsgrpo.types import ImageRef
from tests.examples import examples

END = b"\xff\xd9"
WAYS: dict[str, dict[str, Any]] = {
    "baseline": {},
    "full chroma": {"subsampling": 0},
    "progressive": {"progressive": True},
    "restarts": {"restart_marker_rows": 1},
    "optimised": {"optimize": True},
}


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)


def written_image(width: int, height: int) -> Image.Image:
    image = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(image)
    for top in range(0, height, 12):
        draw.text((3, top), "Quarterly revenue grew by 12 % to 3.4 million " * 4, fill=(top % 200, 0, 60))
    return image


PICTURES = {"photograph": noise(400, 300), "page": written_image(400, 300)}


def encoded(image: Image.Image, quality: int = 90, **way: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality, **way)
    return buffer.getvalue()


def by_pillow(data: bytes) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(data)))


def verdicts(data: bytes) -> list[str]:
    """What reading and checking say; empty texts where they find nothing."""
    said = []
    for judge in (jpeg_pixels, check_jpeg):
        try:
            judge(data)
            said.append("")
        except JpegDamageError as error:
            said.append(str(error))
    return said


@given(
    st.integers(1, 130),
    st.integers(1, 130),
    st.sampled_from(["L", "RGB"]),
    st.integers(10, 100),
    st.sampled_from([0, 1, 2]),
    st.booleans(),
    st.booleans(),
)
@examples(60)
def test_pixels_are_pillows_to_the_bit(width, height, mode, quality, subsampling, is_progressive, is_optimised):
    way = {"subsampling": subsampling} if mode == "RGB" else {}
    data = encoded(
        noise(width, height).convert(mode), quality, progressive=is_progressive, optimize=is_optimised, **way
    )
    pixels = jpeg_pixels(data)
    assert pixels is not None
    assert np.array_equal(np.squeeze(pixels, -1) if mode == "L" else pixels, by_pillow(data))
    assert check_jpeg(data)


def test_colours_that_only_pillow_reads_are_left_to_it_but_judged():
    data = encoded(noise(80, 60).convert("CMYK"))
    assert jpeg_pixels(data) is None
    assert check_jpeg(data)
    with pytest.raises(JpegDamageError):
        check_jpeg(data[: len(data) // 2] + END)


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("picture", PICTURES.values(), ids=PICTURES)
@pytest.mark.parametrize("share", [0.35, 0.5, 0.8])
def test_a_file_that_lost_part_of_its_image_is_damaged_though_it_has_its_end(picture, way, share):
    data = encoded(picture, **way)
    cut = int(len(data) * share)
    lost = {
        "cut": data[:cut] + END,
        "cut and filled with zeros": data[:cut] + bytes(len(data) - cut - 2) + END,
        "filled with zeros to the last byte": data[:cut] + bytes(len(data) - cut),
        "hole of a disk block": data[:cut] + bytes(512) + data[cut + 512 :],
        "cut without end": data[:cut],
    }
    for name, broken in lost.items():
        assert all(verdicts(broken)), name


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("picture", PICTURES.values(), ids=PICTURES)
def test_a_whole_image_passes_whatever_stands_around_it(picture, way):
    data = encoded(picture, **way)
    body = data[:-2]
    whole = {
        "without its end marker": body,
        "with half of it": data[:-1],
        "bytes behind it": data + b"a trailer" * 1000,
        "a second picture behind it": data + encoded(noise(40, 30)),
        "zeros to the end of a block": data + bytes(4096),
        "three bytes before it": body + bytes(3) + END,
        "three odd bytes before it": body + b"abc" + END,
        "zeros before it": body + bytes(500) + END,
        "fillers before it": body + b"\xff" * 7 + END,
    }
    for name, odd in whole.items():
        assert verdicts(odd) == ["", ""], name
        pixels = jpeg_pixels(odd)
        assert pixels is not None and np.array_equal(pixels, by_pillow(data)), name


def test_progressive_scans_that_never_came_are_missed():
    data = encoded(PICTURES["photograph"], progressive=True)
    last_scan = data.rindex(b"\xff\xda")
    before = data.rindex(b"\xff\xc4", 0, last_scan)  # its table stands before it
    assert verdicts(data[:before] + END) == ["its last progressive scans are missing: the file ends too early"] * 2


def test_a_blank_page_may_have_long_runs_of_zero_bytes():
    # One symbol in each optimised table: "no change, no coefficients" is a zero bit, the whole image zero bytes.
    data = encoded(Image.new("RGB", (2000, 2000), "white"), optimize=True)
    assert bytes(1000) in data
    assert verdicts(data) == ["", ""]


def test_damage_is_named_with_what_to_do(tmp_path: Path):
    data = encoded(PICTURES["page"])
    (tmp_path / "a.jpg").write_bytes(data[: len(data) // 2] + END)
    ref = ImageRef(path="imgs/a.jpg", file=str(tmp_path / "a.jpg"))
    for judge in (check_image, load_image):
        with pytest.raises(ImageError, match=r"imgs/a\.jpg.*premature end of data.*data\.on_bad_sample=skip"):
            judge(ref, ImageRules())
