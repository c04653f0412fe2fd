"""Read settings such as ``filter.stages=[{scorer: cosine, top_k: 20}]`` off the command lines of the filter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rsgrpo.config import ConfigError, QueryFilterConfig
from rsgrpo.config.building import build
from rsgrpo.errors import shown

_PREFIX = "filter."


def split_filter_settings(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Tell settings of the filter from everything else.

    Args:
        arguments: the arguments of a command.

    Returns:
        The other arguments, and the settings as they were given.
    """
    given = [argument for argument in arguments if argument.startswith(_PREFIX) and "=" in argument]
    return [argument for argument in arguments if argument not in given], given


def filter_settings(given: Sequence[str], **defaults: Any) -> QueryFilterConfig:
    """Build the settings of the filter.

    Args:
        given: the settings that the command line gives, such as ``filter.no=nein``; a later one counts more.
        defaults: values that stand in where the command line says nothing, by name; empty texts and None do not.

    Returns:
        The settings, checked.

    Raises:
        ConfigError: there is no such setting, or a value does not fit.
    """
    schema = OmegaConf.structured(QueryFilterConfig)
    before = {name: value for name, value in defaults.items() if value not in ("", None)}
    try:
        plain = OmegaConf.from_dotlist([setting.removeprefix(_PREFIX) for setting in given])
        found = build(OmegaConf.merge(schema, before, plain), "filter")
    except OmegaConfBaseException as error:
        key = error.full_key or ""
        raise ConfigError(
            f"filter.{shown(key, 80)} does not fit ({shown(str(error).splitlines()[0], 160)}); docs/settings.md lists "
            "what there is"
        ) from error
    except Exception as error:  # whatever the YAML of a value stumbles over
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(
            f"a setting of the filter is no YAML ({shown(error, 160)}); quote it for the shell"
        ) from error
    assert isinstance(found, QueryFilterConfig)
    return found
