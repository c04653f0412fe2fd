"""From an image file's bytes to an open Pillow image and what its header says; no pixel is decoded here but on demand.

Pillow's own ``open`` refuses large scans by a limit of the whole process, and leaves cut files to another one that
lmms-eval changes. This opens with Pillow's readers, but neither depends on those settings nor leaves them changed.
"""

from __future__ import annotations

import io
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import IO

from PIL import Image, ImageFile

from rsgrpo.data.images.jpeg import plain_header
from rsgrpo.data.images.kinds import describe_non_image
from rsgrpo.data.images.pixels import part_of_canvas
from rsgrpo.data.images.png import SIGNATURE as PNG_SIGNATURE
from rsgrpo.data.images.png import PngFile, exif_orientation, read_png, xmp_orientation

_HEADER_BUFFER_BYTES = 4096  # read at once where a header lies in many small pieces

_ORIENTATION = 0x0112  # the EXIF tag, and TIFF's
_BITS_TAG = 258  # TIFF's bits of a sample
SIDEWAYS = 5
"""The lowest EXIF orientation with width and height swapped; those above it swap them as well."""
_JPEG_START = b"\xff\xd8\xff"
_NOT_OURS = frozenset({"EPS", "WMF", "MPEG", "HDF5", "GRIB", "BUFR"})  # need other programs, or are no pictures
_LIKELY_READERS = {b"\x89P": ("PNG",), b"\xff\xd8": ("JPEG",)}  # asked first
_CHECKS_ITSELF = (b"II", b"MM", b"RIFF")  # TIFF and WebP: their readers apply Pillow's limit while they open

DECODING_ERRORS = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, Image.DecompressionBombError)
"""The exceptions that Pillow's readers raise for damaged files."""

_lock = threading.Lock()
_num_strict = 0
_chosen_leniency = False


class NoImageError(ValueError):
    """The bytes are no image that can be read.

    Attributes:
        what: what the bytes are, in words.
        way_out: what to do about it.
    """

    def __init__(self, what: str, way_out: str) -> None:
        super().__init__(what)
        self.what = what
        self.way_out = way_out


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageFacts:
    """What a file's header says.

    Attributes:
        format: Pillow's name of the format, such as ``JPEG``.
        mode: Pillow's name of how pixels are stored, such as ``RGB`` or ``I;16``.
        width: width in pixels, as a viewer shows the page.
        height: height in pixels, as a viewer shows the page.
        orientation: the EXIF orientation, from 1 (upright) to 8.
        has_transparency: whether pixels may be transparent.
        bits: how many bits a sample has; more than 8 are scaled down.
        num_frames: how many pictures the file holds, of which the first is read.
    """

    format: str
    mode: str
    width: int
    height: int
    orientation: int = 1
    has_transparency: bool = False
    bits: int = 8
    num_frames: int = 1

    @property
    def num_pixels(self) -> int:
        """The number of pixels of the image."""
        return self.width * self.height


@dataclass(frozen=True, kw_only=True, slots=True)
class OpenImage:
    """A file whose header was read.

    Attributes:
        data: the bytes of the file.
        facts: what the header of the file says.
        is_turned: whether Pillow turns the image upright by itself when it decodes.
        opened: the image as Pillow opened it; None: its header was read without Pillow.
    """

    data: bytes
    facts: ImageFacts
    is_turned: bool = False
    opened: Image.Image | None = None

    @property
    def image(self) -> Image.Image:
        """The image as Pillow opens it, not decoded yet."""
        if self.opened is not None:
            return self.opened
        with _foreign_code():
            return _opened_or_refused(self.data)


def open_image(data: bytes, *, check: bool = False) -> OpenImage:
    """Open an image file.

    Args:
        data: the bytes of the image file.
        check: whether the checksums of a PNG file are compared as well.

    Raises:
        NoImageError: the bytes are no image that can be read.
        PngDamageError: a PNG file is cut or damaged.
        Exception: one of ``DECODING_ERRORS``: a file of another kind is cut or damaged.
    """
    png: PngFile | None = None
    if data.startswith(PNG_SIGNATURE):
        png = read_png(data, check=check)
    elif data.startswith(_JPEG_START) and (plain := plain_header(data)) is not None:
        width, height, num_components = plain
        mode = "L" if num_components == 1 else "RGB"
        return OpenImage(data=data, facts=ImageFacts(format="JPEG", mode=mode, width=width, height=height))
    with _foreign_code():
        image = _opened_or_refused(data if png is None else png.pixels)
        return OpenImage(data=data, facts=_facts(image, png), is_turned=image.format == "TIFF", opened=image)


def read_facts(file: io.RawIOBase) -> ImageFacts:
    """What :func:`open_image` says of an image file, reading no more of it than that takes.

    Args:
        file: the image file, open and without a buffer.

    Raises:
        Exception: an exception as :func:`open_image` raises it.
    """
    parts = _Parts(file)
    png: PngFile | None = None
    if parts[: len(PNG_SIGNATURE)] == PNG_SIGNATURE:
        png = read_png(parts, header_only=True)
        head = png.pixels
    buffered = io.BufferedReader(file, _HEADER_BUFFER_BYTES)

    def stream() -> IO[bytes]:
        if png is not None:
            return io.BytesIO(head)
        buffered.seek(0)
        return buffered

    try:
        with _foreign_code():
            image = _opened(stream)
            if image is None:
                raise NoImageError(*describe_non_image(parts[:]))
            return _facts(image, png)
    finally:
        buffered.detach()  # else it would close the file


class _Parts:
    """A file whose parts are read only when they are asked for."""

    def __init__(self, file: io.RawIOBase) -> None:
        self._file = file
        self._num_bytes = file.seek(0, io.SEEK_END)

    def __len__(self) -> int:
        return self._num_bytes

    def __getitem__(self, part: slice) -> bytes:
        start, stop, _ = part.indices(self._num_bytes)
        self._file.seek(start)
        return self._file.read(max(0, stop - start)) or b""


def _facts(image: Image.Image, png: PngFile | None) -> ImageFacts:
    orientation = _orientation(image) if png is None else png.orientation
    width, height = image.size
    # Pillow measures a TIFF file as its own tag turns it, but not as XMP does.
    is_measured = image.format == "TIFF" and _ORIENTATION in image.tag_v2  # type: ignore[attr-defined]
    if orientation >= SIDEWAYS and not is_measured:
        width, height = height, width
    return ImageFacts(
        format="JPEG" if image.format == "MPO" else image.format or "",
        mode=image.mode,
        width=width,
        height=height,
        orientation=orientation,
        has_transparency=image.has_transparency_data or part_of_canvas(image) is not None,
        bits=_bits(image, png),
        num_frames=_num_frames(image, png),
    )


def _opened_or_refused(data: bytes) -> Image.Image:
    image = _opened(lambda: io.BytesIO(data))
    if image is None:
        raise NoImageError(*describe_non_image(data))
    return image


def _opened(stream: Callable[[], IO[bytes]]) -> Image.Image | None:
    """What ``Image.open`` does, without its limit; None: no reader knows the bytes.

    Args:
        stream: the file from its beginning; each reader gets it anew.
    """
    prefix = stream().read(16)
    tried: set[str] = set()
    for load_readers in (Image.preinit, Image.init):
        load_readers()
        for name in (*_LIKELY_READERS.get(prefix[:2], ()), *Image.ID):
            if name in tried or name in _NOT_OURS:
                continue
            tried.add(name)
            factory, accept = Image.OPEN[name]
            try:
                answer = True if accept is None else accept(prefix)
                if not answer or isinstance(answer, str):  # a text says why not
                    continue
                with _without_limit() if prefix.startswith(_CHECKS_ITSELF) else nullcontext():
                    return factory(stream(), "")
            except (SyntaxError, IndexError, TypeError, struct.error):
                continue  # as Pillow has it: not this reader's kind after all
    return None


@contextmanager
def _foreign_code() -> Iterator[None]:
    """Turn whatever else a reader of some format raises at damaged bytes into one of ``DECODING_ERRORS``."""
    try:
        yield
    except DECODING_ERRORS:
        raise
    except Exception as error:  # each decoder raises what it likes, bare RuntimeErrors among it
        words = f"{error}" or "its parts do not fit together"
        raise ValueError(f"{words} ({type(error).__name__})") from error


@contextmanager
def _without_limit() -> Iterator[None]:
    """Lift Pillow's limit on pixels while a header is read; our own limit is applied to the size that it says."""
    with _lock:
        chosen = Image.MAX_IMAGE_PIXELS
        Image.MAX_IMAGE_PIXELS = None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = chosen


@contextmanager
def _strict_decoding() -> Iterator[None]:
    """Refuse cut files, whatever other libraries chose for the process.

    lmms-eval lets Pillow fill what is missing of a file with grey; a page must not lose its evidence like that.
    Several threads may be inside at once; the last one to leave restores what was chosen.
    """
    global _num_strict, _chosen_leniency
    with _lock:
        if not _num_strict:
            _chosen_leniency = ImageFile.LOAD_TRUNCATED_IMAGES
            ImageFile.LOAD_TRUNCATED_IMAGES = False
        _num_strict += 1
    try:
        yield
    finally:
        with _lock:
            _num_strict -= 1
            if not _num_strict:
                ImageFile.LOAD_TRUNCATED_IMAGES = _chosen_leniency


def decode(image: Image.Image) -> None:
    """Decode a file that was opened.

    Args:
        image: the image as :func:`open_image` gives it, or opened by somebody else.

    Raises:
        Exception: one of ``DECODING_ERRORS``: the file is cut or damaged.
    """
    with _foreign_code():
        if image.format == "TIFF":
            with _without_limit():
                image.load_prepare()  # type: ignore[attr-defined]  # makes room for pixels, and measures the file again
        with _strict_decoding():
            image.load()


def _orientation(image: Image.Image) -> int:
    if image.format == "TIFF":
        found = image.getexif().get(_ORIENTATION, 1)  # by which Pillow will turn it, from the file's tag or from XMP
        return found if isinstance(found, int) and 1 <= found <= 8 else 1
    exif, xmp = image.info.get("exif"), image.info.get("xmp")
    found = exif_orientation(exif) if isinstance(exif, bytes) else 0
    return found or (xmp_orientation(xmp) if isinstance(xmp, bytes) else 0) or 1


def _bits(image: Image.Image, png: PngFile | None) -> int:
    if png is not None:
        return png.bit_depth
    if image.format == "TIFF":
        return max(int(bits) for bits in image.tag_v2.get(_BITS_TAG, (1,)))  # type: ignore[attr-defined]
    if image.mode in ("I", "F"):
        return 32
    return 16 if image.mode.startswith("I;16") else 8


def _num_frames(image: Image.Image, png: PngFile | None) -> int:
    if png is not None:
        return png.num_frames
    if image.format == "MPO":
        return 1  # a telephone's photo: what stands behind it is a smaller copy or a depth map
    try:
        # Pillow measures every page of a TIFF file, and remembers how many it found.
        with _without_limit() if image.format == "TIFF" else nullcontext():
            return int(getattr(image, "n_frames", 1))
    except DECODING_ERRORS:
        return 1  # its first picture may be whole all the same


__all__ = [
    "DECODING_ERRORS",
    "SIDEWAYS",
    "ImageFacts",
    "NoImageError",
    "OpenImage",
    "decode",
    "open_image",
    "read_facts",
]
