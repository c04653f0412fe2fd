"""JSON values one after the other from a stream, each with the bytes where it starts and ends, as Python's json reads.

A value that is broken is told from one that the stream's end cuts off; behind a broken record the next one is
found again where that can be told for sure.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

from rsgrpo.io.json_values import JsonValueError, decode_json

_CHUNK_BYTES = 1 << 18
_LONGEST_VALUE = 1 << 30  # characters; a text that never ends must not draw the file into memory
_CUT_CHARACTERS = 16  # the longest that a cut leaves of a literal or an escape, and then some
_SEARCH_CHARACTERS = 1 << 24  # behind a broken record
_MOST_CANDIDATES = 1000
_SPACE = re.compile(r"[ \t\n\r]*")
_HALF_ESCAPE = re.compile(r"\\u[dD]")
_ODD = re.compile("\\\\u[dD][89a-fA-F]|[\udc80-\udcff]")
_BRACKET = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|[\[\]{}]', re.DOTALL)
_OPENING = re.compile(r'\{\s*("[^"\\]*")')
_CUT = re.compile(r"(?:t(?:ru?)?|f(?:a(?:ls?)?)?|nu?l?|Na?|-?I?[nfity]*|[.eE][+-]?|\\(?:u[0-9a-fA-F]{0,5})?)")
_DECODER = json.JSONDecoder()


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """A value with its place.

    Attributes:
        start: the offset of its first byte.
        end: the offset of the byte behind it.
        value: the JSON value.
        num_mended: how many halves of surrogate pairs were replaced in it.
    """

    start: int
    end: int
    value: Any
    num_mended: int


class JsonBreakError(Exception):
    """There is no JSON value here.

    Args:
        detail: what is wrong, and at which byte.
        is_cut: whether the stream ends within a value that is right so far.
    """

    def __init__(self, detail: str, *, is_cut: bool) -> None:
        super().__init__(detail)
        self.is_cut = is_cut


class JsonStream:
    """Reads values from a stream.

    Args:
        stream: the file, in UTF-8.
        start: the first byte to read.
    """

    def __init__(self, stream: BinaryIO, start: int) -> None:
        stream.seek(start)
        self._stream = stream
        self._text = ""
        self._at = 0  # the next character
        self._marked, self._marked_byte = 0, start  # a character whose byte is known
        self._rest = b""  # of a character that the last chunk cut
        self._is_ascii = True
        self._is_odd = False
        self._is_at_end = False

    @property
    def place(self) -> int:
        """The offset of the next byte."""
        if self._at != self._marked:
            self._marked_byte += self._num_bytes(self._marked, self._at)
            self._marked = self._at
        return self._marked_byte

    def peek(self) -> str:
        """The next character that is no space; empty at the end of the stream."""
        while True:
            found = _SPACE.match(self._text, self._at)
            assert found is not None
            self._at = found.end()
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._refill():
                return ""

    def step(self) -> None:
        """Pass the character that :meth:`peek` gave."""
        self._at += 1

    def value(self) -> Found:
        """The next value.

        Raises:
            JsonBreakError: there is no JSON value here; nothing is passed then.
        """
        self.peek()
        start = self.place
        value, end = self._decoded()
        num_mended = 0
        if self._is_odd and _ODD.search(self._text, self._at, end):
            data = self._text[self._at : end].encode("utf-8", "surrogateescape")
            try:
                value, num_mended = decode_json(data)
            except JsonValueError as error:
                raise JsonBreakError(f"{error} of the value", is_cut=False) from error
        self._at = end
        return Found(start=start, end=self.place, value=value, num_mended=num_mended)

    def find_next(self, last: Mapping[str, Any] | None) -> int:
        """Go from a broken record to the one behind it, or to what closes the list.

        The broken record ends where its brackets do, if what follows then is a record, or closes the list. Where
        they do not match, the next record is one that begins with the key that the last whole one began with,
        and has all of its keys.

        Args:
            last: the last whole record; None if there was none.

        Returns:
            How many records seem to begin in what was passed, at least 1; 0: no record was found, and nothing was
            passed.
        """
        while len(self._text) - self._at < _SEARCH_CHARACTERS and self._refill():
            pass
        start, place = self._at, self._behind_brackets(last)
        if place < 0 and last:
            place = self._like(last)
        if place < 0:
            return 0
        self._at = place
        return max(1, len(re.findall(_first_key(last), self._text[start:place]))) if last else 1

    def num_like_next(self, num_bytes: int) -> int:
        """About how many of the objects within so many bytes begin with the same key as the next one."""
        opening = _OPENING.match(self._text, self._at)
        held = len(self._text) - self._at
        if opening is None or not held:
            return 1
        alike = re.compile(r"\{\s*" + re.escape(opening[1]) + r"\s*:")
        found = sum(1 for _ in alike.finditer(self._text, self._at))
        return round(found * max(1.0, num_bytes / held))

    def _decoded(self) -> tuple[Any, int]:
        """The value at the next character, and the offset behind it in characters."""
        while True:
            try:
                value, end = _DECODER.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                is_cut = self._may_be_cut(error)
                if is_cut and self._refill():
                    continue
                place = self.place + self._num_bytes(self._at, error.pos)
                raise JsonBreakError(f"{error.msg.removesuffix(' at')} at byte {place}", is_cut=is_cut) from error
            except RecursionError as error:
                raise JsonBreakError("nested too deeply", is_cut=False) from error
            except ValueError as error:  # a whole number of thousands of digits
                raise JsonBreakError(f"{error}".partition(";")[0], is_cut=False) from error
            # A number may go on in the next chunk.
            is_open = self._text[self._at] not in '{["' and end + _CUT_CHARACTERS > len(self._text)
            if not (is_open and self._refill()):
                return value, end

    def _may_be_cut(self, error: json.JSONDecodeError) -> bool:
        if error.msg.startswith("Unterminated string"):
            return True
        if error.pos < len(self._text) - _CUT_CHARACTERS:
            return False
        return bool(_CUT.fullmatch(self._text[error.pos :].rstrip())) or "escape" in error.msg

    def _refill(self) -> bool:
        """Read more of the stream; False at its end."""
        waiting = len(self._text) - self._at
        if self._is_at_end or waiting > _LONGEST_VALUE:
            return False
        chunk = self._stream.read(max(_CHUNK_BYTES, waiting))
        self._is_at_end = not chunk
        data = self._rest + chunk
        try:
            more, used = codecs.utf_8_decode(data, "strict", self._is_at_end)
        except UnicodeDecodeError:
            more, used = codecs.utf_8_decode(data, "surrogateescape", self._is_at_end)
            self._is_odd = True
        self._rest = data[used:]
        if not chunk and not more:
            return False
        self._marked_byte, self._marked = self.place, 0
        self._text = self._text[self._at :] + more
        self._at = 0
        self._is_ascii = self._text.isascii()
        self._is_odd = self._is_odd or bool(_HALF_ESCAPE.search(self._text))
        return True

    def _num_bytes(self, start: int, stop: int) -> int:
        if self._is_ascii:
            return stop - start
        return len(self._text[start:stop].encode("utf-8", "surrogateescape"))

    def _behind_brackets(self, last: Mapping[str, Any] | None) -> int:
        open_brackets: list[str] = []
        for found in _BRACKET.finditer(self._text, self._at):
            if found[0] in "{[":
                open_brackets.append(found[0])
            elif found[0] in "}]":
                if not open_brackets or open_brackets.pop() + found[0] not in ("{}", "[]"):
                    return -1
                if not open_brackets:
                    return self._checked(found.end(), last)
        return -1

    def _checked(self, end: int, last: Mapping[str, Any] | None) -> int:
        """Where the next record starts behind a place at which one ends, or the bracket that closes the list."""
        found = re.compile(r"[\s,]*").match(self._text, end)
        assert found is not None
        start = found.end()
        following = self._text[start : start + 1]
        if following == "]":
            rest = self._text[start + 1 :]
            return start if "," not in found[0] and not rest.strip(" \t\r\n}") and self._is_at_end else -1
        if following != "{":
            return -1
        if last is not None and re.compile(_first_key(last)).match(self._text, start):
            return start
        return start if isinstance(self._tried(start), dict) else -1

    def _like(self, last: Mapping[str, Any]) -> int:
        keys = last.keys()
        candidates = re.compile(_first_key(last)).finditer(self._text, self._at + 1)
        for _, found in zip(range(_MOST_CANDIDATES), candidates, strict=False):
            value = self._tried(found.start())
            if isinstance(value, dict) and len(keys) > 1 and keys <= value.keys():
                return found.start()
        return -1

    def _tried(self, start: int) -> Any:
        try:
            return _DECODER.raw_decode(self._text, start)[0]
        except (ValueError, RecursionError):
            return None


def _first_key(record: Mapping[str, Any]) -> str:
    return r"\{\s*" + re.escape(json.dumps(next(iter(record)), ensure_ascii=False)) + r"\s*:"
