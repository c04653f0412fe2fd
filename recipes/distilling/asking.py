"""What is asked of a run's policy, found out before anything that takes long to import."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from omegaconf import OmegaConf

from recipes.distilling.judging import DistillError
from rewards.lab.settings import parsed_value
from rsgrpo.config import Config, ConfigError, load_config
from rsgrpo.errors import shown
from rsgrpo.run.folder import RunFolder, read_settings

SAMPLED_STAGE = "distill"
"""The stage of the groups that the command samples, as it is recorded with them."""

_CHANGEABLE = ("rollout.", "cluster.", "data.", "seed", "logging.progress")


@dataclass(frozen=True, kw_only=True, slots=True)
class Asking:
    """What is asked of the policy.

    Attributes:
        questions: the data set, in EVisRAG's form; empty: the questions that the run's reinforcement stage trains on.
        num_samples: how many responses to each question.
        limit: how many questions at most, the first ones; 0: all.
        reward: the reward of the run that responses are judged by and that is recorded with them; empty: none.
    """

    questions: str
    num_samples: int
    limit: int
    reward: str


def sampling_settings(run_folder: Path, overrides: Sequence[str]) -> Config:
    """The settings of a run, with changes that concern sampling.

    Args:
        run_folder: the folder of the run.
        overrides: settings such as ``rollout.sampling.temperature=0.8``.

    Returns:
        The settings, checked, for a run that only answers.

    Raises:
        ConfigError: the folder has no settings, an override changes something else, or a value does not fit.
    """
    composed = read_settings(RunFolder(root=run_folder).config_file)
    composed.stage = "eval"
    for override in overrides:
        key, is_setting, value = override.partition("=")
        if not is_setting or not key.startswith(_CHANGEABLE):
            raise ConfigError(
                f"{shown(override, 80)!r} cannot be changed here; these can: distill.* and, for sampling, "
                + ", ".join(f"{name}*" if name.endswith(".") else name for name in _CHANGEABLE)
            )
        OmegaConf.update(composed, key, parsed_value(value), merge=False, force_add=True)
    config = load_config(composed)
    return dataclasses.replace(config, eval=dataclasses.replace(config.eval, tasks=[], checkpoint=""))


def trained_model(run_folder: Path) -> Path:
    """The folder of the model that a run ended with.

    Raises:
        DistillError: no stage of the run is finished.
    """
    folder = RunFolder(root=run_folder)
    for stage in ("rl", "sft"):
        if folder.model(stage).exists():
            return folder.model(stage)
    raise DistillError(
        f"{shown(run_folder)} holds no trained model (neither models/rl nor models/sft); let the run end, or leave out "
        "--samples and --questions to use the responses that it recorded"
    )
