"""The one rule for ids, wherever they come from: data sets, prediction files, saved answers."""

from __future__ import annotations

import difflib
import math
import re
import unicodedata
from collections.abc import Iterable, Sequence

from rsgrpo.errors import shown

_LARGEST_EXACT = 2**53  # a float beyond it may stand for several whole numbers
_BLANK = "".join(filter(str.isspace, map(chr, range(0x3001)))) + "\ufeff\u200b\u200c\u200d\u2060"
"""White space, and characters that nobody sees though Python does not count them as such: byte order mark, zero-width
spaces and joiners."""
_NUMBER = re.compile(r"[+-]?(\d+)(?:\.0*)?")
_MAX_LIKELY = 3
_LAST_NUMBER = re.compile(r"(?:^|.*\D)(\d+)(?:\.0+)?(?:\.[A-Za-z]\w*)?", re.DOTALL)


def plain_id(value: object) -> str | None:
    """An id as it is compared: as text, without blanks around it; a whole number is its digits.

    Leading zeros, capitals and everything else count: ``007`` is not ``7``, and the text ``4.0`` is not ``4``.

    Args:
        value: the id as it stands in the file.

    Returns:
        The id; None where the value is no id: empty, true or false, a fraction, a list, nothing at all.

    Example:
        ``plain_id(" 4\\n") == plain_id(4) == plain_id(4.0) == "4"``; ``plain_id("4.0") == "4.0"``;
        ``plain_id(4.5) is None``.
    """
    if isinstance(value, str):
        return well_formed(value)[0].strip(_BLANK) or None
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float) and math.isfinite(value) and value.is_integer() and abs(value) <= _LARGEST_EXACT:
        return str(int(value))
    return None


def well_formed(text: str) -> tuple[str, int]:
    """A text that can be written as UTF-8: each lone surrogate, half of a character, becomes ``\\ufffd``.

    Returns:
        The text that can be written, and how many lone surrogates were replaced.

    Example:
        ``well_formed("a\\ud83d") == ("a\\ufffd", 1)``; whole characters stay: ``well_formed("é") == ("é", 0)``.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        fixed = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
        return fixed, fixed.count("\ufffd") - text.count("\ufffd")
    return text, 0


def near_misses(seen: Iterable[str], wanted: Iterable[str]) -> list[tuple[str, str]]:
    """Ids that fail the rule but look like one that is wanted, in the order seen.

    Alike are ids that differ in capitals, blanks or character forms, in leading zeros or ``.0``, or in what stands
    around their last number. Where several wanted ids look alike, the one that shares most is named.

    Example:
        ``near_misses(["4.0", "chartqa_7", "x"], ["4", "7"]) == [("4.0", "4"), ("chartqa_7", "7")]``
    """
    by_key: dict[tuple[int, str], str] = {}
    for wanted_id in wanted:
        for key in _loose_keys(wanted_id):
            by_key.setdefault(key, wanted_id)
    found = []
    for response in seen:
        alike = next((by_key[key] for key in _loose_keys(response) if key in by_key), None)
        if alike is not None and alike != response:
            found.append((response, alike))
    return found


def likely_names(name: str, known: Sequence[str]) -> str:
    """The names that a misspelt one may mean, as the end of a sentence; empty if none is like it.

    Args:
        name: the name as it was written, such as a document's.
        known: the names that there are.

    Example:
        ``likely_names("pump.pdf", ["pumps.pdf", "b.pdf"])`` is ``"; the nearest is 'pumps.pdf'"``.
    """
    found = difflib.get_close_matches(name, known, n=_MAX_LIKELY)
    if not found:
        return ""
    quoted = " and ".join(repr(shown(likely, 120)) for likely in found)
    return f"; the nearest {'is' if len(found) == 1 else 'are'} {quoted}"


def _loose_keys(name: str) -> list[tuple[int, str]]:
    """The keys that ids which look alike have in common, closest first."""
    folded = "".join(unicodedata.normalize("NFKC", name).casefold().split())
    keys = [(0, folded)]
    number = _NUMBER.fullmatch(folded)
    if number:
        keys.append((1, number[1].lstrip("0") or "0"))
    last = _LAST_NUMBER.fullmatch(folded)
    if last:
        keys.append((1, last[1].lstrip("0") or "0"))
    return keys
