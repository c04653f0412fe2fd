"""Checks that the settings share."""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_origin, get_type_hints

from rsgrpo.errors import RsgrpoError, shown

MAX_PROCESSES = 4096
"""More ranks, engines, nodes or GPUs of a node than any cluster of today has: a larger number is a slip."""

MAX_THREADS = 1024
"""More threads than any machine has cores."""

MAX_SECONDS = 1.0e7
"""The longest wait, 115 days: the clocks of Ray and of threads take no longer ones."""
MAX_STEP_SAMPLES = 1_000_000  # of one optimizer step: they are held in memory together
MAX_TOKENS = 100_000_000  # of a sequence


if TYPE_CHECKING:
    from typing import Literal as Literal
else:

    class Literal:
        """typing.Literal for settings. OmegaConf knows none: at run time it is a text that carries its choices."""

        def __class_getitem__(cls, choices: str | tuple[str, ...]) -> Any:
            return Annotated[(str, *(choices if isinstance(choices, tuple) else (choices,)))]


class ConfigError(RsgrpoError, ValueError):
    """A setting is wrong; the message names the key, what was got, and the way out."""


def one_of(key: str, value: str, choices: tuple[str, ...]) -> None:
    """Refuse a value that is none of ``choices``."""
    if value not in choices:
        raise ConfigError(f"{key}={shown(value, 80)!r} is not known; choose one of {', '.join(choices)}")


def check_choices(settings: object, prefix: str) -> None:
    """Refuse a value of a field of the kind ``Literal[...]`` that is none of its choices.

    Args:
        settings: an instance of a settings class.
        prefix: where it stands, such as ``rl.filter.``; empty: it stands in several places.
    """
    kind: Any = type(settings)  # a class can be hashed, which mypy does not see
    for name, choices in _choices(kind).items():
        one_of(f"{prefix}{name}", getattr(settings, name), choices)


@functools.cache
def _choices(kind: type) -> dict[str, tuple[str, ...]]:
    """The allowed values of each ``Literal`` field, from the annotations, which are evaluated once per class."""
    hints = get_type_hints(kind, include_extras=True)
    return {name: get_args(hint)[1:] for name, hint in hints.items() if get_origin(hint) is Annotated}


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
