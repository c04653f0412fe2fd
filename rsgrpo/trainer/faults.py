"""What a trainer leaves behind when a step goes wrong: a batch to reproduce it, or how much memory it lacked."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

import torch

from rsgrpo.config import LossConfig
from rsgrpo.errors import RsgrpoError, shown
from rsgrpo.io.manifest import CHECKPOINT_VERSION, folder_problem, write_manifest
from rsgrpo.io.record_codec import read_record, write_record
from rsgrpo.model.micro_batches import PackedSequence
from rsgrpo.trainer.checkpoint import CheckpointError, write_folder
from rsgrpo.types import TrainingGroup

_BATCH = "batch"  # batch.json and batch.safetensors
_ASKED_BYTES = re.compile(r"allocate (\d+) bytes")  # torch's CPU allocator
_ASKED_UNITS = re.compile(r"allocate ([\d.]+) (KiB|MiB|GiB)")  # torch's CUDA allocator
_UNITS = {"KiB": 2.0**10, "MiB": 2.0**20, "GiB": 2.0**30}
_GIB = 2.0**30


class TrainerMemoryError(RsgrpoError):
    """A sequence did not fit into the memory of a rank; the message says what it needed and which budget to lower."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class FaultyBatch:
    """A step whose gradient was not finite, as ``Policy.update`` was called.

    Attributes:
        groups: the prompts, responses and credit; pages are named, not stored.
        objective: the objective, ``policy`` or ``nll``.
        loss: the settings of the loss; None for ``nll``.
        version: how many optimizer steps were taken before the step.
    """

    groups: tuple[TrainingGroup, ...]
    objective: str
    loss: LossConfig | None
    version: int


def write_faulty_batch(folder: Path, batch: FaultyBatch) -> None:
    """Keep a batch; the folder appears complete or not at all.

    Args:
        folder: the folder to write, ``faults/<version>`` in the run folder.
        batch: the batch that was trained on.

    Raises:
        CheckpointError: the disk is full.
    """

    def write(partial: Path) -> None:
        write_record(partial, _BATCH, batch, version=CHECKPOINT_VERSION)
        write_manifest(partial)

    write_folder(folder, write)


def read_faulty_batch(folder: Path) -> FaultyBatch:
    """What :func:`write_faulty_batch` kept: start a policy from the run's model or checkpoint and update with it.

    Args:
        folder: the folder that :func:`write_faulty_batch` wrote, perhaps somebody else's: nothing in it can run code.

    Raises:
        CheckpointError: there is no batch, or it is damaged or of another version.
        RecordError: the files hold something else than a batch.
    """
    if problem := folder_problem(folder, needed=(f"{_BATCH}.json", f"{_BATCH}.safetensors")):
        raise CheckpointError(f"{shown(folder)} holds no batch that can be used: {problem}")
    return read_record(folder, _BATCH, FaultyBatch, version=CHECKPOINT_VERSION)


def is_memory_error(error: BaseException) -> bool:
    """Whether an allocation failed, on whichever device.

    Args:
        error: the error as torch, numpy or Python raised it.
    """
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)


def memory_error(
    error: BaseException, packed: PackedSequence | None, *, budget: int, device: torch.device
) -> RsgrpoError:
    """The failure in the user's terms.

    Args:
        error: the error that was raised, see :func:`is_memory_error`.
        packed: what was being computed; None: nothing of a sequence, such as the optimizer's step.
        budget: the most packed tokens of a sequence (``trainer.micro_batch_tokens``).
        device: the device that the model is on.

    Example:
        "out of memory: a sequence of 8192 tokens (4 responses) needed at least 141.0 GiB: 130.5 GiB were in use,
        10.5 GiB more were asked for, cuda:0 has 139.8 GiB; set trainer.micro_batch_tokens below 8192 (now 16384), ..."
    """
    used, total = _memory(device)
    asked = _asked_bytes(str(error))
    need = (
        f"needed at least {(used + asked) / _GIB:.1f} GiB: {used / _GIB:.1f} GiB were in use, "
        f"{asked / _GIB:.1f} GiB more were asked for, {device} has {total / _GIB:.1f} GiB"
    )
    others = "set trainer.offload_optimizer=true, use more ranks with trainer.zero_stage=3, or set model.lora.rank"
    if packed is None:
        return TrainerMemoryError(f"out of memory: the optimizer step {need}; {others}")
    num_responses = len(packed.response_lengths)
    if num_responses > 1:
        way_out = f"set trainer.micro_batch_tokens below {packed.num_tokens} (now {budget})"
    else:
        way_out = (
            "a single response cannot be cut further: set model.gradient_checkpointing=true, lower data.max_pixels, "
            "data.max_images or rollout.sampling.max_response_tokens"
        )
    return TrainerMemoryError(
        f"out of memory: a sequence of {packed.num_tokens} tokens ({num_responses} responses) {need}; {way_out}; "
        f"else {others}"
    )


def _asked_bytes(message: str) -> float:
    if found := _ASKED_BYTES.search(message):
        return float(found.group(1))
    if found := _ASKED_UNITS.search(message):
        return float(found.group(1)) * _UNITS[found.group(2)]
    return 0.0


def _memory(device: torch.device) -> tuple[int, int]:
    """How many bytes of memory are in use, and how many there are."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device), torch.cuda.get_device_properties(device).total_memory
    page = os.sysconf("SC_PAGE_SIZE")
    resident = int(Path("/proc/self/statm").read_text().split()[1])
    return resident * page, os.sysconf("SC_PHYS_PAGES") * page
