"""Page images: read from a file or from ``images.parquet``, brought to size, or refused by name.

Trainer and engines both get their pages from ``load_page``, so that both see the same pixels.
"""

from __future__ import annotations

import io
import math

from PIL import Image, ImageFile, UnidentifiedImageError

from rsgrpo.image_bytes import ImageError, image_place, page_bytes
from rsgrpo.types import ImageRef

MAX_ASPECT_RATIO = 200
"""Qwen2.5-VL's processor refuses longer strips; the EVisRAG resize rule would blow them up first (1×5000: 7×36203)."""

_JPEG_END = b"\xff\xd9"
_JPEG_TAIL_BYTES = 64  # some writers leave a few bytes behind the end marker


def resized_size(width: int, height: int, min_pixels: int | None, max_pixels: int | None) -> tuple[int, int]:
    """Size of a page after the EVisRAG resize rule: first down to ``max_pixels``, then up to ``min_pixels``.

    Both sides are scaled by ``sqrt(bound / area)`` and truncated, each time on the size before.

    Args:
        width: of the page, in pixels.
        height: of the page, in pixels.
        min_pixels: smallest area; None: no bound.
        max_pixels: largest area; None: no bound.

    Returns:
        Width and height.

    Example:
        ``resized_size(2000, 1000, 262144, 1568000)`` is ``(1770, 885)``; 100×100 becomes 512×512.
    """
    if max_pixels is not None and width * height > max_pixels:
        factor = math.sqrt(max_pixels / (width * height))
        width, height = int(width * factor), int(height * factor)
    if min_pixels is not None and 0 < width * height < min_pixels:
        factor = math.sqrt(min_pixels / (width * height))
        width, height = int(width * factor), int(height * factor)
    return width, height


def resize_page(image: Image.Image, min_pixels: int | None, max_pixels: int | None) -> Image.Image:
    """Apply ``resized_size``, then convert to RGB (in this order, as the EVisRAG code does)."""
    size = resized_size(image.width, image.height, min_pixels, max_pixels)
    if size != image.size:
        image = image.resize(size)
    return image if image.mode == "RGB" else image.convert("RGB")


def load_page(ref: ImageRef, min_pixels: int | None, max_pixels: int | None) -> Image.Image:
    """Read a page and bring it to size.

    Args:
        ref: where it lies.
        min_pixels: smaller pages are scaled up to this area; None: no bound.
        max_pixels: larger pages are scaled down to this area; None: no bound.

    Returns:
        An RGB image, fully decoded.

    Raises:
        ImageError: the page is missing, truncated, no image, a strip longer than ``MAX_ASPECT_RATIO``
            to 1, or so small a ``max_pixels`` that nothing is left of it.
    """
    with _open_page(ref) as image:
        _check_shape(ref, image)
        try:
            _decode(image)
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise _broken(ref, error) from error
        width, height = resized_size(image.width, image.height, min_pixels, max_pixels)
        if not width * height:
            raise ImageError(
                f"image {ref.path!r} ({image.width}×{image.height}) has no pixels left at max_pixels={max_pixels}; "
                "raise data.max_pixels"
            )
        return resize_page(image, min_pixels, max_pixels).copy()


def page_size(ref: ImageRef, min_pixels: int | None, max_pixels: int | None) -> tuple[int, int]:
    """Width and height that ``load_page`` would give, from the file's header alone.

    Args:
        ref: where the page lies.
        min_pixels: as for ``load_page``.
        max_pixels: likewise.

    Raises:
        ImageError: the page is missing or no image.
    """
    with _open_page(ref) as image:
        return resized_size(image.width, image.height, min_pixels, max_pixels)


def check_page(ref: ImageRef) -> None:
    """Find out whether a page can be read, without decoding its pixels where the format allows it.

    PNG files are verified by their checksums and JPEG files by their end marker; others are decoded.

    Args:
        ref: where the page lies.

    Raises:
        ImageError: as ``load_page``.
    """
    data = page_bytes(ref)
    with _open_bytes(ref, data) as image:
        _check_shape(ref, image)
        is_whole_jpeg = image.format == "JPEG" and _JPEG_END in data[-_JPEG_TAIL_BYTES:]
        try:
            if image.format == "PNG":
                image.verify()
            elif not is_whole_jpeg:
                _decode(image)
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise _broken(ref, error) from error


def _open_page(ref: ImageRef) -> Image.Image:
    return _open_bytes(ref, page_bytes(ref))


def _open_bytes(ref: ImageRef, data: bytes) -> Image.Image:
    try:
        return Image.open(io.BytesIO(data))
    except UnidentifiedImageError as error:
        raise ImageError(
            f"image {ref.path!r} ({image_place(ref)}, {len(data)} bytes) is not an image file; "
            "replace it, or set data.on_bad_sample=skip"
        ) from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise _broken(ref, error) from error


def _decode(image: Image.Image) -> None:
    """Decode all of it, whatever other libraries chose for the process.

    lmms-eval lets Pillow fill what is missing of a truncated file with grey; a page must not lose its
    evidence like that.
    """
    chosen = ImageFile.LOAD_TRUNCATED_IMAGES
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    try:
        image.load()
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = chosen


def _check_shape(ref: ImageRef, image: Image.Image) -> None:
    width, height = image.size
    if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
        raise ImageError(
            f"image {ref.path!r} is {width}×{height}, a strip longer than {MAX_ASPECT_RATIO} to 1, which Qwen2.5-VL "
            "does not read; cut it into pages, or set data.on_bad_sample=skip"
        )


def _broken(ref: ImageRef, error: Exception) -> ImageError:
    return ImageError(
        f"image {ref.path!r} ({image_place(ref)}) is truncated or damaged: {error}; "
        "replace it, or set data.on_bad_sample=skip"
    )
