"""Paths and values as messages show them: never longer than a line or two."""

from __future__ import annotations

SHOWN_CHARACTERS = 200
"""Longest path or value in a message."""


def shown(value: object, limit: int = SHOWN_CHARACTERS) -> str:
    """A text as it is, or its beginning and its end; of a path the end says more, so that it gets two thirds.

    Line ends, surrogates and other characters that cannot be seen come as Python escapes them.

    Args:
        value: text or path.
        limit: characters of the result at most, at least 3.

    Example:
        ``shown("a" * 10, 4) == "a…aa"``
    """
    text = str(value)
    if not text.isprintable():
        ends = text if len(text) <= 2 * limit else text[:limit] + text[-limit:]
        text = "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in ends)
    if len(text) <= limit:
        return text
    tail = 2 * limit // 3
    return f"{text[: limit - tail - 1]}…{text[-tail:]}"
