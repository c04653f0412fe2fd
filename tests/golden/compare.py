"""Where two traces differ: tokens, spans and rewards exactly, floating-point numbers by their relative distance."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

RELATIVE = 1e-5
ABSOLUTE = 1e-8
"""Of numbers that are differences of larger ones, such as a loss whose two streams cancel."""

_EXACT = ("tokens", "text", "rewards")


def differences(expected: Any, found: Any, place: str = "", *, is_exact: bool = False) -> Iterator[str]:
    """One line for each place in which a trace is not as expected.

    Args:
        expected: objects, lists, texts and numbers, as JSON has them.
        found: the same.
        place: where both stand, for the line.
        is_exact: whether floating-point numbers must be equal to the bit.

    Example:
        ``{"a": [1, 2.0]}`` and ``{"a": [1, 2.5]}`` give ``a/1: 2.0 is now 2.5``.
    """
    if isinstance(expected, dict) and isinstance(found, dict):
        for key in dict.fromkeys((*expected, *found)):
            inner = f"{place}/{key}" if place else str(key)
            if key not in found:
                yield f"{inner}: is gone"
            elif key not in expected:
                yield f"{inner}: is new"
            else:
                yield from differences(expected[key], found[key], inner, is_exact=is_exact or key in _EXACT)
    elif isinstance(expected, list) and isinstance(found, list):
        if len(expected) != len(found):
            yield f"{place}: {len(expected)} entries are now {len(found)}"
        for index, (left, right) in enumerate(zip(expected, found, strict=False)):
            yield from differences(left, right, f"{place}/{index}", is_exact=is_exact)
    elif not _is_same(expected, found, is_exact=is_exact):
        yield f"{place}: {expected!r} is now {found!r}"


def _is_same(expected: Any, found: Any, *, is_exact: bool) -> bool:
    if is_exact or not (isinstance(expected, float) and isinstance(found, float)):
        return type(expected) is type(found) and bool(expected == found)
    return abs(expected - found) <= ABSOLUTE + RELATIVE * max(abs(expected), abs(found))
