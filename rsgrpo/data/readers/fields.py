"""Typed access to the fields of a record: what is missing or mistyped is named."""

from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from rsgrpo.data.readers.findings import BadRecordError
from rsgrpo.errors import shown
from rsgrpo.io.ids import plain_id

_LONGEST_LIST = 1 << 20  # characters of a list in a text
_QUOTED = re.compile(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\"""")
_QUOTED_TEXTS = re.compile(rf"\[\s*(?:{_QUOTED.pattern})(?:[\s,]+(?:{_QUOTED.pattern}))*[\s,]*\]")


def text_field(record: Mapping[str, Any], name: str) -> str:
    """The text under a key, which must be there."""
    value = _present(record, name)
    if not isinstance(value, str):
        raise BadRecordError("wrong type", f"{name} must be text, got {type(value).__name__} {value!r:.80}")
    return value


def text_or_number_field(record: Mapping[str, Any], name: str) -> str:
    """The text under a key, which must be there; a number becomes text as Python writes it."""
    value = _present(record, name)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        if not math.isfinite(value):
            raise BadRecordError("wrong type", f"{name} must be text or a finite number, got {value}")
        return str(value)
    return text_field(record, name)


def texts_field(record: Mapping[str, Any], name: str) -> list[str]:
    """The text or the list of texts under a key, which must be there, as a list."""
    value = _present(record, name)
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise BadRecordError("wrong type", f"{name} must be a list of texts, got {type(value).__name__} {value!r:.80}")
    return value


def media_field(record: Mapping[str, Any], *names: str) -> list[object]:
    """What is listed of images, videos or sounds; nothing where it is absent or null.

    Args:
        record: the columns of the record.
        names: the columns under which it may stand, such as ``image`` and ``images``; one value or a list.

    Raises:
        BadRecordError: the list stands under two of the names, with different values.
    """
    found = {name: record[name] for name in names if record.get(name) is not None and record[name] != []}
    values = list(found.values())
    if len(values) > 1 and values[0] != values[1] and [values[0]] != values[1]:
        raise BadRecordError("media", f"it has both {' and '.join(found)}, with different values; keep one of them")
    if not values:
        return []
    return media_list(values[-1])


def written_list(value: object) -> object:
    """A list that stands in a text, as JSON, Python or numpy write it; anything else as it is.

    Args:
        value: the value of a column; tables made from CSV files hold their lists like this.

    Example:
        ``['a.png', 'b.png']``, ``["a.png", "b.png"]`` and ``['a.png' 'b.png']`` are the same two names.
    """
    text = value.strip() if isinstance(value, str) else ""
    if text[:1] != "[" or text[-1] != "]" or len(text) > _LONGEST_LIST:
        return value
    with suppress(ValueError, RecursionError):
        return json.loads(text)
    if _QUOTED_TEXTS.fullmatch(text):
        # One by one: between texts that no comma parts, as numpy writes them, Python sees a single one.
        with suppress(ValueError, SyntaxError):
            return [ast.literal_eval(quoted) for quoted in _QUOTED.findall(text)]
    with suppress(ValueError, SyntaxError, RecursionError, MemoryError):
        found = ast.literal_eval(text)
        return found if isinstance(found, list) else value
    return value


def media_list(value: object) -> list[object]:
    """One image, video or sound, or a list of them (also written in a text), as a list; nothing for null."""
    value = written_list(value)
    if isinstance(value, list):
        return list(value)
    return [] if value is None else [value]


def needed_media_field(record: Mapping[str, Any], name: str) -> list[object]:
    """What is listed of images where something must be."""
    _present(record, name)
    return media_field(record, name)


def whole_field(record: Mapping[str, Any], name: str) -> int:
    """The whole number under a key, which must be there."""
    value = _present(record, name)
    if isinstance(value, bool) or not isinstance(value, int):
        raise BadRecordError("wrong type", f"{name} must be a whole number, got {type(value).__name__} {value!r:.80}")
    return value


def id_field(record: Mapping[str, Any], name: str, default: str) -> str:
    """The record's id as :func:`rsgrpo.io.ids.plain_id` compares it; ``default`` where there is none."""
    value = record.get(name)
    if value is None or (isinstance(value, str) and plain_id(value) is None):
        return default
    found = plain_id(value)
    if found is None:
        raise BadRecordError("wrong type", f"{name} must be text or a whole number, got {value!r:.80}")
    return found


def _present(record: Mapping[str, Any], name: str) -> Any:
    value = record.get(name)
    if value is None:
        there = "it is null" if name in record else f"it has {shown(', '.join(map(str, record)) or 'nothing', 120)}"
        raise BadRecordError("missing field", f"it has no {name!r} ({there})")
    return value
