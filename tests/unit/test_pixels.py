"""Whatever a file holds, the page looks as in a viewer: an oracle in numpy over mode, orientation, depth and format."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageDraw, PngImagePlugin

from rsgrpo.image_bytes import ImageError
from rsgrpo.image_counts import ImageCounts, look_at_pages
from rsgrpo.image_files import open_page
from rsgrpo.images import check_page, load_page, page_from_image, page_size
from rsgrpo.jpeg import JpegDamageError
from rsgrpo.page_rules import PageRules
from rsgrpo.types import ImageRef
from tests.examples import examples

Pixels = NDArray[Any]

WHITE = (255, 255, 255)
SAFE = PageRules()


@pytest.fixture(scope="module")
def keep(tmp_path_factory: pytest.TempPathFactory) -> Callable[[bytes], ImageRef]:
    """Puts bytes into a file; the next ones go over them."""
    file = tmp_path_factory.mktemp("pages") / "page"

    def put(data: bytes) -> ImageRef:
        file.write_bytes(data)
        return ImageRef(path="page", file=str(file))

    return put


def encoded(image: Image.Image, kind: str, **settings: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **settings)
    return buffer.getvalue()


def random_pixels(seed: int, height: int, width: int, channels: int, dtype: type = np.uint8) -> Pixels:
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, shape, dtype=dtype, endpoint=True)


def shown_upright(pixels: Pixels, orientation: int) -> Pixels:
    """By the EXIF standard: where row 0 and column 0 of the stored pixels lie on the page that is seen."""
    by_value: dict[int, Callable[[Pixels], Pixels]] = {
        1: lambda p: p,
        2: lambda p: p[:, ::-1],  # top, right
        3: lambda p: p[::-1, ::-1],  # bottom, right
        4: lambda p: p[::-1],  # bottom, left
        5: lambda p: p.swapaxes(0, 1),  # left, top
        6: lambda p: p.swapaxes(0, 1)[:, ::-1],  # right, top
        7: lambda p: p[::-1, ::-1].swapaxes(0, 1),  # right, bottom
        8: lambda p: p.swapaxes(0, 1)[::-1],  # left, bottom
    }
    return by_value[orientation](pixels)


def on(background: tuple[int, int, int], colours: Pixels, alpha: Pixels) -> Pixels:
    share = alpha[..., None].astype(float) / 255
    return np.rint(colours.astype(float) * share + np.array(background) * (1 - share))


def read(keep: Callable[[bytes], ImageRef], data: bytes, rules: PageRules = SAFE) -> Pixels:
    ref = keep(data)
    image = load_page(ref, rules)
    facts = check_page(ref, rules)
    assert image.mode == "RGB" and not image.info and not image.getexif()  # nobody turns it once more
    assert image.size == page_size(ref, rules) == (facts.width, facts.height)
    return np.asarray(image).astype(int)


def exif(orientation: int) -> Image.Exif:
    block = Image.Exif()
    block[0x0112] = orientation
    return block


MODES = ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"]
FORMATS = {"PNG": MODES, "TIFF": MODES, "WEBP": ["RGB", "RGBA"], "AVIF": ["RGB"], "JPEG": ["L", "RGB", "CMYK"]}

LOSSLESS: dict[str, dict[str, Any]] = {
    "WEBP": {"lossless": True, "exact": True},
    "AVIF": {"quality": 100, "subsampling": "4:4:4"},
}


def stored(mode: str, seed: int, height: int, width: int) -> tuple[Image.Image, Pixels]:
    """An image of a mode, and what a viewer shows of it on white, lying as it is stored."""
    if mode == "1":
        bits = random_pixels(seed, height, width, 1) > 127
        return Image.fromarray(bits), np.repeat(np.where(bits, 255, 0)[..., None], 3, axis=2)
    if mode == "P":
        palette, indexes = random_pixels(seed + 1, 256, 3, 1), random_pixels(seed, height, width, 1)
        image = Image.fromarray(indexes, "L").convert("P")
        image = Image.frombytes("P", image.size, indexes.tobytes())
        image.putpalette(palette.tobytes())
        return image, palette[indexes]
    if mode == "I;16":
        deep = random_pixels(seed, height, width, 1, np.uint16)
        return Image.fromarray(deep), np.repeat(np.rint(deep / 257)[..., None], 3, axis=2)
    channels = {"L": 1, "LA": 2, "RGB": 3, "RGBA": 4, "CMYK": 4}[mode]
    pixels = random_pixels(seed, height, width, channels)
    image = Image.frombytes(mode, (width, height), pixels.tobytes())
    if mode == "L":
        return image, np.repeat(pixels[..., None], 3, axis=2)
    if mode == "LA":
        return image, on(WHITE, np.repeat(pixels[..., :1], 3, axis=2), pixels[..., 1])
    if mode == "RGBA":
        return image, on(WHITE, pixels[..., :3], pixels[..., 3])
    if mode == "CMYK":
        inks = 255 - pixels.astype(int)
        return image, np.rint(inks[..., :3] * inks[..., 3:] / 255)
    return image, pixels


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
    rules = PageRules(max_pixels=1000)
    ref = keep(encoded(image, "PNG", exif=exif(orientation)))
    plain = Image.fromarray(shown_upright(expected, orientation).astype(np.uint8))
    resized = plain.resize(page_size(ref, rules), Image.Resampling.BICUBIC)
    assert np.abs(np.asarray(load_page(ref, rules)).astype(int) - np.asarray(resized)).max() <= 1


@pytest.mark.parametrize("mode", ["1", "L", "P"])
def test_hairlines_of_a_scan_survive_being_made_smaller(keep, mode):
    # 310 lines of one pixel, 300 dpi, brought down by sqrt(1568000 / (2550 · 3300)) = 0.43
    page = Image.new("L", (2550, 3300), 255)
    draw = ImageDraw.Draw(page)
    for top in range(100, 3200, 10):
        draw.line([100, top, 2400, top], fill=0)
    read_page = load_page(keep(encoded(page.convert(mode), "PNG")), PageRules(min_pixels=3136, max_pixels=1568000))
    is_line = np.asarray(read_page)[:, 550, 0] < 220
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
    found = read(keep, encoded(image, "PNG"), PageRules(background=background))
    assert np.abs(found - on(background, colours, pixels[..., -1])).max() <= 1


def chunk(name: bytes, body: bytes) -> bytes:
    """Of a PNG file."""
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(width: int, height: int, depth: int, colour: int, rows: bytes, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG file of unfiltered rows; chunks stand before the pixels."""

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    stride = len(rows) // height
    filtered = b"".join(b"\0" + rows[start : start + stride] for start in range(0, len(rows), stride))
    middle = b"".join(chunk(name, body) for name, body in chunks)
    pixels = chunk(b"IDAT", zlib.compress(filtered)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + middle + pixels


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_one_grey_value_of_a_png_may_be_transparent(keep, depth):
    # The key is black, 0; a page of it is therefore white, and the largest sample is white by itself.
    row = {1: b"\x0f", 2: b"\x0f", 4: b"\x0f", 8: b"\x00\xff", 16: b"\0\0\xff\xff"}[depth]
    width = {1: 8, 2: 4, 4: 2, 8: 2, 16: 2}[depth]
    assert (read(keep, png(width, 1, depth, 0, row, (b"tRNS", b"\0\0"))) == 255).all()
    # With white as the key on a black background, all of it is black.
    key = struct.pack(">H", 2**depth - 1)
    found = read(keep, png(width, 1, depth, 0, row, (b"tRNS", key)), PageRules(background=(0, 0, 0)))
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
    page = Image.new("RGBA", (40, 30))
    ImageDraw.Draw(page).rectangle([5, 5, 20, 10], fill="black")
    found = read(keep, encoded(page.quantize(8), "PNG"))
    assert found[0, 0].tolist() == [255] * 3 and found[7, 10].tolist() == [0] * 3


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
    page = (RAMP // 16).astype(np.uint16)  # up to 4095
    declared = read(keep, tiff(page, tag_281=4095))
    assert np.array_equal(declared[..., 0], np.rint(page / 4095 * 255))
    assert np.array_equal(read(keep, tiff(page))[..., 0], np.rint(page / 257))  # else they are 16 bits


@pytest.mark.parametrize("order", ["<", ">"])
def test_floats_are_scaled_by_their_data(keep, order):
    values = np.array([[-3.0, 0.0, 5.0], [1.0, np.inf, -np.inf]], dtype=np.float32)
    # From -3 to 5: 0 is 3/8 of 255 = 95.6, 1 is a half, 127.5; infinities are cut off.
    found = read(keep, tiff(values, order=order, sample_format=3))[..., 0]
    assert np.abs(found - [[0, 95.6, 255], [127.5, 255, 0]]).max() <= 0.5


def test_a_float_that_is_no_number_counts_as_transparent(keep):
    values = np.array([[0.0, np.nan, 1.0]], dtype=np.float32)
    found = read(keep, tiff(values, sample_format=3), PageRules(background=(10, 20, 30)))
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
    found = page_from_image(image, SAFE)
    is_grey = mode in ("La", "I", "F")
    expected = np.full(3, 0.299 * 200 + 0.587 * 30 + 0.114 * 60) if is_grey else np.array([200, 30, 60])
    assert found.mode == "RGB" and found.size == (6, 4)
    assert np.abs(np.asarray(found)[1, 1].astype(int) - expected).max() <= (45 if mode == "PA" else 4)


def test_an_image_from_a_task_is_read_like_its_file(keep):
    for mode in MODES:
        image, _ = stored(mode, 5, 8, 12)
        data = encoded(image, "PNG", exif=exif(6))
        opened = page_from_image(Image.open(io.BytesIO(data)), SAFE)
        assert np.array_equal(np.asarray(opened), read(keep, data)), mode


def test_a_jpeg_with_a_hole_is_refused_from_a_task_as_from_its_file():
    generator = np.random.default_rng(0)
    data = encoded(Image.fromarray(generator.integers(0, 256, (64, 64, 3), dtype=np.uint8)), "JPEG")
    page_from_image(Image.open(io.BytesIO(data)), SAFE)
    middle = len(data) * 2 // 3
    holed = data[:middle] + bytes(200) + data[middle + 200 :]
    with pytest.raises(JpegDamageError):
        page_from_image(Image.open(io.BytesIO(holed)), SAFE)


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "WEBP", "PNG"])
def test_of_several_pictures_the_first_is_read_and_the_others_are_counted(keep, kind):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
    assert np.abs(read(keep, data) - [255, 0, 0]).max() <= 2
    assert open_page(data).facts.num_frames == 3


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
    broken, counts = look_at_pages(refs + refs[:1], SAFE)
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
    assert page_size(ref, SAFE) == (16, 32)
    assert np.array_equal(np.asarray(load_page(ref, SAFE)), np.rot90(pixels, -1))


def test_an_alpha_channel_that_was_never_filled_does_not_hide_the_picture(keep):
    header = struct.pack("<BBBHHBHHHHBB", 0, 0, 2, 0, 0, 0, 0, 0, 2, 1, 32, 0x20)
    assert read(keep, header + bytes([0, 0, 255, 0, 255, 0, 0, 0])).tolist() == [[[255, 0, 0], [0, 0, 255]]]
    # With one opaque pixel the channel means something: the other pixel shows the background.
    assert read(keep, header + bytes([0, 0, 255, 255, 255, 0, 0, 0])).tolist() == [[[255, 0, 0], [255] * 3]]


def test_small_numbers_in_32_bits_do_not_become_one_grey(keep):
    # 0 to 64974 is less than a 255th of 2**32: by the type's range all were 128. By the data's: a 65536th each.
    values = RAMP.astype(np.int32)
    expected = np.rint(RAMP / RAMP.max() * 255)
    assert np.array_equal(read(keep, tiff(values, sample_format=2))[..., 0], expected)
    assert np.array_equal(read(keep, tiff(values.astype(np.uint32)))[..., 0], expected)
    assert (read(keep, tiff(np.full((3, 3), 2**31 - 1, dtype=np.int32), sample_format=2)) == 255).all()


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
        check_page(ref, SAFE)


def test_whatever_a_reader_of_pillow_raises_is_a_damaged_image(keep):
    head = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 1, 8, 3, 0, 0, 0))
    without_palette = head + chunk(b"IDAT", zlib.compress(bytes(5))) + chunk(b"IEND", b"")
    avif = encoded(Image.fromarray(random_pixels(1, 64, 64, 3)), "AVIF")
    start = avif.index(b"mdat") + 4
    no_pixels = avif[:start] + bytes(len(avif) - start)
    for data in (without_palette, no_pixels):
        for look in (check_page, load_page):
            with pytest.raises(ImageError, match="truncated or damaged"):
                look(keep(data), SAFE)


def test_a_cmyk_photo_without_its_end_marker_is_read(keep):
    data = encoded(Image.new("CMYK", (32, 16), (0, 255, 255, 0)), "JPEG", quality=95)
    whole = read(keep, data)
    ref = keep(data[:-2])
    assert check_page(ref, SAFE).format == "JPEG"
    assert np.array_equal(np.asarray(load_page(ref, SAFE)), whole)


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
            load_page(keep(written(cut)), SAFE)
