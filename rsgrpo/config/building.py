"""From a composition to objects, node by node, so that every complaint names the whole key."""

from __future__ import annotations

import dataclasses
import functools
import math
import re
import typing
from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue

from rsgrpo.config.checks import ConfigError
from rsgrpo.errors import shown

_MAY_HOLD_LINES = re.compile(r"^prompt\.system$|\.template_arguments\b|\.kwargs\b")
_MAX_INTEGER = 2**63 - 1


def build(node: Any, key: str = "") -> Any:
    """Turn a node of a typed composition into the object that it stands for; all checks run.

    Args:
        node: the dictionary, list or value to build of.
        key: the key under which the node stands, ``""`` at the top.

    Raises:
        ConfigError: a value that no setting can have (not finite, beyond 64 bits, no text), a key without a value,
            or a class's own check; a class that stands in several places names its field, and the place is put in
            front: ``learning_rate=…`` becomes ``rl.optimizer.learning_rate=…``.
        omegaconf.errors.OmegaConfBaseException: a reference in the settings names a key that does not exist.
    """
    if isinstance(node, ListConfig):
        return [build(_value(node, index, f"{key}[{index}]"), f"{key}[{index}]") for index in range(len(node))]
    if not isinstance(node, DictConfig):
        _check_value(key, node)
        return node
    prefix = f"{key}." if key else ""
    values = {str(name): build(_value(node, name, f"{prefix}{name!s}"), f"{prefix}{name!s}") for name in node}
    kind = OmegaConf.get_type(node)
    if kind is None or not dataclasses.is_dataclass(kind):
        return values
    _check_lists(kind, values, prefix)
    try:
        return kind(**values)
    except ConfigError as error:
        raise _placed(error, key, {field.name for field in dataclasses.fields(kind)}) from None


def _value(node: DictConfig | ListConfig, name: Any, key: str) -> Any:
    try:
        return node[name]
    except MissingMandatoryValue:
        raise ConfigError(f"{key} has no value; set {key}=VALUE") from None


@functools.cache
def _plain_lists(kind: type) -> dict[str, str]:
    """What the entries of each list of a class are, where they are texts or numbers."""
    entries = {list[str]: "text", list[int]: "whole number", list[float]: "number"}
    hints = typing.get_type_hints(kind)
    found = {
        name: next((entries[part] for part in (hint, *typing.get_args(hint)) if part in entries), "")
        for name, hint in hints.items()
    }
    return {name: entry for name, entry in found.items() if entry}


def _check_lists(kind: type, values: Mapping[str, object], prefix: str) -> None:
    """Refuse dictionaries and lists where a list holds texts or numbers: OmegaConf lets them through."""
    for name, entry in _plain_lists(kind).items():
        found = values.get(name)
        for index, value in enumerate(found if isinstance(found, list) else ()):
            if isinstance(value, dict | list):
                raise ConfigError(
                    f"{prefix}{name}[{index}]={shown(value, 80)} is no {entry}; write one {entry} an entry"
                )


def _check_value(key: str, value: object) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{key}={value} is no number to work with; it must be finite")
    if isinstance(value, int) and abs(value) > _MAX_INTEGER:
        raise ConfigError(f"{key}={shown(value, 40)} is too large; it must fit into 64 bits")
    if isinstance(value, str):
        # Such a text can neither be written down nor name a file.
        if "\0" in value:
            raise ConfigError(f"{key}={shown(value, 80)!r} holds a zero byte; take it out")
        if not _MAY_HOLD_LINES.search(key) and any(
            ord(character) < ord(" ") or character == "\x7f" for character in value
        ):
            raise ConfigError(f"{key}={shown(value, 80)!a} holds a line break or control character; take it out")
        try:
            value.encode()
        except UnicodeEncodeError:
            raise ConfigError(f"{key}={shown(ascii(value), 80)} is no UTF-8 text; write it in UTF-8") from None


def _placed(error: ConfigError, key: str, own: set[str]) -> ConfigError:
    """The error with the whole key in its message, where the class named only its own field, or none."""
    message = str(error)
    if not key or f"{key.partition('.')[0]}." in message:
        return error
    is_own = re.split(r"[^\w]", message, maxsplit=1)[0] in own
    return ConfigError(f"{key}.{message}" if is_own else f"{key}: {message}")
