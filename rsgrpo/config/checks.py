"""Checks that the settings share."""

from __future__ import annotations

import math

from rsgrpo.errors import RsgrpoError, shown

MAX_PROCESSES = 4096
"""More ranks, engines, nodes or GPUs of a node than any cluster of today has: a slip, which would start them all."""

MAX_THREADS = 1024
"""More threads than a machine has cores."""

MAX_SECONDS = 1.0e7
"""A wait beyond 115 days: more than the clocks of Ray and of threads take."""
MAX_STEP_SAMPLES = 1_000_000  # of one optimizer step: they are held in memory together
MAX_TOKENS = 100_000_000  # of a sequence


class ConfigError(RsgrpoError, ValueError):
    """A setting is wrong; the message names the key, what was got, and the way out."""


def one_of(key: str, value: str, choices: tuple[str, ...]) -> None:
    """Refuse a value that is none of ``choices``."""
    if value not in choices:
        raise ConfigError(f"{key}={shown(value, 80)!r} is not known; choose one of {', '.join(choices)}")


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


def between(key: str, value: float, minimum: float, maximum: float) -> None:
    """Refuse a value outside ``minimum`` to ``maximum``, or NaN."""
    at_least(key, value, minimum)
    at_most(key, value, maximum)


def at_most(key: str, value: float, maximum: float) -> None:
    """Refuse a value above ``maximum``, or NaN."""
    if math.isnan(value) or value > maximum:
        raise ConfigError(f"{key}={value} is too large; it must be at most {maximum:g}")


def not_empty(key: str, value: str) -> None:
    """Refuse an empty or blank text."""
    if not value.strip():
        raise ConfigError(f"{key} is empty; set {key}=VALUE, or leave it out for the default")
