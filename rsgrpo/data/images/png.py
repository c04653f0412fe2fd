"""PNG files, chunk by chunk: whether they are whole, how they are turned, and a copy without what only costs.

Pillow refuses files whose colour profile or texts unfold to more than a limit of its own, and it stops at a damaged
note. None of that concerns the pixels: what it gets is a file without such chunks.
"""

from __future__ import annotations

import contextlib
import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from PIL import Image

SIGNATURE = b"\x89PNG\r\n\x1a\n"

_ORIENTATION = 0x0112  # the EXIF tag
_XMP_ORIENTATION = re.compile(rb"""tiff:Orientation\s*(?:=\s*["']|>)\s*([1-8])""")
_KEPT = frozenset({b"tRNS"})  # of the chunks that a reader may pass over; it makes pixels transparent
_NOTES = frozenset({b"eXIf", b"zTXt", b"tEXt", b"iTXt"})  # that may say how the picture is turned
_ZLIB_HEADER_BYTES, _DEFLATE = 2, 8
_MAX_NOTE_BYTES = 2**20  # of an unfolded text; EXIF data are far smaller
_NUM_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # of a pixel, by colour type
_INTERLACED = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
"""The seven passes of Adam7: first column and row of each, and the steps from pixel to pixel and from row to row."""


class Sliceable(Protocol):
    """A file of which parts can be had by slices, as of ``bytes``."""

    def __len__(self) -> int:
        """Its size in bytes."""

    def __getitem__(self, part: slice, /) -> bytes | memoryview:
        """Some of its bytes."""


class PngDamageError(ValueError):
    """Part of the file is missing or damaged; the message says which."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PngFile:
    """What a file's chunks say.

    Attributes:
        pixels: the bytes of a file with the same pixels and nothing beside them; only what stands before the pixels,
            where just that was asked for.
        bit_depth: how many bits a sample has: 1, 2, 4, 8 or 16.
        orientation: the EXIF orientation, from 1 (upright) to 8.
        num_frames: how many pictures an animation has; else 1.
    """

    pixels: bytes
    bit_depth: int
    orientation: int
    num_frames: int


def read_png(data: Sliceable, *, check: bool = False, header_only: bool = False) -> PngFile:
    """Take a PNG file apart.

    Args:
        data: the bytes of the file.
        check: whether the checksums of all chunks that pixels depend on are compared.
        header_only: whether to pass over the pixels: of their chunks only length and name are looked at.

    Raises:
        PngDamageError: the file ends too early, or a checksum does not match.
    """
    view = memoryview(data) if isinstance(data, bytes) else data
    kept: list[tuple[int, int]] = [(0, len(SIGNATURE))]
    notes: dict[bytes, list[bytes | memoryview]] = {}
    num_frames = 1
    packed = b""
    for name, start, stop in _chunks(data):
        if name == b"CgBI":
            raise PngDamageError(
                "it is packed as Xcode does for iPhones; unpack it with pngcrush -revert-iphone-optimizations"
            )
        if not name[0] & 0x20 or name in _KEPT:  # a small letter says that readers may pass it over
            if check and zlib.crc32(view[start + 4 : stop - 4]) != int.from_bytes(view[stop - 4 : stop], "big"):
                raise PngDamageError(f"the checksum of its part {name.decode('latin-1')} does not match")
            kept.append((start, stop))
        if name == b"IDAT":
            if header_only:
                kept[-1] = (start, start if packed else start + 8)  # a reader of headers stops where pixels begin
            if len(packed) < _ZLIB_HEADER_BYTES:
                packed += view[start + 8 : min(stop - 4, start + 8 + _ZLIB_HEADER_BYTES)]
        elif name == b"acTL":
            num_frames = max(1, int.from_bytes(view[start + 8 : start + 12], "big"))
        elif name in _NOTES:
            notes.setdefault(name, []).append(view[start + 8 : stop - 4])
    if len(packed) < _ZLIB_HEADER_BYTES:
        raise PngDamageError("its pixels are missing")
    if packed[0] & 15 != _DEFLATE or int.from_bytes(packed[:_ZLIB_HEADER_BYTES], "big") % 31:
        raise PngDamageError("its pixels are not packed as PNG packs them")
    return PngFile(
        pixels=_joined(data, view, kept),
        bit_depth=bytes(data[24:25])[0] if len(data) > 24 else 8,
        orientation=_orientation(notes),
        num_frames=num_frames,
    )


def _joined(data: Sliceable, view: Sliceable, parts: list[tuple[int, int]]) -> bytes:
    """Parts of a file one after the other; the file itself where they are all of it."""
    if isinstance(data, bytes) and sum(stop - start for start, stop in parts) == len(data):
        return data
    return b"".join(view[start:stop] for start, stop in parts)


def check_rows(data: bytes) -> None:
    """Refuse a file that packs fewer rows than its header says; decoders leave the others black and say nothing.

    Unpacking takes most of the time that decoding does, so it is for pages whose last rows are black.

    Args:
        data: the bytes of the file.

    Raises:
        PngDamageError: the file packs fewer rows than its header says.
    """
    width, height, depth, colour = struct.unpack(">IIBB", data[16:26])
    is_interlaced = data[28] == 1
    num_bits = depth * _NUM_SAMPLES.get(colour, 1)
    passes = _INTERLACED if is_interlaced else ((0, 0, 1, 1),)
    expected = 0
    for left, top, across, down in passes:
        columns, rows = -(-(width - left) // across), -(-(height - top) // down)
        if columns > 0 and rows > 0:
            expected += rows * (1 + -(-columns * num_bits // 8))  # each row begins with the number of its filter
    unpacker = zlib.decompressobj()
    found = 0
    for name, start, stop in _chunks(data):
        piece = data[start + 8 : stop - 4] if name == b"IDAT" else b""
        while piece:
            found += len(unpacker.decompress(piece, _MAX_NOTE_BYTES))
            piece = unpacker.unconsumed_tail
    if found < expected:
        raise PngDamageError(f"its pixels end after {found:,} of {expected:,} bytes")


def _chunks(data: Sliceable) -> Iterator[tuple[bytes, int, int]]:
    """Name, first byte (of the length) and end of every chunk up to the last one."""
    position = len(SIGNATURE)
    while position < len(data):
        head = bytes(data[position : position + 8])
        name = head[4:]
        stop = position + 12 + int.from_bytes(head[:4], "big")
        if stop > len(data) or len(name) < 4:
            raise PngDamageError(f"it ends inside its part {name.decode('latin-1')!r}")
        yield name, position, stop
        if name == b"IEND":
            return
        position = stop
    raise PngDamageError("its end is missing")


def _orientation(notes: dict[bytes, list[bytes | memoryview]]) -> int:
    """The orientation from EXIF data, or from where ImageMagick and Adobe put it; 1 where there is no sensible one."""
    for exif in notes.get(b"eXIf", ()):
        if found := exif_orientation(bytes(exif)):
            return found
    for text in (*notes.get(b"zTXt", ()), *notes.get(b"tEXt", ()), *notes.get(b"iTXt", ())):
        keyword, _, rest = bytes(text[:80]).partition(b"\0")
        if keyword in (b"Raw profile type exif", b"Raw profile type APP1"):
            is_packed = rest[:1] == b"\0"
            unfolded = _unfolded(bytes(text[len(keyword) + 2 :])) if is_packed else bytes(text[len(keyword) + 1 :])
            with contextlib.suppress(ValueError):
                # A new line, the kind, a length, then hexadecimal digits.
                if found := exif_orientation(bytes.fromhex("".join(unfolded.decode("latin-1").split()[2:]))):
                    return found
        if keyword == b"XML:com.adobe.xmp" and (found := xmp_orientation(text)):
            return found
    return 1


def _unfolded(packed: bytes) -> bytes:
    try:
        return zlib.decompressobj().decompress(packed, _MAX_NOTE_BYTES)
    except zlib.error:
        return b""


def exif_orientation(exif: bytes) -> int:
    """Orientation that a block of EXIF data gives; 0 where it gives none or is damaged.

    Args:
        exif: the EXIF data, with or without the word ``Exif`` before it.
    """
    block = Image.Exif()
    try:
        block.load(exif)
        found = block.get(_ORIENTATION, 0)
    except Exception:  # whatever Pillow stumbles on in a note must not cost the picture
        return 0
    return found if isinstance(found, int) and 1 <= found <= 8 else 0


def xmp_orientation(xmp: bytes | memoryview) -> int:
    """The orientation that a block of XMP data gives; 0 where it gives none."""
    match = _XMP_ORIENTATION.search(xmp)
    return 0 if match is None else int(match[1])
