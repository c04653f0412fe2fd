"""The fast way through a JSON list: records that are parted as its first two are, a record a time through ``ijson``."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, BinaryIO

import ijson

from rsgrpo.io.json_values import HALF_ESCAPE

_CHUNK_BYTES = 1 << 18  # large enough to read fast, small beside the records that a reader's user holds
_BETWEEN = re.compile(rb"\s*,?\s*")
_FIRST_KEY = re.compile(rb'\{\s*"[^"\\]*"')
_BRACKET = re.compile(rb"[\[\]{}]")
_DEEPEST = 200  # of nested brackets
_LONGEST_ALIKE = 1 << 24  # a separator that does not come again must not draw the file into memory


def alike_items(stream: BinaryIO, first: int) -> Iterator[tuple[int, int, Any]]:
    """Records up to the first that is odd: not an object, parted otherwise, or with what ``ijson`` reads otherwise.

    Args:
        stream: the file, in UTF-8.
        first: the position of a byte in a list, in front of a record or of the comma before it.

    Yields:
        For each record the offset of its first byte, that of the byte behind it, and its value; the last record of a
        list never comes.
    """
    start, separator = _first_separator(stream, first)
    if not separator:
        return
    gap = separator.index(b"{") - 1
    pieces = _AlikePieces(stream, start, separator)
    try:
        for value in ijson.items(pieces, "item", use_float=True):
            end = pieces.end
            if end < 0:
                break
            yield start, end, value
            start = end + gap
    except (ijson.JSONError, ValueError, OverflowError, RecursionError):
        return  # the last record has no separator behind it; a real error shows again where it is told


class _AlikePieces:
    """A file as ijson reads it: each read gives a record without its last brace, or that brace.

    Args:
        stream: the file, in UTF-8.
        start: first byte of a record.
        separator: what parts records, from the brace that ends one on.

    Attributes:
        end: the offset behind the brace that the last read gave; -1 if it gave none.
    """

    def __init__(self, stream: BinaryIO, start: int, separator: bytes) -> None:
        self.end = -1
        self._pieces = self._cut(stream, start, separator)

    def read(self, size: int) -> bytes:
        """The next piece, whatever its size; empty behind the last separator."""
        return next(self._pieces, b"") if size else b""

    def _cut(self, stream: BinaryIO, start: int, separator: bytes) -> Iterator[bytes]:
        yield b"["
        stream.seek(start)
        block, position = b"", start
        while chunk := stream.read(_CHUNK_BYTES):
            block += chunk
            if HALF_ESCAPE.search(block):
                return  # ijson reads half a surrogate pair as a question mark
            sent = 0
            while (found := block.find(separator, sent)) >= 0:
                if _is_deep(block[sent:found]):
                    return  # ijson takes ever longer the deeper it gets, and Python's json refuses it
                yield block[sent:found]
                sent = found + 1
                self.end = position + sent
                yield b"}"
                self.end = -1
            block, position = block[sent:], position + sent
            if len(block) > _LONGEST_ALIKE:
                return


def _is_deep(record: bytes) -> bool:
    """Whether brackets are nested deeper than any record's; those in texts count as well, which does no harm."""
    if record.count(b"[") + record.count(b"{") <= _DEEPEST:
        return False
    depth = 0
    for found in _BRACKET.finditer(record):
        depth += 1 if found[0] in b"[{" else -1
        if depth > _DEEPEST:
            return True
    return False


def _first_separator(stream: BinaryIO, offset: int) -> tuple[int, bytes]:
    """Where the first record behind an offset starts, and what parts it from the next, its first key included."""
    stream.seek(offset)
    head = stream.read(_CHUNK_BYTES)
    opening = _BETWEEN.match(head)
    assert opening is not None
    key = _FIRST_KEY.match(head, opening.end())
    if key is None:
        return offset, b""
    parted = re.compile(rb"\}\s*,\s*" + re.escape(key[0])).search(head, key.end())
    return offset + opening.end(), parted[0] if parted else b""
