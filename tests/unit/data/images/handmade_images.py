"""Image files made by hand, and what a viewer would show of them."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rsgrpo.config.image_rules import ImageRules
from rsgrpo.data.images.loading import check_image, image_size, load_image
from rsgrpo.types import ImageRef

Pixels = NDArray[Any]


WHITE = (255, 255, 255)


SAFE = ImageRules()


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


def read(keep: Callable[[bytes], ImageRef], data: bytes, rules: ImageRules = SAFE) -> Pixels:
    ref = keep(data)
    image = load_image(ref, rules)
    facts = check_image(ref, rules)
    assert image.mode == "RGB" and not image.info and not image.getexif()  # nobody turns it once more
    assert image.size == image_size(ref, rules) == (facts.width, facts.height)
    return np.asarray(image).astype(int)


def exif(orientation: int) -> Image.Exif:
    block = Image.Exif()
    block[0x0112] = orientation
    return block


MODES = ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"]


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
