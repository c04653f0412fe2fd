"""Raw records of a data file, one after the other in constant memory, each with the byte where it ends.

A JSON list goes through ``ijson`` (its C backend where there is one). The file is handed over in pieces that
end in a ``}`` which a comma or bracket follows: only there can a record end, so that the parser itself tells
at which byte each one does, and reading can go on from any of these bytes later. Most such braces end something
within a record, and each piece has its price. So what stands between the first two records, up to the second
one's first key, is taken for what stands between all of them: pieces end there only, as long as the parser says
that each of them brings exactly one record with its last byte.
"""

from __future__ import annotations

import json
import re
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import ijson

from rsgrpo.data_files import DataError
from rsgrpo.readers.findings import BadRecordError
from rsgrpo.tables import TABLE_SUFFIXES, TableError, table_rows

_CHUNK_BYTES = 1 << 18  # large enough to read fast, small beside the records that a reader's user holds
_RECORD_END = re.compile(rb"\}(?=\s*[,\]])")
_BEFORE_NEXT = re.compile(rb"\s*,?")
_BETWEEN = re.compile(rb"\s*,?\s*")
_FIRST_KEY = re.compile(rb'\{\s*"[^"\\]*"')
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_BEFORE_FIRST = {"item": re.compile(b"(?:" + _BYTE_ORDER_MARK + rb")?\s*\[\s*"), "data.item": re.compile(rb"(?!)")}
"""What stands in front of a file's first record; for a list within an object only the parser can tell."""
_LONGEST_ALIKE = 1 << 24  # a separator that does not come again must not draw the file into memory
OPENINGS = {"item": b"[", "data.item": b'{"data":['}
"""What must stand in front of a record for the parser to be in a list of them, by ijson's name of the list."""

RawRecord = tuple[int, object]
"""First byte behind the record, and its value; a BadRecordError where there is none."""


def raw_records(file: Path, *, prefix: str, offset: int = 0) -> Iterator[RawRecord]:
    """The records of a data file.

    Args:
        file: a JSON list, or an object with a list (``prefix``); ``.jsonl``: one record a line; parquet or Arrow.
        prefix: ``item`` for a list, ``data.item`` for the list under ``data`` of an object.
        offset: where to go on: an end that was given before; 0: the start. Row number for parquet.

    Yields:
        End and value of each record; one of a list that is no object comes with the end of the last that is.
        Where the file breaks off or is not JSON, a last
        :class:`BadRecordError` says so; a broken line of JSONL is one record.

    Raises:
        DataError: the file as a whole is not what its name says.

    Example:
        ``[{"a": 1}, {"a": 2}]`` gives ``(9, {"a": 1})`` and ``(19, {"a": 2})``.
    """
    if file.suffix == ".jsonl":
        return _lines(file, offset)
    if file.suffix in TABLE_SUFFIXES:
        return _table_rows(file, offset)
    return _list_items(file, prefix, offset)


def _lines(file: Path, offset: int) -> Iterator[RawRecord]:
    with file.open("rb") as lines:
        lines.seek(offset)
        for line in lines:
            start, offset = offset, offset + len(line)
            if not line.strip():
                continue
            try:
                value: object = json.loads(line)
            except ValueError as error:
                # A half-written last line is a cut file, not a bad record in the middle of a good one.
                reason = "not JSON" if line.endswith(b"\n") else "truncated JSON"
                value = BadRecordError(reason, f"the line (bytes {start} to {offset}) is not JSON: {error}")
            yield offset, value


def _table_rows(file: Path, offset: int) -> Iterator[RawRecord]:
    try:
        for row, value in enumerate(table_rows(file, offset), start=offset):
            yield row + 1, value
    except TableError as error:
        raise DataError(str(error)) from error


def _list_items(file: Path, prefix: str, offset: int) -> Iterator[RawRecord]:
    end = yield from _alike_items(file, prefix, offset)
    yield from _any_items(file, prefix, end)


class _AlikePieces:
    """A file as ijson reads it: each read gives a record without its last brace, or that brace.

    Args:
        stream: the file.
        start: first byte of a record.
        separator: what parts records, from the brace that ends one on.
        opening: stands for what comes in front of the record.

    Attributes:
        end: behind the brace that the last read gave; -1 if it gave none.
    """

    def __init__(self, stream: BinaryIO, start: int, separator: bytes, opening: bytes) -> None:
        self.end = -1
        self._pieces = self._cut(stream, start, separator, opening)

    def read(self, size: int) -> bytes:
        """The next piece, whatever its size; empty behind the last separator."""
        return next(self._pieces, b"") if size else b""

    def _cut(self, stream: BinaryIO, start: int, separator: bytes, opening: bytes) -> Iterator[bytes]:
        yield opening
        stream.seek(start)
        block, position = b"", start
        while chunk := stream.read(_CHUNK_BYTES):
            block += chunk
            sent = 0
            while (found := block.find(separator, sent)) >= 0:
                yield block[sent:found]
                sent = found + 1
                self.end = position + sent
                yield b"}"
                self.end = -1
            block, position = block[sent:], position + sent
            if len(block) > _LONGEST_ALIKE:
                return


def _alike_items(file: Path, prefix: str, offset: int) -> Generator[RawRecord, None, int]:
    """Records that are parted as the first two are, up to the first that is not; returns where the last one ends."""
    end = offset
    with file.open("rb") as stream:
        start, separator = _first_separator(stream, prefix, offset)
        if not separator:
            return end
        pieces = _AlikePieces(stream, start, separator, OPENINGS[prefix])
        try:
            for value in ijson.items(pieces, prefix, use_float=True):
                if pieces.end < 0:
                    break
                end = pieces.end
                yield end, value
        except (ijson.JSONError, UnicodeDecodeError, OverflowError):
            return end  # the last record has no separator behind it; a real error shows again where it is told
    return end


def _first_separator(stream: BinaryIO, prefix: str, offset: int) -> tuple[int, bytes]:
    """Where the first record behind an offset starts, and what parts it from the next, its first key included."""
    stream.seek(offset)
    head = stream.read(_CHUNK_BYTES)
    before = _BETWEEN if offset else _BEFORE_FIRST[prefix]
    opening = before.match(head)
    key = _FIRST_KEY.match(head, opening.end()) if opening else None
    if opening is None or key is None:
        return offset, b""
    parted = re.compile(rb"\}\s*,\s*" + re.escape(key[0])).search(head, key.end())
    return offset + opening.end(), parted[0] if parted else b""


def _any_items(file: Path, prefix: str, offset: int) -> Iterator[RawRecord]:
    items: list[Any] = ijson.sendable_list()
    parser = ijson.items_coro(items, prefix, use_float=True)
    end = offset
    is_through = False
    try:
        for position, piece in _pieces(file, prefix, offset):
            parser.send(piece)
            if items:
                # An object ends where the piece does; where anything else among the records ends is not known.
                for value in items:
                    end = position if isinstance(value, dict) else end
                    yield end, value
                del items[:]
        is_through = True
        parser.close()
    except (ijson.JSONError, UnicodeDecodeError, OverflowError) as error:
        size = file.stat().st_size
        detail = f"{error}".strip().splitlines()[0] if f"{error}".strip() else type(error).__name__
        if is_through:  # the parser calls every error incomplete
            yield (
                end,
                BadRecordError(
                    "truncated JSON",
                    f"{file} breaks off at byte {size} inside a record; the last whole record ends at byte {end} "
                    f"(go on from there once the file is complete): {detail}",
                ),
            )
        else:
            yield (
                end,
                BadRecordError(
                    "not JSON", f"{file} is not JSON behind byte {end}, so that the rest of it cannot be read: {detail}"
                ),
            )


def _pieces(file: Path, prefix: str, offset: int) -> Generator[tuple[int, bytes], None, None]:
    """Pieces of the file from ``offset`` on, with the byte behind each."""
    with file.open("rb") as stream:
        if offset:
            yield offset, OPENINGS[prefix]
            stream.seek(offset)
            block = stream.read(_CHUNK_BYTES)
            skipped = _BEFORE_NEXT.match(block)
            assert skipped is not None
        else:
            block = stream.read(_CHUNK_BYTES)
            skipped = re.compile(b"(?:" + _BYTE_ORDER_MARK + rb")?\s*").match(block)
            assert skipped is not None
            _check_opening(file, block[skipped.end() :], prefix)
        position = offset + skipped.end()
        block = block[skipped.end() :]
        while True:
            sent = 0
            for found in _RECORD_END.finditer(block):
                piece = block[sent : found.end()]
                sent = found.end()
                yield position + sent, piece
            # What follows a brace decides whether a record may end there: it waits for the next chunk.
            last = block.rfind(b"}", sent)
            chunk = stream.read(_CHUNK_BYTES)
            stop = len(block) if last < 0 or not chunk else last
            if stop > sent:
                yield position + stop, block[sent:stop]
            position += stop
            if not chunk:
                return
            block = block[stop:] + chunk


def _check_opening(file: Path, head: bytes, prefix: str) -> None:
    opening = OPENINGS[prefix][:1]
    if head and head[:1] != opening:
        kind = "list" if opening == b"[" else "object"
        raise DataError(
            f"{file} starts with {head[:20]!r}; expected a JSON {kind} ({opening.decode()}). A file of one object a "
            "line must be named .jsonl"
        )
