"""The order in which people number things: ``frame_2`` before ``frame_10``."""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path

_DIGITS = re.compile(r"\d+")

_Run = tuple[str, tuple[int, str]]
NaturalKey = tuple[tuple[tuple[_Run, ...], tuple[_Run, ...]], ...]
"""The key of a path: stem and suffix of each folder and of the file, as runs of a text and the number behind it."""


def natural_key(name: str) -> tuple[NaturalKey, str]:
    """Sort key of a file name or path: its numbers count as numbers, upper and lower case are alike.

    Every listing of files whose order matters goes by it. Digits of any script count, leading zeros do not
    (``2`` before ``03``); a name comes before the names that it begins (``page.png`` before ``page1.png``).
    Names that differ in case or zeros only are ordered as plain text, so that the order is total.

    Args:
        name: a name, or a path whose parts are compared one after the other.

    Example:
        ``sorted(["10.jpg", "9.jpg", "1.jpg"], key=natural_key) == ["1.jpg", "9.jpg", "10.jpg"]``
    """
    return tuple(_part_key(part) for part in name.split("/")), name


def visible_files(folder: Path, pattern: str) -> list[Path]:
    """Files of a folder in natural order, without hidden ones: a Mac leaves a ``._7.json`` beside every ``7.json``.

    Args:
        folder: the folder to look in, which need not exist.
        pattern: the pattern of the names, such as ``*.json``.
    """
    found = (file for file in folder.glob(pattern) if not file.name.startswith("."))
    return sorted(found, key=lambda file: natural_key(file.name))


def _part_key(part: str) -> tuple[tuple[_Run, ...], tuple[_Run, ...]]:
    stem, dot, suffix = part.rpartition(".")
    return (_runs(stem), _runs(suffix)) if dot and stem else (_runs(part), ())


def _runs(text: str) -> tuple[_Run, ...]:
    found: list[_Run] = []
    position = 0
    for digits in _DIGITS.finditer(text):
        found.append((text[position : digits.start()].casefold(), _number(digits[0])))
        position = digits.end()
    rest = text[position:].casefold()
    return (*found, (rest, (0, ""))) if rest else tuple(found)


def _number(digits: str) -> tuple[int, str]:
    """A number that compares by length, then digit by digit: names may hold more digits than int() takes."""
    plain = "".join(str(unicodedata.decimal(digit)) for digit in digits).lstrip("0")
    return len(plain) + 1, plain
