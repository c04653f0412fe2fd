"""Checks that the settings share."""

from __future__ import annotations

import math

from rsgrpo.errors import RsgrpoError

TAGS = tuple(f"<{slash}{name}>" for name in ("observe", "evidence", "think", "answer") for slash in ("", "/"))


class ConfigError(RsgrpoError, ValueError):
    """A setting is wrong; the message names the key, what was got, and the way out."""


def one_of(key: str, value: str, choices: tuple[str, ...]) -> None:
    """Refuse a value that is none of ``choices``."""
    if value not in choices:
        raise ConfigError(f"{key}={value!r} is not known; choose one of {', '.join(choices)}")


def at_least(key: str, value: float, minimum: float) -> None:
    """Refuse a value below ``minimum``, or NaN."""
    if math.isnan(value) or value < minimum:
        raise ConfigError(f"{key}={value} is too small; it must be at least {minimum}")


def check_share(key: str, value: float) -> None:
    """Refuse a value outside 0 to 1, or NaN."""
    if not 0.0 <= value <= 1.0:
        raise ConfigError(f"{key}={value} must lie in [0, 1]")


def more_than(key: str, value: float, bound: float) -> None:
    """Refuse a value not above ``bound``, or NaN."""
    if math.isnan(value) or value <= bound:
        raise ConfigError(f"{key}={value} is too small; it must be more than {bound}")
