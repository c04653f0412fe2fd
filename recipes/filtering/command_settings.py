"""Read settings such as ``filter.stages=[{scorer: cosine, top_k: 20}]`` off the command lines of the filter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rsgrpo.config import ConfigError, EndpointConfig, QueryFilterConfig
from rsgrpo.config.building import build
from rsgrpo.errors import shown

_PREFIX = "filter."
_ENDPOINT_PREFIX = "eval.endpoint."


def split_filter_settings(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Tell settings of the filter from everything else.

    Args:
        arguments: the arguments of a command.

    Returns:
        The other arguments, and the settings as they were given, those of a server (``eval.endpoint``) among them.
    """
    given = [argument for argument in arguments if argument.startswith((_PREFIX, _ENDPOINT_PREFIX)) and "=" in argument]
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
    before = {name: value for name, value in defaults.items() if value not in ("", None)}
    own = [setting.removeprefix(_PREFIX) for setting in given if setting.startswith(_PREFIX)]
    found = _built(QueryFilterConfig, before, own, "filter")
    assert isinstance(found, QueryFilterConfig)
    return found


def endpoint_settings(given: Sequence[str]) -> EndpointConfig:
    """Build the settings of the server that is asked for yes or no.

    Args:
        given: the settings that the command line gives.

    Returns:
        The settings, checked; without an address where none is given.

    Raises:
        ConfigError: there is no such setting, or a value does not fit.
    """
    own = [setting.removeprefix(_ENDPOINT_PREFIX) for setting in given if setting.startswith(_ENDPOINT_PREFIX)]
    found = _built(EndpointConfig, {}, own, "eval.endpoint")
    assert isinstance(found, EndpointConfig)
    return found


def _built(kind: type, before: dict[str, Any], given: Sequence[str], group: str) -> Any:
    try:
        return build(OmegaConf.merge(OmegaConf.structured(kind), before, OmegaConf.from_dotlist(list(given))), group)
    except OmegaConfBaseException as error:
        key = error.full_key or ""
        raise ConfigError(
            f"{group}.{shown(key, 80)} does not fit ({shown(str(error).splitlines()[0], 160)}); docs/settings.md lists "
            "what there is"
        ) from error
    except yaml.YAMLError as error:
        raise ConfigError(f"a setting of {group} is no YAML ({shown(error, 160)}); quote it") from error
