"""Errors that a user can act on: the command line prints them as one sentence, without a traceback."""

from __future__ import annotations

import re

_MAX_SHOWN = 200  # characters of a path or value inside a message
_CREDENTIALS = re.compile(r"(?<=://)[^\s/@]*@")


class RsgrpoError(Exception):
    """Something outside the code is wrong; the message names it and the way out."""


def shown(value: object, limit: int = _MAX_SHOWN) -> str:
    """A path or value as a message shows it: in one line, without the middle of a long one and passwords.

    Args:
        value: anything; its text is shown.
        limit: the most characters of the result.

    Example:
        ``shown("x" * 300, limit=9)`` is ``"xxxx…xxxx"``; ``shown("a\\nb")`` is ``"a b"``;
        ``shown("http://ada:secret@host/v1")`` is ``"http://host/v1"``.
    """
    text = str(value)
    # Only what can be shown: a page's bytes as text would take seconds to tidy up.
    head, tail = text[: 4 * limit], text[-4 * limit :] if len(text) > 4 * limit else ""
    ends = _CREDENTIALS.sub("", head + tail)
    line = "".join(character if character.isprintable() else " " for character in ends).strip()
    line = " ".join(line.split()) if "\n" in ends else line
    if len(line) <= limit and not tail:
        return line
    kept = limit - 1
    return f"{line[: kept - kept // 2]}…{line[len(line) - kept // 2 :]}"
