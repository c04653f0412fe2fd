"""The settings that a command line means, composed as ``rsgrpo train`` does it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from recipes.commands.train import CONFIGS
from recipes.doctor.check import Check, Subject, ok
from rsgrpo.config import Config, load_config, register_schema
from rsgrpo.errors import RsgrpoError
from rsgrpo.failures import explain


class SettingsError(RsgrpoError, ValueError):
    """Hydra cannot compose the settings."""


def read_settings(overrides: Sequence[str]) -> Config:
    """Compose and check settings.

    Args:
        overrides: settings as for ``rsgrpo train``, such as ``recipe=quickstart`` and ``rl.max_steps=3``.

    Raises:
        RsgrpoError: hydra does not understand an override, or the settings do not fit together.
    """
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException

    GlobalHydra.instance().clear()
    register_schema()
    try:
        with initialize_config_dir(str(CONFIGS), version_base=None):
            composed = compose("config", overrides=list(overrides))
    except HydraException as error:
        raise SettingsError(explain(error).sentence) from error
    return load_config(composed)


def settings_checks(subject: Subject) -> Iterator[Check]:
    """The check that names what is examined, in a few words."""
    config = subject.config
    if config is None:
        return
    yield ok("settings", f"name={config.name}, stage={config.stage}, device={config.cluster.device}")
