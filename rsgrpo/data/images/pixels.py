"""From what an image file holds to the 8-bit RGB pixels that a viewer shows: transparency, depth, colours, orientation.

Everything happens before a page is resized, because resizing palettes or single bits picks pixels instead of
averaging them. Colour profiles are not applied.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rsgrpo.config.image_rules import Colour

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_PIXELS_AT_A_TIME = 2**22  # bounds what scaling takes beside the image
_WHITE = 255
_IDLE_ALPHA = frozenset({"BMP", "DIB", "TGA"})  # writers leave its bytes at 0: viewers then take the picture for opaque
_MAX_16_BIT = 2**16 - 1
_SIGNED, _WHITE_IS_ZERO = 2, 0
_BITS_TAG, _PHOTOMETRIC_TAG, _LARGEST_TAG, _SAMPLE_FORMAT_TAG = 258, 262, 281, 339

ByteArray = NDArray[np.uint8]


def upright(image: Image.Image, orientation: int) -> Image.Image:
    """A picture as a viewer shows it.

    Args:
        image: the image as it is stored.
        orientation: the orientation as EXIF numbers it; 1: there is nothing to do.
    """
    turn = _TURNS.get(orientation)
    return image if turn is None else image.transpose(turn)


def part_of_canvas(image: Image.Image) -> tuple[int, int, int, int] | None:
    """Where a GIF file's first picture lies on a canvas that it leaves partly bare; None: it covers it."""
    if image.format != "GIF" or image.tell():
        return None  # later pictures of an animation come composed
    extent = getattr(image, "dispose_extent", None)
    return None if extent is None or extent == (0, 0, *image.size) else extent


def plain_pixels(image: Image.Image, *, bit_depth: int, background: Colour) -> Image.Image:
    """A decoded image of any mode as ``RGB``, or as ``L`` where it has neither colours nor transparency.

    Args:
        image: the image, decoded.
        bit_depth: the bits of the file's samples, which say what a transparent value of a grey PNG means.
        background: the colour that shows through transparent parts.

    Returns:
        The image with 8 bits a channel. Integers are scaled by their type's range, floats by the data's; a float that
        is no number counts as transparent.
    """
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    has_idle_alpha = image.format in _IDLE_ALPHA
    part = part_of_canvas(image)
    image = _with_alpha(image, bit_depth)
    if part is not None:
        canvas = Image.new(
            "RGBA", image.size
        )  # bare parts are transparent; Pillow gives them the palette's first colour
        canvas.paste(image.convert("RGBA").crop(part), part[:2])
        image = canvas
    if image.mode in ("RGBA", "LA"):
        if has_idle_alpha and image.getextrema()[-1] == (0, 0):
            return image.convert(image.mode.removesuffix("A"))
        return _composed(image, background)
    if image.mode == "1":
        return image.convert("L")
    return image if image.mode in ("L", "RGB") else image.convert("RGB")


def _with_alpha(image: Image.Image, bit_depth: int) -> Image.Image:
    """The image with at most 8 bits a channel, and an alpha channel where parts of it are transparent."""
    key = image.info.get("transparency")
    if image.mode in ("La", "RGBa"):
        return image.convert("LA").convert("RGBA") if image.mode == "La" else image.convert("RGBA")
    if image.mode == "PA" or (image.mode == "P" and image.palette is not None and image.has_transparency_data):
        return image.convert("RGBA")
    if image.mode == "I" or image.mode == "F" or image.mode.startswith("I;16"):
        return _scaled(image, key if isinstance(key, int) else None)
    if image.mode == "L" and _tiff_tag(image, _SAMPLE_FORMAT_TAG, 1) == _SIGNED:
        return image.point([(value + 128) % 256 for value in range(256)])
    if isinstance(key, int) and image.mode in ("1", "L"):
        if image.mode == "L" and image.format == "PNG" and bit_depth < 8:
            key = key * _WHITE // (2**bit_depth - 1)  # Pillow spreads the samples, but not this one
        grey = image.convert("L")
        return _keyed(grey, np.asarray(grey) != key)
    if isinstance(key, tuple) and image.mode == "RGB":
        shift = 8 if bit_depth == 16 else 0  # Pillow keeps the upper half of a 16-bit sample
        colour = np.array([value >> shift for value in key], dtype=np.uint8)
        return _keyed(image, (np.asarray(image) != colour).any(axis=-1))
    return image


def _keyed(image: Image.Image, is_opaque: NDArray[np.bool_]) -> Image.Image:
    solid = image.copy()
    solid.info.pop("transparency", None)
    solid.putalpha(Image.fromarray(np.where(is_opaque, np.uint8(_WHITE), np.uint8(0))))
    return solid


def _composed(image: Image.Image, background: Colour) -> Image.Image:
    canvas = Image.new("RGB", image.size, background)
    canvas.paste(image.convert("RGB"), mask=image.getchannel("A"))
    return canvas


def _scaled(image: Image.Image, key: int | None) -> Image.Image:
    """A deep grey image at 8 bits."""
    values = np.asarray(image)
    scale = _scale_of(image, values)
    grey = np.empty(values.shape, dtype=np.uint8)
    is_opaque = np.ones(values.shape, dtype=bool)
    rows = max(1, _PIXELS_AT_A_TIME // max(1, values.shape[1]))
    for start in range(0, len(values), rows):
        part = values[start : start + rows]
        grey[start : start + rows] = scale(part)
        if image.mode == "F":
            is_opaque[start : start + rows] = ~np.isnan(part)
        elif key is not None:
            is_opaque[start : start + rows] = part != key
    if _tiff_tag(image, _PHOTOMETRIC_TAG, 1) == _WHITE_IS_ZERO:
        np.subtract(_WHITE, grey, out=grey)  # Pillow does so for 8 bits and less only
    plain = Image.fromarray(grey)
    return plain if is_opaque.all() else _keyed(plain, is_opaque)


def _scale_of(image: Image.Image, values: NDArray[Any]) -> Callable[[NDArray[Any]], ByteArray]:
    """How samples of an image become bytes."""
    if image.mode == "F":
        return _between(*_data_range(values))
    bits = int(_tiff_tag(image, _BITS_TAG, 0))
    if image.mode.startswith("I;16"):
        declared = int(_tiff_tag(image, _LARGEST_TAG, 0))
        # 12 bits of a scanner, packed, or in 16 where the file says so.
        is_declared = declared in {2**used - 1 for used in range(9, 16)}
        return _from_table(declared if is_declared else 2**bits - 1 if 8 < bits < 16 else _MAX_16_BIT)
    if bits and _tiff_tag(image, _SAMPLE_FORMAT_TAG, 1) == _SIGNED:
        return _between(*_integer_range(values, -(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1))
    if bits:
        # Pillow has no unsigned 32 bits: the upper half comes as negative numbers.
        unsigned = _between(*_integer_range(values.view(np.uint32), 0.0, 2.0**bits - 1))
        return lambda part: unsigned(part.view(np.uint32))
    if image.format in ("PNG", "PPM"):
        return _between(0.0, _MAX_16_BIT)
    if not image.format and values.size and values.min() >= 0 and values.max() <= _MAX_16_BIT:
        return _between(0.0, _WHITE if values.max() <= _WHITE else _MAX_16_BIT)  # made in memory, by a task
    return _between(*_data_range(values))


def _from_table(largest: int) -> Callable[[NDArray[Any]], ByteArray]:
    steps = np.minimum(np.arange(_MAX_16_BIT + 1, dtype=np.int64), largest)
    table = ((steps * _WHITE * 2 + largest) // (largest * 2)).astype(np.uint8)  # rounded
    return lambda part: table[part.astype(np.uint16, copy=False)]


def _between(low: float, high: float) -> Callable[[NDArray[Any]], ByteArray]:
    """A function from samples to bytes: ``low`` becomes 0, ``high`` 255; others are cut off, what is no number is 0."""

    def scale(part: NDArray[Any]) -> ByteArray:
        # Halves keep the difference finite for floats at both ends of their range.
        share = (part.astype(np.float64) / 2 - low / 2) / (high / 2 - low / 2)
        scaled: ByteArray = np.rint(np.nan_to_num(share.clip(0.0, 1.0), nan=0.0) * _WHITE).astype(np.uint8)
        return scaled

    return scale


def _integer_range(values: NDArray[Any], low: float, high: float) -> tuple[float, float]:
    """The range of the type, or of the data where the type's would make all samples one grey, as small 32-bit ones."""
    least, most = float(values.min()), float(values.max())
    is_wide = values.itemsize > 2 and least < most < least + (high - low) / _WHITE
    return (least, most) if is_wide else (low, high)


def _data_range(values: NDArray[Any]) -> tuple[float, float]:
    """Smallest and largest finite value; of a blank page, a range that leaves 0…1 and 0…255 as they are."""
    low, high = np.inf, -np.inf
    for row in values:
        finite = row[np.isfinite(row)]
        if finite.size:
            low, high = min(low, float(finite.min())), max(high, float(finite.max()))
    if low < high:
        return low, high
    return (0.0, 1.0) if low <= 1.0 or low > high else (0.0, max(low, float(_WHITE)))


def _tiff_tag(image: Image.Image, tag: int, default: int) -> int:
    """The number of a TIFF tag, for the first channel; the default for other formats."""
    if image.format != "TIFF":
        return default
    value = image.tag_v2.get(tag, default)  # type: ignore[attr-defined]
    if isinstance(value, tuple):
        value = value[0] if value else default
    return value if isinstance(value, int) else default
