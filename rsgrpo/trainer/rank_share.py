"""What a rank writes into a checkpoint: named tensors and a few numbers, in files that hold nothing else."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from rsgrpo.config import OptimizerConfig
from rsgrpo.errors import shown
from rsgrpo.io.atomic_files import parse_json, shown_error
from rsgrpo.io.manifest import CHECKPOINT_VERSION
from rsgrpo.io.record_codec import RecordError, from_plain, to_plain, version_problem
from rsgrpo.trainer.checkpoint import CheckpointError

_VERSION_KEY, _COUNTERS_KEY = "checkpoint_version", "counters"


@dataclass(frozen=True, kw_only=True, slots=True)
class RankCounters:
    """Where a rank's schedule stands.

    Attributes:
        stage_step: how many optimizer steps of the stage were taken, skipped ones included.
        num_steps: how many steps the whole stage has.
        num_skipped_in_row: how many steps in a row were skipped up to now.
        engine_steps: how many steps DeepSpeed counted, over all stages.
        engine_skipped_steps: how many of these were skipped.
        optimizer: the optimizer's settings for the stage.
    """

    stage_step: int
    num_steps: int
    num_skipped_in_row: int
    engine_steps: int
    engine_skipped_steps: int
    optimizer: OptimizerConfig


def optimizer_file(rank: int) -> str:
    """Name of a rank's masters, moments, random state and counters."""
    return f"optimizer-{rank:05d}.safetensors"


def weights_file(rank: int, zero_stage: int) -> str:
    """Name of the file with the weights of a rank: its own under ZeRO 3, else that of the first rank."""
    return f"weights-{rank if zero_stage == 3 else 0:05d}.safetensors"


def rank_files(rank: int, zero_stage: int) -> tuple[str, ...]:
    """Names of the files that a rank writes."""
    has_weights = zero_stage == 3 or rank == 0
    return (optimizer_file(rank), *((weights_file(rank, zero_stage),) if has_weights else ()))


def write_tensors(path: Path, tensors: Mapping[str, Tensor], counters: RankCounters | None = None) -> None:
    """Write tensors as they are, from whichever device.

    Args:
        path: the file to write, in a folder that appears as a whole.
        tensors: the tensors by name; none of them overlaps another.
        counters: the rank's counters, which are written with the tensors; None: none are.
    """
    metadata = {_VERSION_KEY: str(CHECKPOINT_VERSION)}
    if counters is not None:
        metadata[_COUNTERS_KEY] = json.dumps(to_plain(counters))
    save_file({name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}, path, metadata)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """What :func:`write_tensors` wrote, on the CPU; nothing in the file can run code.

    Raises:
        CheckpointError: the file is missing, damaged, or of another version.
    """
    return _read(path)[0]


def read_counted(path: Path) -> tuple[dict[str, Tensor], RankCounters]:
    """The tensors that :func:`write_tensors` wrote, with the counters.

    Raises:
        CheckpointError: the file is missing, damaged, or of another version, or holds no counters.
    """
    tensors, metadata = _read(path)
    try:
        return tensors, from_plain(RankCounters, parse_json(metadata.get(_COUNTERS_KEY, "null")))
    except (RecordError, ValueError) as error:
        raise CheckpointError(f"{shown(path)} holds no counters ({shown_error(error)})") from error


def _read(path: Path) -> tuple[dict[str, Tensor], Mapping[str, str]]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            names = list(file.keys())
            tensors = {name: file.get_tensor(name) for name in names}
    except (OSError, SafetensorError, ValueError, TypeError) as error:
        raise CheckpointError(f"{shown(path)} cannot be read ({shown_error(error)})") from error
    if metadata.get(_VERSION_KEY) != str(CHECKPOINT_VERSION):
        raise CheckpointError(version_problem(shown(path), metadata.get(_VERSION_KEY), CHECKPOINT_VERSION))
    return tensors, metadata


def check_fit(path: Path, found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    """Refuse tensors that are not those of this model.

    Args:
        path: the file that the tensors come from.
        found: the tensors that were read.
        wanted: the tensors to be filled; only names, shapes and precisions count.

    Raises:
        CheckpointError: a tensor is too many, missing or different; the message names the first.
    """
    for name in sorted({*found, *wanted}):
        sides = [_form(found.get(name)), _form(wanted.get(name))]
        if sides[0] != sides[1]:
            raise CheckpointError(
                f"{shown(path)} is of another model: {name!r} is {sides[0]} there and {sides[1]} here; go on with "
                "the model and settings that it was written with, or start a new run"
            )


def _form(tensor: Tensor | None) -> str:
    return "missing" if tensor is None else f"{list(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"


def random_states() -> dict[str, Tensor]:
    """The states of torch's generators, on the CPU and on the rank's GPU."""
    states = {"rng/torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["rng/cuda"] = torch.cuda.get_rng_state()
    return states


def set_random_states(states: Mapping[str, Tensor]) -> None:
    """Set torch's generators to the states that :func:`random_states` gave.

    Args:
        states: the tensors that :func:`random_states` gave, beside others.
    """
    torch.set_rng_state(states["rng/torch"])
    if "rng/cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["rng/cuda"])
