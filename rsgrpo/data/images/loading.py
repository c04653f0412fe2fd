"""The one way from an image file to the pixels that a model sees.

    bytes -> opened and judged -> 8 bits, colours -> upright -> resized -> RGB
             (image_files, jpeg,  transparency on     (all     (EVisRAG's
              png)                a background         eight)    rule)
                                  (pixels)

Trainer, engines, servers, caches, benchmarks and reports get their pages from ``load_image``, and sizes from
``image_size``, so that all of them see the same. ``check_image`` says beforehand whether a page can be read, and what
reading will change about it.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from importlib.metadata import version

from PIL import Image, ImageFile
from PIL import __version__ as pillow_version

from rsgrpo.config.image_rules import ImageRules
from rsgrpo.data.images.headers import (
    DECODING_ERRORS,
    SIDEWAYS,
    ImageFacts,
    NoImageError,
    OpenImage,
    decode,
    open_image,
    read_facts,
)
from rsgrpo.data.images.jpeg import END_MARKER, check_jpeg, jpeg_pixels
from rsgrpo.data.images.known_images import KNOWN_IMAGES, content_digest
from rsgrpo.data.images.pixels import plain_pixels, upright
from rsgrpo.data.images.png import check_rows
from rsgrpo.data.images.sources import ImageError, image_bytes, image_file, image_place, image_stamp
from rsgrpo.errors import shown
from rsgrpo.types import ImageRef

SKIP_ADVICE = ", or set data.on_bad_sample=skip"
"""How what is wrong with an image ends; who passes over such images anyway takes it off."""

MAX_ASPECT_RATIO = 200
"""The longest strip, as the ratio of its sides: Qwen2.5-VL's processor refuses longer ones, and the EVisRAG resize rule
would blow them up first (1×5000: 7×36203)."""

_LARGE_PIXELS = 50_000_000
"""Pixels of a large file: such files are read one at a time, and JPEG ones smaller where that suffices, since they take
much memory."""
_REDUCED_FACTOR = 2  # a JPEG decoded smaller keeps at least this many times the wanted width and height
_SHOWN_CHARACTERS = 120  # of a path or a library's complaint in a message

_large = threading.Lock()


def resized_size(width: int, height: int, min_pixels: int | None, max_pixels: int | None) -> tuple[int, int]:
    """Size of a page after the EVisRAG resize rule: first down to ``max_pixels``, then up to ``min_pixels``.

    Both sides are scaled by ``sqrt(bound / area)`` and truncated, each time on the size before.

    Args:
        width: the width of the image, in pixels.
        height: the height of the image, in pixels.
        min_pixels: the smallest area, in pixels; None: no bound.
        max_pixels: the largest area, in pixels; None: no bound.

    Returns:
        Width and height in pixels.

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


def load_image(ref: ImageRef, rules: ImageRules) -> Image.Image:
    """Read a page as a model sees it.

    Args:
        ref: the image, which says where it lies.
        rules: the bounds of its size, and the background.

    Returns:
        An RGB image, upright, fully decoded.

    Raises:
        ImageError: the page is missing, cut, damaged, no image, too large, a strip longer than
            ``MAX_ASPECT_RATIO`` to 1, or so small a ``max_pixels`` that nothing is left of it.

    Example:
        ``load_image(sample.images[0], config.data.image_rules).size``
    """
    opened = _open(ref, image_bytes(ref), rules)
    return _pixels(ref, opened, rules, _final_size(ref, opened.facts, rules))


def read_image(ref: ImageRef, rules: ImageRules) -> Image.Image:
    """Read a page in its own size, whatever its proportions: for people, or to be put on a larger sheet.

    Args:
        ref: the image, which says where it lies.
        rules: the rules, of which only the background is applied, not the bounds of the size.

    Returns:
        An RGB image, upright, fully decoded.

    Raises:
        ImageError: the page is missing, cut, damaged, no image, or too large.
    """
    opened = _open(ref, image_bytes(ref), rules)
    return _pixels(ref, opened, rules, (opened.facts.width, opened.facts.height))


def image_size(ref: ImageRef, rules: ImageRules) -> tuple[int, int]:
    """Width and height that ``load_image`` would give, from the file's header alone.

    Args:
        ref: the image, which says where it lies.
        rules: the bounds of its size.

    Raises:
        ImageError: the page is missing, no image, or has a size that ``load_image`` refuses.
    """
    return _final_size(ref, image_facts(ref, rules), rules)


def reading_fingerprint(rules: ImageRules) -> str:
    """Everything but its bytes that a page's pixels depend on: part of the key of whatever is stored about pages.

    Args:
        rules: the rules that ``load_image`` is called with.
    """
    return f"{rules.fingerprint}/{decoders_fingerprint()}"


def decoders_fingerprint() -> str:
    """The libraries that turn bytes into pixels, with their versions."""
    return f"pillow {pillow_version}/simplejpeg {version('simplejpeg')}"


def image_facts(ref: ImageRef, rules: ImageRules) -> ImageFacts:
    """What a page's header says; nothing is read where ``check_image`` did so before.

    Args:
        ref: the image, which says where it lies.
        rules: the rules; files with more megapixels than they allow are refused.

    Raises:
        ImageError: the page is missing or no image.
    """
    facts = KNOWN_IMAGES.facts(ref)
    if facts is None:
        with image_file(ref) as file, _named(ref):
            facts = read_facts(file)
    _check_area(ref, facts, rules)
    return facts


def check_image(ref: ImageRef, rules: ImageRules) -> ImageFacts:
    """Find out whether a page can be read, decoding no more of it than that takes.

    A file that was found to be whole is not read again until its size or time changes, and a content that was is not
    decoded again wherever it lies. PNG files are judged by their checksums; JPEG files have their codes read, but
    hardly any pixels made of them; others are decoded.

    Args:
        ref: the image, which says where it lies.
        rules: the rules that ``load_image`` will be called with.

    Returns:
        What the page's header says.

    Raises:
        ImageError: the page cannot be read, as in :func:`load_image`.
    """
    facts = KNOWN_IMAGES.facts(ref)
    if facts is None:
        stamp, data = image_stamp(ref), image_bytes(ref)
        digest = content_digest(data)
        facts = KNOWN_IMAGES.facts_of(digest) or _checked(ref, data, rules)
        KNOWN_IMAGES.learn(ref, stamp, digest, facts)
    _check_area(ref, facts, rules)
    _final_size(ref, facts, rules)
    return facts


def _checked(ref: ImageRef, data: bytes, rules: ImageRules) -> ImageFacts:
    """What the header of a whole file says."""
    opened = _open(ref, data, rules, check=True)
    _final_size(ref, opened.facts, rules)
    if opened.facts.format != "PNG":
        with _named(ref), _turn(opened.facts):
            if not (opened.facts.format == "JPEG" and check_jpeg(opened.data)):
                decode(opened.image)
    return opened.facts


def image_from_image(image: Image.Image, rules: ImageRules) -> Image.Image:
    """An image that another library opened or made, as ``read_image`` would give it from a file.

    Args:
        image: an image of any mode; its EXIF orientation is applied.
        rules: the rules, of which the background is applied.

    Returns:
        An RGB image, upright.

    Raises:
        Exception: an exception of Pillow for damaged files, or JpegDamageError, if the image was not decoded yet.
    """
    is_turned = image.format == "TIFF"  # Pillow turns these itself when it decodes
    if isinstance(image, ImageFile.ImageFile):
        if image.format == "JPEG" and image.fp is not None:  # None: it was decoded before
            image.fp.seek(0)  # Pillow's decoder goes where it has to by itself
            check_jpeg(image.fp.read())
        decode(image)
    try:
        orientation = 1 if is_turned else image.getexif().get(0x0112, 1)
    except Exception:  # whatever Pillow stumbles on in a note must not cost the picture
        orientation = 1
    plain = plain_pixels(image, bit_depth=8, background=rules.background)
    turned = upright(plain, orientation)
    return _bare(turned.copy() if turned is image else turned)


def _open(ref: ImageRef, data: bytes, rules: ImageRules, *, check: bool = False) -> OpenImage:
    with _named(ref):
        opened = open_image(data, check=check)
    _check_area(ref, opened.facts, rules)
    return opened


def _check_area(ref: ImageRef, facts: ImageFacts, rules: ImageRules) -> None:
    megapixels = facts.num_pixels / 1e6
    if megapixels > rules.max_megapixels:
        raise ImageError(
            f"{_name(ref)} has {facts.width}×{facts.height} pixels, {megapixels:.0f} megapixels; the limit "
            f"is data.max_image_megapixels={rules.max_megapixels:g}: raise it (a megapixel takes up to 10 MB), "
            f"make the image smaller{SKIP_ADVICE}"
        )


def _final_size(ref: ImageRef, facts: ImageFacts, rules: ImageRules) -> tuple[int, int]:
    """The size that the processor gets; refused where the processor would not take it."""
    width, height = resized_size(facts.width, facts.height, rules.min_pixels, rules.max_pixels)
    if not width * height:
        raise ImageError(
            f"{_name(ref)} ({facts.width}×{facts.height}) has no pixels left at data.max_pixels={rules.max_pixels}; "
            f"raise it{SKIP_ADVICE}"
        )
    if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
        is_same = (width, height) == (facts.width, facts.height)
        brought = "" if is_same else f", {width}×{height} after data.min_pixels and data.max_pixels"
        raise ImageError(
            f"{_name(ref)} is {facts.width}×{facts.height}{brought}: a strip longer than {MAX_ASPECT_RATIO} to 1, "
            f"which no model here reads; cut it into pages{SKIP_ADVICE}"
        )
    return width, height


def _pixels(ref: ImageRef, opened: OpenImage, rules: ImageRules, size: tuple[int, int]) -> Image.Image:
    facts = opened.facts
    with _named(ref), _turn(facts):
        image = _decoded_jpeg(opened, size) if facts.format == "JPEG" else None
        if image is None:
            stored = _for_pillow(opened)
            decode(stored)
            if facts.format == "PNG" and _ends_blank(stored):
                check_rows(opened.data)
            image = plain_pixels(stored, bit_depth=facts.bits, background=rules.background)
        if not opened.is_turned:
            image = upright(image, facts.orientation)
        if image.size != size:
            image = image.resize(size, Image.Resampling.BICUBIC)
        return _bare(image)


def _decoded_jpeg(opened: OpenImage, size: tuple[int, int]) -> Image.Image | None:
    """The file's pixels as stored; None: Pillow must decode it."""
    least_size = None
    if opened.facts.num_pixels > _LARGE_PIXELS:
        width, height = _REDUCED_FACTOR * size[0], _REDUCED_FACTOR * size[1]
        if 2 * width <= opened.facts.width and 2 * height <= opened.facts.height:
            least_size = (height, width) if opened.facts.orientation >= SIDEWAYS else (width, height)
    pixels = jpeg_pixels(opened.data, least_size=least_size)
    if pixels is None:
        return None
    return Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)


def _for_pillow(opened: OpenImage) -> Image.Image:
    """The bytes that Pillow is to decode: it says nothing of what a JPEG file lacks, but asks for an end marker."""
    if opened.facts.format == "JPEG" and check_jpeg(opened.data):
        return open_image(opened.data + END_MARKER).image
    return opened.image


def _ends_blank(image: Image.Image) -> bool:
    """Whether the last rows, of either interlaced half, are zero: what decoders leave where a file's rows end early."""
    last = image.getpixel((image.width - 1, image.height - 1))
    if any(last) if isinstance(last, tuple) else last:
        return False  # as of nearly all pages
    return not image.crop((0, image.height - 2, image.width, image.height)).tobytes().strip(b"\0")


def _bare(image: Image.Image) -> Image.Image:
    """The RGB pixels and nothing else: a note of the orientation would have the next reader turn the page once more."""
    # Another image than a lazily opened one, which would keep its file's bytes.
    is_plain = image.mode == "RGB" and not isinstance(image, ImageFile.ImageFile)
    plain = image if is_plain else image.convert("RGB")
    plain.info = {}
    return plain


def _turn(facts: ImageFacts) -> threading.Lock | nullcontext[None]:
    return _large if facts.num_pixels > _LARGE_PIXELS else nullcontext()


@contextmanager
def _named(ref: ImageRef) -> Iterator[None]:
    """Raise whatever a decoder finds wrong with a page as an ImageError with the page's name and the way out."""
    try:
        yield
    except NoImageError as error:
        raise ImageError(f"{_name(ref)} is {error.what}: {error.way_out}{SKIP_ADVICE}") from error
    except DECODING_ERRORS as error:
        raise ImageError(
            f"{_name(ref)} is truncated or damaged: {shown(error, _SHOWN_CHARACTERS)}; replace it{SKIP_ADVICE}"
        ) from error


def _name(ref: ImageRef) -> str:
    return f"image {shown(ref.path, _SHOWN_CHARACTERS)!r} ({shown(image_place(ref), _SHOWN_CHARACTERS)})"


__all__ = [
    "MAX_ASPECT_RATIO",
    "check_image",
    "decoders_fingerprint",
    "image_facts",
    "image_from_image",
    "image_size",
    "load_image",
    "read_image",
    "reading_fingerprint",
    "resized_size",
]
