"""A run's settings, and the same with other rewards or sections."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from yaml import YAMLError

from rsgrpo.config import Config, ConfigError, ResponseFormat, RewardConfig, load_config
from rsgrpo.errors import shown
from rsgrpo.io.atomic_files import FileError, shown_error
from rsgrpo.run.folder import RunFolder, read_settings

_REPLAYED = ("rewards.", "rl.credit.", "response.")


def run_settings(run_folder: Path) -> Config:
    """The settings that a run wrote.

    Raises:
        ConfigError: the folder holds no settings, or they do not fit this version.
    """
    file = RunFolder(root=run_folder).config_file
    settings = _read(file)
    try:
        return load_config(settings)
    except ConfigError as error:
        raise ConfigError(f"{shown(file)}: {shown_error(error)}") from error


def changed_settings(run_folder: Path, file: Path | None, overrides: Sequence[str]) -> Config:
    """A run's settings with other rewards, credit or sections.

    Args:
        run_folder: the folder of the run.
        file: YAML whose ``rewards`` (and ``response``) take the place of the run's, and whose ``rl.credit`` is laid
            over them; a recipe will do. None: the run's own.
        overrides: settings as on the command line of ``rsgrpo train``: ``rewards.accuracy.weight=1`` sets a value,
            ``+rewards.mine={…}`` adds a reward, ``~rewards.format`` takes one out, ``response.sections=[…]`` declares
            other sections.

    Returns:
        The run's settings with these changes, checked.

    Raises:
        ConfigError: the file cannot be read, or an override changes something else than rewards and credit, or a reward
            that does not exist.
    """
    composed = _read(RunFolder(root=run_folder).config_file)
    if file is not None:
        other = _read(file)
        rewards = OmegaConf.select(other, "rewards")
        if not rewards:
            raise ConfigError(
                f"{file} has no rewards; name a file that sets them, such as configs/recipe/quickstart.yaml"
            )
        composed.rewards = rewards
        response = OmegaConf.select(other, "response")
        if response is not None:
            composed.response = response
        credit = OmegaConf.select(other, "rl.credit")
        if credit is not None:
            composed = _merged(composed, {"rl": {"credit": credit}})
    for override in overrides:
        composed = _overridden(composed, override, _REPLAYED)
    return load_config(composed)


def yaml_rewards(file: Path | None, overrides: Sequence[str] = ()) -> tuple[dict[str, RewardConfig], ResponseFormat]:
    """The rewards that a YAML file sets, such as a recipe, and the sections that it declares: by default EVisRAG's.

    Args:
        file: the file to read; None: no rewards.
        overrides: settings of ``response.*`` and, where there is a file, of ``rewards.*``, as for
            :func:`changed_settings`.

    Raises:
        ConfigError: the file cannot be read or sets no rewards, settings do not fit the schema, or an override changes
            something else than rewards and sections.
    """
    response = None if file is None else OmegaConf.select(_read(file), "response")
    composed = OmegaConf.create(
        {
            "stage": "eval",  # nothing is trained: no reward at all will do
            "rewards": {} if file is None else _rewards(file),
            "response": {} if response is None else response,
        }
    )
    for override in overrides:
        composed = _overridden(composed, override, ("response.",) if file is None else ("rewards.", "response."))
    config = load_config(composed)
    return config.rewards, config.response.format


def parsed_value(text: str) -> Any:
    """A value as YAML has it: ``3`` is a number, ``[a, b]`` a list.

    Raises:
        ConfigError: the text is no YAML.
    """
    try:
        return OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"]))["value"]  # type: ignore[index, call-overload]
    except YAMLError as error:
        raise ConfigError(f"the value {text!r} cannot be read: {error}") from error


def _overridden(composed: DictConfig, override: str, changeable: Sequence[str]) -> DictConfig:
    key, _, text = override.partition("=")
    name = key.lstrip("+~")
    if not name.startswith(tuple(changeable)):
        listed = ", ".join(f"{prefix}*" for prefix in changeable)
        raise ConfigError(f"{override!r} is no setting that can be changed here; these can: {listed}")
    reward = name.split(".")[1]
    is_known = reward in composed.rewards if name.startswith("rewards.") else True
    if key.startswith("~"):
        if name != f"rewards.{reward}" or not is_known:
            raise ConfigError(f"{override!r}: the run has no such reward; it has {', '.join(composed.rewards)}")
        del composed.rewards[reward]
        return composed
    if "=" not in override:
        raise ConfigError(f"{override!r} has no value; write {key}=VALUE")
    if not is_known and not key.startswith("+"):
        raise ConfigError(
            f"{override!r}: the run has no reward {reward!r} (it has {', '.join(composed.rewards)}); "
            "write +rewards.NAME={…} to add one"
        )
    # Not merged: a new scope takes the old one's place.
    OmegaConf.update(composed, name, parsed_value(text), merge=False, force_add=True)
    return composed


def _rewards(file: Path) -> DictConfig:
    rewards = OmegaConf.select(_read(file), "rewards")
    if not isinstance(rewards, DictConfig) or not rewards:
        raise ConfigError(f"{file} has no rewards; name a file that sets them, such as configs/recipe/quickstart.yaml")
    return rewards


def _merged(composed: DictConfig, other: dict[str, Any]) -> DictConfig:
    merged = OmegaConf.merge(composed, other)
    assert isinstance(merged, DictConfig)
    return merged


def _read(file: Path) -> DictConfig:
    try:
        return read_settings(file)
    except FileError as error:
        raise ConfigError(f"{error}; name a run folder, or a YAML file") from error
