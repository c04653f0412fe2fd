"""JSON as the ecosystem writes it: from bytes to values that everything behind can print, hash and encode.

What Python's own ``json`` reads is read: NaN, Infinity, numbers of any size, keys that stand twice (the last
counts). Half a surrogate pair, as JavaScript leaves it where it cuts a text, is no character that UTF-8 can
hold: it becomes U+FFFD here, once, and is counted.
"""

from __future__ import annotations

import json
import re
from typing import Any

HALF_ESCAPE = re.compile(rb"\\u[dD]")
"""The places at which halves of surrogate pairs may be written; a pattern, as looking for two texts takes five times as
long."""
_PAIR_OR_HALF = re.compile("[\ud800-\udbff][\udc00-\udfff]|[\ud800-\udfff]")
REPLACEMENT = "\ufffd"
"""The character that replaces half a surrogate pair."""


class JsonValueError(ValueError):
    """Bytes are no JSON value; the message is one phrase that says where."""


def decode_json(data: bytes) -> tuple[Any, int]:
    """Read one JSON value.

    Args:
        data: the text in UTF-8; white space around the value does not count.

    Returns:
        The value, and how many halves of surrogate pairs were replaced in its texts and keys.

    Raises:
        JsonValueError: the bytes are no JSON value.

    Example:
        >>> decode_json(b'{"a": "x \\\\ud83d", "b": NaN}')
        ({'a': 'x \ufffd', 'b': nan}, 1)
    """
    has_halves = False
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        try:
            text, has_halves = data.decode("utf-8", "surrogatepass"), True
        except UnicodeDecodeError:
            raise JsonValueError(
                f"byte 0x{data[error.start]:02x} at place {error.start} is not UTF-8 (Latin-1? then convert the file: "
                "iconv -f LATIN1 -t UTF-8)"
            ) from error
    try:
        value = json.loads(text)
        if has_halves or HALF_ESCAPE.search(data):
            return replace_surrogates(value)
    except json.JSONDecodeError as error:
        raise JsonValueError(f"{error.msg.removesuffix(' at')} at character {error.pos}") from error
    except RecursionError as error:
        raise JsonValueError("it is nested too deeply") from error
    except ValueError as error:  # a whole number of thousands of digits
        raise JsonValueError(f"{error}".partition(";")[0]) from error
    return value, 0


def replace_surrogates(value: Any) -> tuple[Any, int]:
    """Replace what UTF-8 cannot hold, in all texts and keys of a value.

    Args:
        value: the value as ``json`` gives it.

    Returns:
        The value without halves of surrogate pairs (two that belong together become their character), and
        how many halves became U+FFFD.
    """
    count = 0

    def joined(match: re.Match[str]) -> str:
        nonlocal count
        found = match[0]
        if len(found) == 2:
            return found.encode("utf-16", "surrogatepass").decode("utf-16")
        count += 1
        return REPLACEMENT

    def fixed(node: Any) -> Any:
        if isinstance(node, str):
            return node if node.isascii() else _PAIR_OR_HALF.sub(joined, node)
        if isinstance(node, list):
            return [fixed(part) for part in node]
        if isinstance(node, dict):
            return {fixed(key): fixed(part) for key, part in node.items()}
        return node

    return fixed(value), count
