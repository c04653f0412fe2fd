"""Read settings such as ``embedder.NAME=VALUE`` off the command lines of the index commands."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rsgrpo.config import DataConfig
from rsgrpo.config.building import build
from rsgrpo.config.checks import ConfigError
from rsgrpo.config.documents import RenderSettings
from rsgrpo.config.embedder import EmbedderConfig
from rsgrpo.config.index import IndexConfig
from rsgrpo.errors import shown

_SETTING = re.compile(r"(?P<group>[a-z_]+)\.(?P<name>\w+)=(?P<value>.*)", re.DOTALL)
_DATA_SETTING = re.compile(r"data\.(?P<name>\w+)=(?P<value>.*)", re.DOTALL)
_GROUPS: Mapping[str, type] = {"embedder": EmbedderConfig, "index": IndexConfig, "documents": RenderSettings}
DEFAULT_EMBEDDER = "runs/retriever_quickstart/models/retriever"
"""The folder of the embedder that is taken where none is named: that of ``recipe=retriever_quickstart``."""

_OF_THE_EMBEDDER = ("dpi", "max_pixels")  # pages are rendered as the embedder sees them


@dataclass(frozen=True, kw_only=True, slots=True)
class GivenSettings:
    """The settings that a command line gives; all others keep their default.

    Attributes:
        embedder: the value, as text, of each ``embedder`` setting by its name.
        index: the value, as text, of each ``index`` setting by its name.
        documents: the value, as text, of each ``documents`` setting by its name.
    """

    embedder: Mapping[str, str] = field(default_factory=dict)
    index: Mapping[str, str] = field(default_factory=dict)
    documents: Mapping[str, str] = field(default_factory=dict)


def split_settings(arguments: Sequence[str]) -> tuple[list[str], GivenSettings]:
    """Tell settings from files and questions.

    Args:
        arguments: the arguments of a command.

    Returns:
        The arguments that are no settings, and the settings; of a setting that is given twice the later value counts.

    Raises:
        ConfigError: there is no setting of a given name; the message names the nearest.

    Example:
        ``split_settings(["a.pdf", "index.num_probes=8"])`` gives ``["a.pdf"]`` and, for the index,
        ``{"num_probes": "8"}``.
    """
    rest = []
    given: dict[str, dict[str, str]] = {group: {} for group in _GROUPS}
    for argument in arguments:
        found = _SETTING.fullmatch(argument)
        if found is None or found["group"] not in _GROUPS:
            if found is not None:
                _check_group(argument, found)
            rest.append(argument)
            continue
        known = [f"{found['group']}.{setting.name}" for setting in dataclasses.fields(_GROUPS[found["group"]])]
        key = f"{found['group']}.{found['name']}"
        if key not in known:
            from rsgrpo.config.refusals import nearest  # here, because it imports hydra

            raise ConfigError(f"there is no setting {shown(key)}{nearest(key, known) or f'; there are {known}'}")
        given[found["group"]][found["name"]] = found["value"]
    return rest, GivenSettings(**given)


def _check_group(argument: str, found: re.Match[str]) -> None:
    """Refuse what is a setting but for a slip in its group, such as ``embedders.dpi=100``."""
    from rsgrpo.config.refusals import nearest

    known = [f"{group}.{setting.name}" for group, kind in _GROUPS.items() for setting in dataclasses.fields(kind)]
    is_name = any(key.endswith(f".{found['name']}") for key in known)
    if is_name and not Path(argument).exists():
        key = f"{found['group']}.{found['name']}"
        raise ConfigError(f"there is no setting {shown(key)}{nearest(key, known)}")


def split_data_settings(arguments: Sequence[str]) -> tuple[list[str], Mapping[str, str]]:
    """Tell settings of how questions and images are read, such as ``data.on_bad_sample=skip``, from everything else.

    Args:
        arguments: the arguments of a command that reads a data set.

    Returns:
        The other arguments, and the value, as text, of each ``data`` setting by its name; a later one counts.
    """
    found = {argument: _DATA_SETTING.fullmatch(argument) for argument in arguments}
    given = {setting["name"]: setting["value"] for setting in found.values() if setting}
    return [argument for argument in arguments if not found[argument]], given


def data_settings(given: Mapping[str, str], **defaults: Any) -> DataConfig:
    """Build the settings of how questions and images are read.

    Args:
        given: the settings that the command line gives, by name.
        defaults: values that stand in where the command line says nothing, by name.

    Returns:
        The settings, checked.

    Raises:
        ConfigError: there is no such setting, or a value does not fit.
    """
    found: DataConfig = _built(DataConfig, "data", defaults, given)
    return found


def embedder_settings(given: GivenSettings, model: str, saved: EmbedderConfig | None = None) -> EmbedderConfig:
    """Build the settings of the embedder.

    Args:
        given: the settings that the command line gives.
        model: the value of ``--embedder``; empty: the model that ``embedder.model`` or the index names, or else the
            one that the quickstart has trained (:data:`DEFAULT_EMBEDDER`).
        saved: the settings that stand in the index, which hold where the command line says nothing; None: there are
            none.

    Returns:
        The settings, checked.

    Raises:
        ConfigError: a value does not fit, or no model is named and none was trained.
    """
    before = dataclasses.asdict(saved) if saved else {}
    named = {"model": model} if model else {}
    if not (before or named or given.embedder.get("model")):
        named = {"model": _default_embedder()}
    found: EmbedderConfig = _built(EmbedderConfig, "embedder", before, {**given.embedder, **named})
    return found


def _default_embedder() -> str:
    """The folder of the small embedder that the quickstart has trained here."""
    if not (Path(DEFAULT_EMBEDDER) / "modules.json").is_file():
        raise ConfigError(
            "no embedder is named; add --embedder MODEL, a folder or a name on the hub, or train a small one: `uv run "
            f"train.py recipe=retriever_quickstart` writes {DEFAULT_EMBEDDER}, which is taken where none is named"
        )
    return DEFAULT_EMBEDDER


def index_settings(given: GivenSettings) -> IndexConfig:
    """Build the settings of the index.

    Args:
        given: the settings that the command line gives; all others have their default.

    Returns:
        The settings, checked.

    Raises:
        ConfigError: a value does not fit.
    """
    found: IndexConfig = _built(IndexConfig, "index", {}, given.index)
    return found


def render_settings(given: GivenSettings, embedder: EmbedderConfig) -> RenderSettings:
    """Build the settings by which documents are rendered.

    Args:
        given: the settings that the command line gives.
        embedder: the settings of the embedder, whose resolution pages are rendered at.

    Returns:
        The settings, checked.

    Raises:
        ConfigError: a value does not fit, or a resolution is given that is not the embedder's.
    """
    for name in _OF_THE_EMBEDDER:
        if name in given.documents:
            raise ConfigError(
                f"documents.{name} is the embedder's: pages are rendered as it sees them; set embedder.{name}"
            )
    before = {name: getattr(embedder, name) for name in _OF_THE_EMBEDDER}
    found: RenderSettings = _built(RenderSettings, "documents", before, given.documents)
    return found


def _built(kind: type, group: str, before: Mapping[str, Any], given: Mapping[str, str]) -> Any:
    schema = OmegaConf.structured(kind)
    OmegaConf.set_readonly(schema, False)  # as it is of a frozen class
    try:
        # Each value is a text; OmegaConf makes of it what the field is, but for null.
        values = {name: None if value == "null" else value for name, value in given.items()}
        return build(OmegaConf.merge(schema, before, values), group)
    except OmegaConfBaseException as error:
        name = error.full_key or ""
        raise ConfigError(
            f"{group}.{name}={shown(given.get(name, ''), 80)} does not fit ({shown(str(error).splitlines()[0], 160)})"
        ) from error
