"""Raw records of a data file, one after the other in constant memory, each with the bytes where it starts and ends.

A file is read by what it holds: a JSON list, a list within an object, objects one after the other, or one a line.
Values are what Python's ``json`` makes of them. A list goes through ``ijson`` (its C backend where there is one)
as far as all its records are parted as the first two are: a record at a time, as long as the parser says that it
is exactly one. From the first thing on that is odd, such as a NaN, ``rsgrpo.data.readers.json_stream`` goes on.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from rsgrpo.data.file_bytes import BYTE_ORDER_MARK, DataError, open_utf8
from rsgrpo.data.readers.alike import alike_items
from rsgrpo.data.readers.findings import BadRecordError
from rsgrpo.data.readers.json_stream import JsonBreakError, JsonStream
from rsgrpo.data.tables import TABLE_SUFFIXES, TableError, table_rows
from rsgrpo.errors import shown
from rsgrpo.io.json_values import JsonValueError, decode_json

LINE_SUFFIXES = (".jsonl", ".ndjson")
_CHUNK_BYTES = 1 << 18  # large enough to read fast, small beside the records that a reader's user holds
_LONGEST_LINE = 1 << 26
# Lists of objects that belong to one record, so that the object around them is no wrapper of many.
_RECORD_KEYS = frozenset(("conversations", "conversation", "messages", "turns", "history", "chosen", "rejected"))
_RECORD_KEYS |= {"images", "image", "videos", "video", "audios", "boxes", "choices", "tools", "functions"}


class RawRecord(NamedTuple):
    """A record as it stands in its file.

    Attributes:
        start: the offset of its first byte; in a table the number of its row.
        end: the offset of the byte behind it; in a table the number of the next row.
        value: the value that it holds; a BadRecordError where that cannot be read.
        line: the number of its line, from 1, where a line is a record; else 0.
        num_mended: how many halves of surrogate pairs in it were replaced by U+FFFD.
    """

    start: int
    end: int
    value: object
    line: int = 0
    num_mended: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class _Layout:
    """How a JSON file holds its records.

    Attributes:
        kind: how the records stand: ``lines``, ``list``, ``member`` (a list within an object) or ``objects`` (one after
            the other).
        start: the offset of the byte behind what stands in front of the records.
    """

    kind: str
    start: int


@dataclass(kw_only=True, slots=True)
class _Before:
    """What was read of a list so far: the byte where reading began, the last record and its end, and how many."""

    first: int
    end: int
    last: dict[str, Any] | None = None
    count: int = 0


def is_table(file: Path) -> bool:
    """Whether a file holds rows of a table."""
    return file.suffix.lower() in TABLE_SUFFIXES


def place_of(file: Path, record: RawRecord, index: int) -> str:
    """Where a record stands, for people: a row (from 0), a line (from 1), or a record (from 0) with its byte.

    Args:
        file: the data file.
        record: the record at that place.
        index: 0-based number of the record.
    """
    if is_table(file):
        return f"{file.name} row {record.start}"
    if record.line:
        return f"{file.name} line {record.line}"
    return f"{file.name} record {index} (from byte {record.start})"


def raw_records(file: Path, *, prefix: str, offset: int = 0) -> Iterator[RawRecord]:
    """The records of a data file.

    Args:
        file: the JSON, JSONL, parquet or Arrow file. JSON is told from JSONL by what it holds, not by its name.
        prefix: where the records stand: ``item`` for a list (or the only list of an object); ``data.item`` for the list
            under ``data``.
        offset: where to go on: an end that was given before; 0: the start. Row number of a table.

    Yields:
        Each record in turn. Where a value is broken, a :class:`BadRecordError` says how many bytes cannot be read; then
        comes the next record that can be told, if there is one. A broken line is one record.

    Raises:
        DataError: the file as a whole does not hold what its name says.

    Example:
        ``[{"a": 1}, {"a": 2}]`` gives the bytes 1 to 9 with ``{"a": 1}`` and 11 to 19 with ``{"a": 2}``.
    """
    if is_table(file):
        yield from _rows(file, offset)
        return
    with open_utf8(file) as stream:
        layout = _layout(file, stream, prefix)
        if layout.kind == "lines":
            yield from _lines(stream, offset or layout.start)
            return
        before = _Before(first=offset or layout.start, end=offset)
        if layout.kind != "objects":
            for start, end, value in alike_items(stream, before.first):
                before.end, before.last = end, value
                before.count += 1
                yield RawRecord(start, end, value)
        size = stream.seek(0, 2)
        items = JsonStream(stream, before.end or layout.start)
        is_whole = yield from _items(file, items, size, "" if layout.kind == "objects" else "]", before)
        if is_whole and layout.kind != "objects":
            yield from _behind_list(file, items, size, layout, prefix, before)


def object_member(file: Path, name: str) -> Any:
    """The value of one key of a file that holds an object, wherever it stands; None if there is none.

    Args:
        file: the JSON file.
        name: the key of the member.

    Raises:
        DataError: the file holds no object, or is broken in front of the key.
    """
    with open_utf8(file) as raw:
        stream = JsonStream(raw, _first_byte(raw))
        if stream.peek() != "{":
            return None
        stream.step()
        try:
            for key in _members(stream):
                if key == name:
                    return stream.value().value
                if stream.peek() == "[":
                    stream.step()
                    for record in _items(file, stream, raw.seek(0, 1), "]", _Before(first=0, end=0)):
                        if isinstance(record.value, BadRecordError) and record.value.is_final:
                            return None
                else:
                    stream.value()
        except JsonBreakError as error:
            raise DataError(f"{shown(file)} is not JSON: {error}; fetch it again") from error
    return None


def _rows(file: Path, offset: int) -> Iterator[RawRecord]:
    try:
        for row, value in enumerate(table_rows(file, offset), start=offset):
            yield RawRecord(row, row + 1, value)
    except TableError as error:
        raise DataError(str(error)) from error
    except UnicodeDecodeError as error:
        raise DataError(f"{shown(file)} holds text that is not UTF-8 ({error.reason}); write it again") from error


def _lines(stream: BinaryIO, offset: int) -> Iterator[RawRecord]:
    stream.seek(0)
    number, waiting = 0, offset
    while waiting and (block := stream.read(min(waiting, _CHUNK_BYTES))):
        number += block.count(b"\n")
        waiting -= len(block)
    for line in stream:
        number += 1
        start, offset = offset, offset + len(line)
        if not line.strip():
            continue
        try:
            value, num_mended = decode_json(line)
        except JsonValueError as error:
            # A half-written last line is a cut file, not a bad record in the middle of a good one.
            reason = "not JSON" if line.endswith(b"\n") else "truncated JSON"
            value = BadRecordError(reason, f"the line is not JSON: {error} (bytes {start} to {offset})")
            num_mended = 0
        yield RawRecord(start, offset, value, number, num_mended)


def _first_byte(stream: BinaryIO) -> int:
    stream.seek(0)
    return len(BYTE_ORDER_MARK) if stream.read(len(BYTE_ORDER_MARK)) == BYTE_ORDER_MARK else 0


def _layout(file: Path, stream: BinaryIO, prefix: str) -> _Layout:
    start = _first_byte(stream)
    items = JsonStream(stream, start)
    opening = items.peek()
    place = items.place
    named_lines = file.suffix.lower() in LINE_SUFFIXES
    if prefix != "item":
        if opening not in ("{", ""):
            raise DataError(f"{shown(file)} starts with {opening!r}; expected a JSON object with a list under 'data'")
        return _wrapped(file, stream, place, prefix)
    if opening == "[":
        return _list_or_lines(stream, place, named_lines)
    if opening not in ("{", "") and not named_lines:
        raise DataError(
            f"{shown(file)} starts with {opening!r}; expected a JSON list ([) of objects, or one object per line"
        )
    stream.seek(place)
    line = stream.readline(_LONGEST_LINE)
    if _is_whole(line):
        more = stream.read(_CHUNK_BYTES).lstrip()[:1]
        if named_lines or more == b"{":
            return _Layout(kind="lines", start=start)
    elif named_lines and not _goes_on(stream, place, len(line), b"\r" in line.strip()):
        return _Layout(kind="lines", start=start)
    return _wrapped(file, stream, place, prefix)


def _list_or_lines(stream: BinaryIO, place: int, named_lines: bool) -> _Layout:
    """Lines that hold lists are lines all the same: each is told to be no object."""
    if named_lines:
        stream.seek(place)
        if _is_whole(stream.readline(_LONGEST_LINE)) and stream.read(_CHUNK_BYTES).strip():
            return _Layout(kind="lines", start=place)
    return _Layout(kind="list", start=place + 1)


def _is_whole(line: bytes) -> bool:
    try:
        decode_json(line)
    except JsonValueError:
        return False
    return True


def _goes_on(stream: BinaryIO, place: int, num_bytes: int, has_returns: bool) -> bool:
    """Whether the first value goes beyond its line (or lines end as they did on old Macs)."""
    try:
        return JsonStream(stream, place).value().end > place + num_bytes or has_returns
    except JsonBreakError:
        return False


def _wrapped(file: Path, stream: BinaryIO, place: int, prefix: str) -> _Layout:
    """An object around the list of records, or objects that are records themselves."""
    items = JsonStream(stream, place)
    num_keys = 0
    try:
        if items.peek() == "{":
            items.step()
            for key in _members(items):
                num_keys += 1
                is_list = items.peek() == "["
                if is_list and prefix == "data.item" and key == "data":
                    return _Layout(kind="member", start=items.place + 1)
                if is_list and prefix == "item" and key not in _RECORD_KEYS:
                    opening = items.place + 1
                    items.step()
                    if items.peek() == "{":
                        return _Layout(kind="member", start=opening)
                    if not _pass_list(items):
                        break
                else:
                    items.value()
            if not num_keys and not items.peek() and prefix == "item":
                raise DataError(f"{shown(file)} holds an empty JSON object; expected a list of objects")
    except JsonBreakError:
        pass  # told again, with its place, where records are read
    if prefix != "item":
        raise DataError(f"{shown(file)} has no list 'data'; expected a JSON object ({{'meta_data': …, 'data': […]}})")
    return _Layout(kind="objects", start=place)


def _pass_list(items: JsonStream) -> bool:
    while (char := items.peek()) != "]":
        if not char:
            return False
        if char == ",":
            items.step()
        else:
            items.value()
    items.step()
    return True


def _members(stream: JsonStream) -> Iterator[str]:
    """The keys of an object; whoever asks for the next one has read the value of the last."""
    while (char := stream.peek()) != "}":
        if char == ",":
            stream.step()
            continue
        key = stream.value().value
        if stream.peek() != ":":
            raise JsonBreakError(f"Expecting ':' delimiter at byte {stream.place}", is_cut=not stream.peek())
        stream.step()
        yield str(key)
    stream.step()


def _items(
    file: Path, stream: JsonStream, size: int, closing: str, before: _Before
) -> Generator[RawRecord, None, bool]:
    """Records up to the bracket that closes their list; whether it was there."""
    while (char := stream.peek()) != closing:
        if char == ",":
            stream.step()
            continue
        start = stream.place
        try:
            found = stream.value()
        except JsonBreakError as error:
            num_passed = 0 if error.is_cut else stream.find_next(before.last)
            if not num_passed:
                yield RawRecord(start, before.end, _rest_error(file, stream, error, size, before))
                return False
            stop = stream.place
            detail = f"{stop - start} bytes cannot be read: {error}; reading goes on at byte {stop}"
            yield RawRecord(start, stop, BadRecordError("not JSON", detail, num_records=num_passed))
            before.end = stop
            continue
        before.count, before.end = before.count + 1, found.end
        before.last = found.value if isinstance(found.value, dict) and found.value else before.last
        yield RawRecord(found.start, found.end, found.value, 0, found.num_mended)
    if closing:
        stream.step()
    return True


def _rest_error(file: Path, stream: JsonStream, error: JsonBreakError, size: int, before: _Before) -> BadRecordError:
    rest = size - stream.place
    # As many as are in so many bytes, by the mean of those before; without any as many as seem to begin.
    mean = (before.end - before.first) / before.count if before.count else 0
    num_records = max(1, round(rest / mean) if mean else stream.num_like_next(rest))
    if error.is_cut:
        return BadRecordError(
            "truncated JSON",
            f"{file.name} breaks off at byte {size} inside a record; the last whole record ends at byte {before.end} "
            f"(go on from there once the file is complete): {error}",
            num_records=num_records,
            is_final=True,
        )
    return BadRecordError(
        "not JSON",
        f"{before.count:,} records read, the remaining {rest:,} bytes of {size:,} ({100 * rest / size:.3g} %, about "
        f"{num_records:,} records) cannot be read: {error}",
        num_records=num_records,
        is_final=True,
    )


def _behind_list(
    file: Path, stream: JsonStream, size: int, layout: _Layout, prefix: str, before: _Before
) -> Iterator[RawRecord]:
    """What may follow a list: nothing, or the rest of the object around it."""
    place = stream.place
    try:
        if layout.kind == "member":
            for key in _members(stream):
                is_list = stream.peek() == "["
                if stream.value() and is_list and prefix == "item" and key not in _RECORD_KEYS:
                    raise DataError(
                        f"{shown(file)} holds several lists, another one under {shown(key, 60)!r}; put each into a "
                        "file of its own"
                    )
        if not stream.peek():
            return
        rest = size - stream.place
        error = BadRecordError(
            "not JSON",
            f"{rest:,} bytes of {size:,} ({100 * rest / size:.3g} %) follow behind the end of the list at byte "
            f"{place} and are not read; put all records into one list",
            num_records=1,
            is_final=True,
        )
    except JsonBreakError as broken:
        error = _rest_error(file, stream, broken, size, before)
    yield RawRecord(stream.place, place, error)
