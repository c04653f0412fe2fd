"""Files with odd notes, missing parts or several pictures, and images that tasks made."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms, PngImagePlugin

from rsgrpo.data.images.counts import ImageCounts, look_at_images
from rsgrpo.data.images.headers import open_image
from rsgrpo.data.images.jpeg import JpegDamageError
from rsgrpo.data.images.loading import check_image, image_from_image, image_size, load_image
from rsgrpo.data.images.sources import ImageError
from rsgrpo.types import ImageRef
from tests.unit.data.images.handmade_images import (
    MODES,
    SAFE,
    chunk,
    encoded,
    exif,
    random_pixels,
    read,
    shown_upright,
    stored,
)


@pytest.mark.parametrize("mode", ["YCbCr", "LAB", "HSV", "CMYK", "La", "RGBa", "PA", "I", "F", "RGBX"])
def test_images_that_a_task_made_come_out_as_rgb(mode):
    image = Image.new("RGB", (6, 4), (200, 30, 60))
    if mode == "LAB":
        profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
        image = ImageCms.profileToProfile(image, *profiles, outputMode="LAB")  # type: ignore[assignment]
    elif mode in ("La", "RGBa"):
        image = image.convert(mode.upper()).convert(mode)
    elif mode == "PA":
        image = image.convert("RGBA").convert("P").convert("PA")
    else:
        image = image.convert(mode)
    found = image_from_image(image, SAFE)
    is_grey = mode in ("La", "I", "F")
    expected = np.full(3, 0.299 * 200 + 0.587 * 30 + 0.114 * 60) if is_grey else np.array([200, 30, 60])
    assert found.mode == "RGB" and found.size == (6, 4)
    assert np.abs(np.asarray(found)[1, 1].astype(int) - expected).max() <= (45 if mode == "PA" else 4)


def test_an_image_from_a_task_is_read_like_its_file(keep):
    for mode in MODES:
        image, _ = stored(mode, 5, 8, 12)
        data = encoded(image, "PNG", exif=exif(6))
        opened = image_from_image(Image.open(io.BytesIO(data)), SAFE)
        assert np.array_equal(np.asarray(opened), read(keep, data)), mode


def test_a_jpeg_with_a_hole_is_refused_from_a_task_as_from_its_file():
    generator = np.random.default_rng(0)
    data = encoded(Image.fromarray(generator.integers(0, 256, (64, 64, 3), dtype=np.uint8)), "JPEG")
    image_from_image(Image.open(io.BytesIO(data)), SAFE)
    middle = len(data) * 2 // 3
    holed = data[:middle] + bytes(200) + data[middle + 200 :]
    with pytest.raises(JpegDamageError):
        image_from_image(Image.open(io.BytesIO(holed)), SAFE)


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "WEBP", "PNG"])
def test_of_several_pictures_the_first_is_read_and_the_others_are_counted(keep, kind):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
    assert np.abs(read(keep, data) - [255, 0, 0]).max() <= 2
    assert open_image(data).facts.num_frames == 3


@pytest.mark.parametrize("place", ["profile", "text", "packed text", "international text"])
def test_a_png_with_large_notes_is_read(keep, place):
    image, expected = stored("RGB", 3, 5, 6)
    notes = PngImagePlugin.PngInfo()
    large = "x" * 90_000_000 if place == "text" else "x" * 3_000_000
    if place == "international text":
        notes.add_itxt("Comment", large, zip=True)
    elif place != "profile":
        notes.add_text("Comment", large, zip=place == "packed text")
    profile = {"icc_profile": bytes(3_000_000)} if place == "profile" else {}
    data = encoded(image, "PNG", pnginfo=notes, exif=exif(3), **profile)
    assert np.array_equal(read(keep, data), shown_upright(expected, 3))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_a_broken_profile_or_broken_exif_costs_nothing(keep, kind):
    image = Image.new("L" if kind == "TIFF" else "RGB", (6, 5), "white")
    broken = b"Exif\0\0II*\0\xff\xff\xff\x7f"
    data = encoded(image, kind, icc_profile=b"no profile", **({} if kind == "TIFF" else {"exif": broken}))
    assert (read(keep, data) >= 253).all()


def test_orientation_is_found_where_imagemagick_and_adobe_write_it(keep):
    image, expected = stored("RGB", 3, 5, 6)
    block = exif(8).tobytes()
    hexadecimal = f"\nexif\n{len(block):8}\n" + block.hex()
    for name, text in {
        "Raw profile type exif": hexadecimal,
        "XML:com.adobe.xmp": '<rdf:Description tiff:Orientation="8"/>',
    }.items():
        notes = PngImagePlugin.PngInfo()
        if name.startswith("XML"):
            notes.add_itxt(name, text)
        else:
            notes.add_text(name, text, zip=True)
        found = read(keep, encoded(image, "PNG", pnginfo=notes))
        assert np.array_equal(found, shown_upright(expected, 8)), name


def test_what_was_changed_is_counted(tmp_path: Path):
    refs = []
    for index, (mode, orientation) in enumerate([("RGB", 1), ("RGB", 6), ("RGBA", 1), ("I;16", 3), ("P", 1), ("1", 1)]):
        (tmp_path / f"{index}.png").write_bytes(encoded(stored(mode, 1, 4, 5)[0], "PNG", exif=exif(orientation)))
        refs.append(ImageRef(path=f"{index}.png", file=str(tmp_path / f"{index}.png")))
    refs.append(ImageRef(path="gone.png", file=str(tmp_path / "gone.png")))
    broken, counts = look_at_images(refs + refs[:1], SAFE)
    assert list(broken) == refs[-1:]
    assert counts.document() == {
        "read": 6,
        "oriented": 2,
        "composed": 1,
        "depth_scaled": 1,
        "converted": 2,
        "first_frame_only": 0,
        "kinds": {"PNG 1": 1, "PNG I;16": 1, "PNG P": 1, "PNG RGB": 2, "PNG RGBA": 1},
    }
    assert counts.lines() == [
        "6 images: 2 turned upright, 1 with transparency put on data.background, 1 brought down to 8 bits, 2 converted",
        "  to RGB",
    ]
    assert ImageCounts.total([counts, counts]).document()["read"] == 12
    assert ImageCounts().lines() == []


XMP_ON_ITS_SIDE = b'<rdf:Description tiff:Orientation="6"/>'


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "PNG"])
def test_orientation_in_xmp_counts_where_exif_gives_none(keep, kind):
    camera = Image.Exif()
    camera[0x010F] = "maker"  # EXIF without orientation
    pixels = np.zeros((16, 32, 3), dtype=np.uint8)
    pixels[:, 16:] = 255  # right half white: on its side by 6, the lower half of the upright page
    text = PngImagePlugin.PngInfo()
    text.add_itxt("XML:com.adobe.xmp", XMP_ON_ITS_SIDE.decode())
    settings: dict[str, Any] = {"pnginfo": text} if kind == "PNG" else {"xmp": XMP_ON_ITS_SIDE, "quality": 100}
    found = read(keep, encoded(Image.fromarray(pixels), kind, exif=camera, **settings))
    assert found.shape == (32, 16, 3)
    assert found[:15].max() < 20
    assert found[17:].min() > 235
    camera[0x0112] = 1  # where EXIF speaks, it counts
    assert read(keep, encoded(Image.fromarray(pixels), kind, exif=camera, **settings)).shape == (16, 32, 3)


def test_a_tiff_file_that_xmp_turns_is_not_squeezed(keep):
    pixels = random_pixels(7, 16, 32, 3)
    ref = keep(encoded(Image.fromarray(pixels), "TIFF", tiffinfo={700: XMP_ON_ITS_SIDE}))
    assert image_size(ref, SAFE) == (16, 32)
    assert np.array_equal(np.asarray(load_image(ref, SAFE)), np.rot90(pixels, -1))


def test_an_alpha_channel_that_was_never_filled_does_not_hide_the_picture(keep):
    header = struct.pack("<BBBHHBHHHHBB", 0, 0, 2, 0, 0, 0, 0, 0, 2, 1, 32, 0x20)
    assert read(keep, header + bytes([0, 0, 255, 0, 255, 0, 0, 0])).tolist() == [[[255, 0, 0], [0, 0, 255]]]
    # With one opaque pixel the channel means something: the other pixel shows the background.
    assert read(keep, header + bytes([0, 0, 255, 255, 255, 0, 0, 0])).tolist() == [[[255, 0, 0], [255] * 3]]


@pytest.mark.parametrize(
    ("pixels", "problem"),
    [
        (b"", "its pixels are missing"),
        (zlib.compress(bytes(13))[2:], "not packed as PNG packs them"),
    ],
)
def test_a_png_file_without_pixels_is_named_before_a_run(keep, pixels, problem):
    head = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 1, 8, 2, 0, 0, 0))
    ref = keep(head + (chunk(b"IDAT", pixels) if pixels else b"") + chunk(b"IEND", b""))
    with pytest.raises(ImageError, match=problem):
        check_image(ref, SAFE)


def test_whatever_a_reader_of_pillow_raises_is_a_damaged_image(keep):
    head = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 1, 8, 3, 0, 0, 0))
    without_palette = head + chunk(b"IDAT", zlib.compress(bytes(5))) + chunk(b"IEND", b"")
    avif = encoded(Image.fromarray(random_pixels(1, 64, 64, 3)), "AVIF")
    start = avif.index(b"mdat") + 4
    no_pixels = avif[:start] + bytes(len(avif) - start)
    for data in (without_palette, no_pixels):
        for look in (check_image, load_image):
            with pytest.raises(ImageError, match="truncated or damaged"):
                look(keep(data), SAFE)


def test_a_cmyk_photo_without_its_end_marker_is_read(keep):
    data = encoded(Image.new("CMYK", (32, 16), (0, 255, 255, 0)), "JPEG", quality=95)
    whole = read(keep, data)
    ref = keep(data[:-2])
    assert check_image(ref, SAFE).format == "JPEG"
    assert np.array_equal(np.asarray(load_image(ref, SAFE)), whole)


@pytest.mark.parametrize("is_interlaced", [False, True])
@pytest.mark.parametrize(("depth", "colour"), [(8, 2), (8, 6), (1, 0), (4, 3), (16, 0)])
def test_a_png_file_that_packs_too_few_rows_is_refused_and_a_black_page_is_not(keep, depth, colour, is_interlaced):
    # 9 × 11 pixels, all zero. By rows: 11 of 1 + 9 n bits; interlaced by Adam7: passes of 2×2, 1×2, 3×1, 2×3, 5×3, 4×6
    # and 9×5 pixels.
    bits = depth * {0: 1, 2: 3, 3: 1, 6: 4}[colour]
    sizes = [(2, 2), (1, 2), (3, 1), (2, 3), (5, 3), (4, 6), (9, 5)] if is_interlaced else [(9, 11)]
    rows = b"".join(bytes(1 + -(-columns * bits // 8)) * count for columns, count in sizes)
    palette = ((b"PLTE", bytes(48)),) if colour == 3 else ()

    def written(body: bytes) -> bytes:
        header = struct.pack(">IIBBBBB", 9, 11, depth, colour, 0, 0, is_interlaced)
        parts = [(b"IHDR", header), *palette, (b"IDAT", zlib.compress(body)), (b"IEND", b"")]
        return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(name, content) for name, content in parts)

    assert not read(keep, written(rows)).any() or colour == 6  # zero alpha shows the white background
    one_less = rows[: -(1 + -(-9 * bits // 8))]
    for cut in (one_less, rows[: len(rows) // 2]):
        with pytest.raises(ImageError, match="truncated or damaged"):
            load_image(keep(written(cut)), SAFE)
