"""The one folder that holds everything a run writes, and the rules for going on in it.

config.yaml          settings, every default written out
metrics.jsonl        one line per step; the same in tensorboard/ and wandb/
rollouts.jsonl       groups kept in full for the report
data_report.json     what was read of the data, and what was left out
attention.json       what each training rank computes attention with, and why with nothing faster
image_view.json       at which size the model sees a page: our bounds and its processor's
stage_seconds.json   wall-clock time by stage, over all its processes
summary.json         what the run reached (docs/run_folder.md)
report.html          the same for people
data/ base_model/    the quickstart's own data and small model
checkpoints/         sft-000100/, rl-000020/, retriever-000500/ …: enough to go on to the bit
models/              sft/, rl/, retriever/: Hugging Face folders for `from_pretrained` and `vllm serve`
evaluations/         before_sft/, after_sft/, before_rl/, after_rl/: predictions and metrics
benchmarks/          answers and scores of ``eval.tasks``
faults/              batch and model of steps that could not be taken
error.log            the traceback of an unexpected error
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from rsgrpo.config import Config, ConfigError, resolved_yaml
from rsgrpo.errors import RsgrpoError, shown
from rsgrpo.io.atomic_files import FileError, read_bytes, shown_error, write_text
from rsgrpo.io.special_files import special_kind
from rsgrpo.io.writer_lock import LockHeldError, WriterLock

_FIXED_BY_A_RUN = (
    "seed",
    "model",
    "quickstart",
    "data",
    "prompt",
    "sft",
    "rl",
    "retriever",
    "rewards",
    "rollout.sampling",
)
_ADDED_LATER = ("retriever",)  # of these, keys that settings written by earlier releases lack
_ODDITIES = (ValueError, TypeError, AttributeError, AssertionError)  # what OmegaConf leaves to Python
_MIN_FREE_BYTES = 1 << 30  # the quickstart writes about 200 MB; below this a run cannot end well


class RunFolderError(RsgrpoError):
    """The run folder cannot be used; the message says why and what to do."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunFolder:
    """Paths inside one run's folder.

    Attributes:
        root: the path of the folder.
        note: what the user should know of it; empty: nothing.
    """

    root: Path
    note: str = ""

    @property
    def config_file(self) -> Path:
        """The file with the resolved settings."""
        return self.root / "config.yaml"

    @property
    def rollouts_file(self) -> Path:
        """The file of the groups kept for the report."""
        return self.root / "rollouts.jsonl"

    @property
    def image_view_file(self) -> Path:
        """The file with the bounds of pages, ours and the processor's."""
        return self.root / "image_view.json"

    @property
    def attention_file(self) -> Path:
        """The file that says what the ranks compute attention with."""
        return self.root / "attention.json"

    @property
    def summary_file(self) -> Path:
        """The file that says what the run reached."""
        return self.root / "summary.json"

    @property
    def stage_seconds_file(self) -> Path:
        """The file with the wall-clock time by stage."""
        return self.root / "stage_seconds.json"

    @property
    def data(self) -> Path:
        """The folder of the quickstart's data."""
        return self.root / "data"

    @property
    def base_model(self) -> Path:
        """The folder of the quickstart's small model, as it is before training."""
        return self.root / "base_model"

    @property
    def checkpoints(self) -> Path:
        """The folder of the checkpoints to go on from."""
        return self.root / "checkpoints"

    def model(self, stage: str) -> Path:
        """The folder of the model that a stage ended with."""
        return self.root / "models" / stage

    def evaluation(self, point: str) -> Path:
        """The folder with predictions and metrics of one evaluation, such as ``after_rl``."""
        return self.root / "evaluations" / point


def _differing_keys(old: Config, new: Config) -> list[str]:
    left = OmegaConf.structured(old)
    right = OmegaConf.structured(new)
    return [key for key in _FIXED_BY_A_RUN if OmegaConf.select(left, key) != OmegaConf.select(right, key)]


def read_settings(file: Path) -> DictConfig:
    """Settings as a YAML file has them, unchecked.

    Args:
        file: the file of settings, such as a run's ``config.yaml``.

    Raises:
        FileError: the file is missing, empty, no YAML, or holds something else.
    """
    content = read_bytes(file)
    try:
        settings = OmegaConf.create(content.decode())
    except (YAMLError, OmegaConfBaseException, *_ODDITIES, RecursionError) as error:
        raise FileError(f"{shown(file)} cannot be read as settings in YAML ({shown_error(error)})") from error
    plain = OmegaConf.to_container(settings, resolve=False)
    # A bare text becomes a key without a value.
    if not isinstance(settings, DictConfig) or not isinstance(plain, dict) or not any(plain.values()):
        raise FileError(f"{shown(file)} holds no settings")
    return settings


def _settings_of(folder: RunFolder) -> Config:
    """The settings that the run was begun with."""
    way_out = (
        "put it back, or move it away: the run then goes on with the settings of the command line, which should be "
        "those that it was begun with"
    )
    try:
        written = read_settings(folder.config_file)
        missing = [key for key in _FIXED_BY_A_RUN if "." not in key and key not in (*written, *_ADDED_LATER)]
        if missing:
            raise RunFolderError(f"{shown(folder.config_file)} was cut ({missing[0]} is missing); {way_out}")
        old = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Config), written))
    except FileError as error:
        raise RunFolderError(f"{error}; {way_out}") from error
    except (OmegaConfBaseException, ConfigError, *_ODDITIES) as error:
        raise RunFolderError(
            f"{shown(folder.config_file)} is not what this release writes ({shown_error(error)}); {way_out}"
        ) from error
    assert isinstance(old, Config)
    return old


def _check_same_settings(folder: RunFolder, config: Config) -> None:
    old = _settings_of(folder)
    if config.rl.max_staleness_steps < 0:  # whatever was decided then, and whatever is decided now
        config = replace(config, rl=replace(config.rl, max_staleness_steps=old.rl.max_staleness_steps))
    differing = _differing_keys(old, config)
    if differing:
        raise RunFolderError(
            f"{folder.root} was begun with other settings under {', '.join(differing)}; "
            f"start with those of {folder.config_file}, or choose another run_dir"
        )


def _has_results(folder: RunFolder) -> bool:
    """Whether a run got as far as a checkpoint or a model."""
    return any(place.is_dir() and any(place.iterdir()) for place in (folder.checkpoints, folder.root / "models"))


def begin_run(folder: RunFolder, config: Config) -> None:
    """Note the settings: from here on the folder holds a run, to be resumed and not begun anew.

    Args:
        folder: opened, everything prepared in it.
        config: the run's settings.
    """
    write_text(folder.config_file, resolved_yaml(config))


@contextmanager
def open_run_folder(config: Config) -> Iterator[RunFolder]:
    """Create or re-open the run folder and hold it for this process.

    Args:
        config: the run's settings.

    Yields:
        The folder; no other process can run in it until the block ends.

    Raises:
        RunFolderError: the folder already holds a run and ``resume`` is ``never``; it holds a run with other settings;
            another process is running in it; there is no space or no permission.
    """
    folder = RunFolder(root=Path(config.run_dir).absolute())
    try:
        folder.root.mkdir(parents=True, exist_ok=True)
        lock = WriterLock(folder.root / ".lock")
    except LockHeldError as error:
        raise RunFolderError(
            f"another process is running in {folder.root} ({shown(error.holder)}); wait for it, or choose another "
            "run_dir"
        ) from None
    except OSError as error:
        kind = "a file" if folder.root.is_file() else special_kind(folder.root)
        reason = f"it is {kind}" if kind else error
        raise RunFolderError(f"cannot write the run folder {folder.root}: {reason}; choose another run_dir") from error
    with lock:
        free_bytes = shutil.disk_usage(folder.root).free
        if free_bytes < _MIN_FREE_BYTES:
            raise RunFolderError(
                f"only {free_bytes >> 20} MiB are free at {folder.root}; a run needs at least "
                f"{_MIN_FREE_BYTES >> 20} MiB: free some, or choose another run_dir"
            )
        has_settings = folder.config_file.exists()
        if has_settings or _has_results(folder):
            if config.resume == "never":
                raise RunFolderError(
                    f"{folder.root} already holds a run; add resume=auto to go on with it, "
                    "choose another run_dir, or remove the folder"
                )
            if has_settings:
                _check_same_settings(folder, config)
            else:
                note = "config.yaml is missing: the settings are taken to be those that the run was begun with"
                folder = replace(folder, note=note)
        else:
            # What a preparation that failed has left may belong to other settings.
            for leftover in (folder.data, folder.base_model):
                shutil.rmtree(leftover, ignore_errors=True)
        yield folder
