"""JPEG files, decoded with libjpeg's warnings heeded.

libjpeg goes on whatever it meets: what is missing becomes grey, a hole of zeros becomes cheap blocks, and it only
warns. Pillow drops the warnings. Here a warning decides, and two defects are looked for that do not even raise one:

* scans that a progressive file ought to have and has not (a download that stopped between two of them);
* a long run of zero bytes that the file's own code tables cannot have produced.

Harmless oddities pass: bytes behind the end marker, a missing end marker behind a complete image, padding before it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from struct import unpack_from

import numpy as np
from numpy.typing import NDArray

END_MARKER = b"\xff\xd9"
"""The marker that ends a file; a decoder that has the whole image does without it."""

_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")  # inside image data: not a stuffed FF, a restart or a filler
_STANDALONE = frozenset({0x01, *range(0xD0, 0xD8)})
_PROGRESSIVE = frozenset({0xC2, 0xC6, 0xCA, 0xCE})
_ARITHMETIC = frozenset(range(0xC9, 0xD0))
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # those three are tables and an extension
_NUM_COEFFICIENTS = 64
_PLAIN_FRAMES = frozenset({0xC0, 0xC2})  # baseline and progressive
_PLAIN_SEGMENTS = frozenset({0xC4, 0xDB, 0xDD, 0xE0, 0xFE})  # tables, restarts, JFIF, comments

_SURPLUS = re.compile(r"(\d+) extraneous bytes before marker 0xd9")
_DAMAGE = ("Corrupt JPEG data", "Premature end", "Inconsistent progression")
_HARMLESS_SURPLUS_BYTES = 4  # some cameras leave a few bytes between the image and its end marker, whatever they say
_READ_AHEAD_BYTES = 8  # the decoder has these in its bit buffer when it counts what is left over
_HOLE = bytes(64)  # 512 zero bits: at least two blocks that no encoder writes (see _has_blank_codes)

_COLOURSPACES = {1: "GRAY", 3: "RGB", 4: "CMYK"}


class JpegDamageError(ValueError):
    """Part of the image is not in the file; the message says what is wrong."""


@dataclass(slots=True)
class _Layout:
    """Where the parts of a file lie, as offsets in bytes.

    Attributes:
        frame: the marker of the frame, which says how the image is coded; 0: there was none.
        components: the ids of the colour components.
        first_scan: the offset of the first byte of image data; -1: there was none.
        end: the offset of the end marker; -1: there is none.
        first_symbols: for each Huffman table (class and number in one byte) the symbol whose code is all zeros.
        coverage: for each component and coefficient the lowest bit that a scan brought; 64: no scan brought any.
    """

    frame: int = 0
    components: list[int] = field(default_factory=list)
    first_scan: int = -1
    end: int = -1
    first_symbols: dict[int, int] = field(default_factory=dict)
    coverage: dict[int, list[int]] = field(default_factory=dict)


def plain_header(data: bytes) -> tuple[int, int, int] | None:
    """Width, height and number of colour components of an ordinary file; None: its header needs a closer look.

    Ordinary is what nearly all files are: grey or three colours in 8 bits, nothing but tables, JFIF's own note and
    comments in front of the image data. Notes that may turn the picture or add others to it are left to Pillow.

    Args:
        data: the bytes of the file.
    """
    found: tuple[int, int, int] | None = None
    position = 2
    while position + 10 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker == 0xDA:
            return found
        if marker in _PLAIN_FRAMES:
            depth, height, width, components = unpack_from(">BHHB", data, position + 4)
            if found is not None or depth != 8 or components not in (1, 3) or not width or not height:
                return None
            found = width, height, components
        elif marker not in _PLAIN_SEGMENTS or (marker == 0xE0 and data[position + 4 : position + 8] != b"JFIF"):
            return None
        position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    return None


def jpeg_pixels(data: bytes, *, least_size: tuple[int, int] | None = None) -> NDArray[np.uint8] | None:
    """Decode a JPEG file, or find out that it is damaged.

    Args:
        data: the bytes of the file.
        least_size: width and height that suffice: the file may then be decoded smaller, by averaging inside the
            decoder, but to no less than these. None: in full.

    Returns:
        [height, width, 3] uint8 RGB or [height, width, 1] uint8 grey, the same as Pillow's to the bit; None for a kind
        that only Pillow decodes (CMYK, 12 bits, arithmetic codes without support).

    Raises:
        JpegDamageError: part of the image is missing or damaged.
    """
    layout = _read_layout(data)
    if len(layout.components) == 4:
        return None
    return _judged(data, layout, least_size=least_size)


def check_jpeg(data: bytes) -> bool:
    """Find damage without decoding pixels, in a third of the time that decoding takes.

    Args:
        data: the bytes of the file.

    Returns:
        Whether the file could be judged; if not, decode it with Pillow.

    Raises:
        JpegDamageError: part of the image is missing or damaged.
    """
    return _judged(data, _read_layout(data), least_size=(1, 1)) is not None


def _judged(data: bytes, layout: _Layout, *, least_size: tuple[int, int] | None) -> NDArray[np.uint8] | None:
    """The pixels of a file without damage; None: only Pillow can tell."""
    if len(layout.components) not in _COLOURSPACES or layout.first_scan < 0:
        return None
    problem = _missing_scans(layout)
    if problem:
        raise JpegDamageError(problem)
    if layout.end < 0:  # the image itself may be whole; where it is not, the decoder says so
        data = data.rstrip(b"\xff") + END_MARKER
        layout.end = len(data) - len(END_MARKER)
    pixels, warning = _decode(data, layout, least_size)
    stop = layout.end
    # The decoder reports its last warning only: without padding before the end, the one before shows. It also has
    # some bytes in hand when it counts, so that a second look may find a few more.
    while (surplus := _SURPLUS.search(warning)) is not None:
        padding = _padding_bytes(data, stop, int(surplus[1]))
        if not padding:
            break
        stop -= padding
        pixels, warning = _decode(data[:stop] + data[layout.end :], layout, least_size)
    if warning.startswith(_DAMAGE):
        raise JpegDamageError(warning)
    if data.find(_HOLE, layout.first_scan, stop) >= 0 and not _has_blank_codes(layout):
        raise JpegDamageError("the image data has a hole of zero bytes")
    return pixels


def _decode(data: bytes, layout: _Layout, least_size: tuple[int, int] | None) -> tuple[NDArray[np.uint8] | None, str]:
    """The pixels, or None; and what the decoder says about damage."""
    import simplejpeg  # here, because files of other kinds are read without it

    colourspace = _COLOURSPACES[len(layout.components)]
    try:
        if least_size is None:
            return simplejpeg.decode_jpeg(data, colourspace), ""
        if least_size == (1, 1):
            grey = "CMYK" if colourspace == "CMYK" else "GRAY"
            return simplejpeg.decode_jpeg(data, grey, min_factor=8, fastdct=True, fastupsample=True), ""
        width, height = least_size
        return simplejpeg.decode_jpeg(data, colourspace, min_width=width, min_height=height, min_factor=2), ""
    except ValueError as error:
        return None, str(error)


def _padding_bytes(data: bytes, end: int, num_surplus: int) -> int:
    """How many of the bytes that are left over before the end marker are mere padding."""
    if num_surplus <= _HARMLESS_SURPLUS_BYTES:
        return num_surplus
    tail = data[end - num_surplus : end]
    if len(set(tail)) > 1 or tail[0] not in (0x00, 0xFF):
        return 0
    run = end - len(data[:end].rstrip(tail[:1]))
    # A run that began inside the image is no padding: the decoder took its first part for blocks.
    return num_surplus if run <= num_surplus + _READ_AHEAD_BYTES else 0


def _missing_scans(layout: _Layout) -> str:
    """Which part of the image no scan brings, in words; empty: all of it is there."""
    for component in layout.components:
        lowest = layout.coverage.get(component)
        if lowest is None:
            return f"it has no scan of colour component {component}: the file ends too early"
        if layout.frame in _PROGRESSIVE and any(lowest):
            return "its last progressive scans are missing: the file ends too early"
    return ""


def _has_blank_codes(layout: _Layout) -> bool:
    """Whether zero bits may mean blank blocks: then long runs of zero bytes are lawful.

    In a sequential file that takes tables in which the all-zero code says "same brightness as the block before"
    and "no more coefficients". Progressive and arithmetic files are left to the decoder's own warnings.
    """
    if layout.frame in _PROGRESSIVE or layout.frame in _ARITHMETIC:
        return True
    return bool(layout.first_symbols) and all(symbol == 0 for symbol in layout.first_symbols.values())


def _read_layout(data: bytes) -> _Layout:
    """Walk over the file's segments up to its end marker; stops where they make no sense."""
    layout = _Layout()
    position = 2
    while position + 4 <= len(data) or data[position : position + 2] == END_MARKER:
        if data[position] != 0xFF:
            match = _MARKER.search(data, position)  # junk between segments
            if match is None:
                return layout
            position = match.start()
            continue
        marker = data[position + 1]
        if marker == 0xFF or marker in _STANDALONE:
            position += 1 if marker == 0xFF else 2
            continue
        if marker == 0xD9:
            layout.end = position
            return layout
        body_start = position + 4
        position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
        _take_segment(layout, marker, data[body_start:position])
        if marker == 0xDA:
            if layout.first_scan < 0:
                layout.first_scan = position
            match = _MARKER.search(data, position)
            if match is None:
                return layout
            position = match.start()
    return layout


def _take_segment(layout: _Layout, marker: int, body: bytes) -> None:
    if marker in _FRAMES and len(body) >= 6:
        layout.frame = marker
        layout.components = list(body[6 : 6 + 3 * body[5] : 3])
    elif marker == 0xC4:
        _take_tables(layout, body)
    elif marker == 0xDA and body:
        num_components = body[0]
        spectral = body[1 + 2 * num_components : 4 + 2 * num_components]
        if len(spectral) < 3:
            return
        first, last, low_bit = spectral[0], min(spectral[1], _NUM_COEFFICIENTS - 1), spectral[2] & 15
        for component in body[1 : 1 + 2 * num_components : 2]:
            lowest = layout.coverage.setdefault(component, [_NUM_COEFFICIENTS] * _NUM_COEFFICIENTS)
            lowest[first : last + 1] = [low_bit] * (last + 1 - first)


def _take_tables(layout: _Layout, body: bytes) -> None:
    position = 0
    while position + 17 < len(body):
        num_symbols = sum(body[position + 1 : position + 17])
        layout.first_symbols[body[position]] = body[position + 17]
        position += 17 + num_symbols
