"""The image files of a store, each named by the hash of its bytes, so that equal pages are stored once."""

from __future__ import annotations

import hashlib
import struct
import uuid
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from rsgrpo.config.documents import ImageFormat
from rsgrpo.data.images.png import SIGNATURE
from rsgrpo.documents.records import StoreError
from rsgrpo.errors import shown
from rsgrpo.io.special_files import open_regular

STORE_FILE = "store.json"
PARTS = "pages.parquet"
IMAGES = "images"
WRITING = "writing"
"""Folder of a store for files that are not complete yet; it is there while somebody writes, or died writing."""

_JPEG_QUALITY = 95
_PNG_LEVEL = 1  # higher ones take up to three times as long for a tenth of the size
_SAMPLED_ROWS = 16  # one of so many says of most pages that they are coloured, or not blank
_GREY, _COLOUR = 0, 2  # PNG's colour types

Pixels = NDArray[np.uint8]
"""The pixels of an image: [height, width, 3] uint8, red, green and blue."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredImage:
    """An image file in a store.

    Attributes:
        name: the path of the file relative to the store's folder.
        sha256: the SHA-256 of the file, 64 hexadecimal digits.
        num_bytes: the size of the file in bytes.
        is_new: whether the store did not have the file before.
    """

    name: str
    sha256: str
    num_bytes: int
    is_new: bool


def image_name(sha256: str, suffix: str) -> str:
    """Return the path of an image file relative to the store's folder.

    Args:
        sha256: the SHA-256 of the file, 64 hexadecimal digits.
        suffix: the suffix of the file, with the dot.

    Example:
        ``images/ab/abcdef….png``
    """
    return f"{IMAGES}/{sha256[:2]}/{sha256}{suffix}"


def encode_image(pixels: Pixels, image_format: ImageFormat) -> tuple[bytes, str]:
    """Encode the pixels of a page as an image file.

    Args:
        pixels: the colours, [height, width, 3] uint8, red, green and blue.
        image_format: the format of the file; ``png`` keeps every pixel exactly, ``jpeg`` does not.

    Returns:
        The bytes of the file, and its suffix with the dot.
    """
    if image_format == "jpeg":
        encoded = simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality=_JPEG_QUALITY, colorsubsampling="444")
        return bytes(encoded), ".jpg"
    return _png(pixels), ".png"


def _is_grey(pixels: Pixels) -> bool:
    red = pixels[:, :, 0]
    return bool((red == pixels[:, :, 1]).all() and (red == pixels[:, :, 2]).all())


def _png(pixels: Pixels) -> bytes:
    """Encode pixels as a PNG file without filters.

    Pages are mostly white and compress better without filters than with them; Pillow, which tries all filters for every
    row, takes twice as long (benchmarks/documents.py).
    """
    height, width, _ = pixels.shape
    is_grey = _is_grey(pixels[::_SAMPLED_ROWS]) and _is_grey(pixels)
    lines = np.zeros((height, 1 + width * (1 if is_grey else 3)), np.uint8)  # each begins with its filter's number
    if is_grey:
        lines[:, 1:] = pixels[:, :, 0]
    else:
        lines[:, 1:].reshape(pixels.shape, copy=False)[:] = pixels
    header = struct.pack(">IIBBBBB", width, height, 8, _GREY if is_grey else _COLOUR, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(lines.data, _PNG_LEVEL)), (b"IEND", b""))
    return SIGNATURE + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(data, zlib.crc32(name)))
        for name, data in parts
    )


def is_blank(pixels: Pixels) -> bool:
    """Tell whether all pixels have the same colour.

    Args:
        pixels: the colours, [height, width, 3] uint8, red, green and blue.
    """
    first = pixels[0, 0]
    return bool((pixels[::_SAMPLED_ROWS] == first).all() and (pixels == first).all())


def store_image(store: Path, data: bytes, suffix: str) -> StoredImage:
    """Write an image file into a store, unless the store has it already.

    The file is not forced to the disk. If it is lost or too short after a loss of power, adding the document again
    finds that, and every reader compares the hash.

    Args:
        store: the folder that the store lies in, which contains a folder :data:`WRITING`.
        data: the bytes of the file.
        suffix: the suffix of the file, with the dot.

    Raises:
        OSError: the disk is full, or there is no permission.
    """
    sha256 = hashlib.sha256(data).hexdigest()
    name = image_name(sha256, suffix)
    path = store / name
    is_new = not has_size(path, len(data))
    if is_new:
        partial = store / WRITING / uuid.uuid4().hex
        try:
            partial.write_bytes(data)
            path.parent.mkdir(parents=True, exist_ok=True)
            partial.replace(path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
    return StoredImage(name=name, sha256=sha256, num_bytes=len(data), is_new=is_new)


def has_size(path: Path, num_bytes: int) -> bool:
    """Tell whether a file exists and has the expected size.

    Args:
        path: the path of the file.
        num_bytes: the expected size in bytes.
    """
    try:
        return path.stat().st_size == num_bytes
    except OSError:
        return False


def image_problem(path: Path, sha256: str) -> str:
    """Find out what is wrong with a stored image.

    Args:
        path: the path of the image file.
        sha256: the SHA-256 that the file must have, 64 hexadecimal digits.

    Returns:
        The end of a sentence that begins with the file's name, such as ``is missing``; empty: nothing is wrong.
    """
    try:
        with open_regular(str(path)) as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    return "" if found == sha256 else "has other bytes than when it was stored"


def no_room(store: Path, words: str) -> str:
    """Explain that a store cannot be written, and what to do about it.

    Args:
        store: the folder that the store lies in.
        words: the operating system's message.
    """
    return (
        f"{shown(store)} cannot be written ({words}); the documents that were added stay: make room, and give the same "
        "command again"
    )


@contextmanager
def store_writes(store: Path) -> Iterator[None]:
    """Report every OSError of the enclosed block, which writes a store's own files, as a StoreError.

    Args:
        store: the folder that the store lies in.

    Raises:
        StoreError: the enclosed block raised an OSError: the disk is full, or there is no permission.
    """
    try:
        yield
    except OSError as error:
        raise StoreError(no_room(store, error.strerror or str(error))) from error
