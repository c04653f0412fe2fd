"""Folders that are either complete or not there, and which of them is the newest."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from safetensors import SafetensorError

from rsgrpo.errors import RsgrpoError

_PARTIAL = ".partial-"  # a folder of this prefix was being written when its process died

_FULL_DISK_BYTES = 2**20
_META = "policy.json"


class CheckpointError(RsgrpoError):
    """A checkpoint could not be written or read."""


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _is_full(error: Exception, place: Path) -> bool:
    """Whether a full disk is behind an error; torch and safetensors do not always say so by number."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    return "No space left" in str(error) or shutil.disk_usage(place).free < _FULL_DISK_BYTES


def write_folder(folder: Path, write: Callable[[Path], None]) -> None:
    """Fill a folder so that it appears complete or not at all; an older one of that name is replaced.

    Args:
        folder: where it shall stand; its parent is made if need be.
        write: fills the empty folder that it is given.

    Raises:
        CheckpointError: the disk is full; what stood there before still stands.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.parent / f"{_PARTIAL}{folder.name}"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir()
        write(partial)
        for path in sorted(partial.rglob("*")):
            _sync(path)
        _sync(partial)
    except (OSError, RuntimeError, SafetensorError) as error:
        is_full = _is_full(error, folder.parent)
        shutil.rmtree(partial, ignore_errors=True)
        if is_full:
            raise CheckpointError(
                f"no space left for {folder}: {error}; earlier checkpoints are untouched: free some space or set "
                "run_dir to another disk, then go on with resume=auto"
            ) from error
        raise
    replaced = folder.parent / f"{_PARTIAL}old-{folder.name}"
    shutil.rmtree(replaced, ignore_errors=True)
    if folder.exists():
        folder.replace(replaced)
    partial.replace(folder)
    _sync(folder.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def checkpoint_folders(root: Path, stage: str) -> list[Path]:
    """Complete checkpoints of a stage, ``<stage>-<step>``, by step.

    Args:
        root: the folder that holds them; need not exist.
        stage: such as ``sft`` or ``rl``.
    """
    pattern = re.compile(rf"{re.escape(stage)}-(\d+)")
    found = [
        (int(match.group(1)), path)
        for path in (root.iterdir() if root.is_dir() else ())
        if (match := pattern.fullmatch(path.name)) and path.is_dir()
    ]
    return [path for _, path in sorted(found)]


def latest_checkpoint(root: Path, stage: str) -> Path | None:
    """The newest complete checkpoint of a stage, or None; one that was cut off does not count.

    Args:
        root: the folder that holds them; need not exist.
        stage: such as ``sft`` or ``rl``.
    """
    folders = checkpoint_folders(root, stage)
    return folders[-1] if folders else None


def remove_old_checkpoints(root: Path, stage: str, *, keep: int) -> None:
    """Remove all but the newest ``keep`` checkpoints of a stage, and what was cut off while written.

    Args:
        root: the folder that holds them.
        stage: such as ``sft`` or ``rl``.
        keep: at least 1.
    """
    for folder in checkpoint_folders(root, stage)[: -max(1, keep)]:
        # Renamed first: a process killed in the middle must not leave half a checkpoint under its name.
        doomed = folder.parent / f"{_PARTIAL}old-{folder.name}"
        folder.replace(doomed)
        shutil.rmtree(doomed, ignore_errors=True)
    for partial in root.glob(f"{_PARTIAL}*"):
        shutil.rmtree(partial, ignore_errors=True)


@dataclass(frozen=True, kw_only=True, slots=True)
class PolicyMeta:
    """What a policy's checkpoint says of itself.

    Attributes:
        version: optimizer steps taken.
        shape: settings that its files depend on, by their full names.
        origin: checksum of frozen weights that it rests on but does not hold; empty: none.
    """

    version: int
    shape: Mapping[str, int | bool]
    origin: str


def write_policy_meta(folder: Path, meta: PolicyMeta) -> None:
    """Write it beside the ranks' files."""
    (folder / _META).write_text(json.dumps(asdict(meta)))


def read_policy_meta(folder: Path, *, shape: Mapping[str, int | bool], origin: str) -> PolicyMeta:
    """What a checkpoint says of itself, checked against the present policy.

    Args:
        folder: of the policy's checkpoint.
        shape: the present settings.
        origin: checksum of the present frozen weights.

    Raises:
        CheckpointError: there is no checkpoint, or it does not fit the present policy.
    """
    try:
        meta = PolicyMeta(**json.loads((folder / _META).read_text()))
    except FileNotFoundError as error:
        raise CheckpointError(f"{folder} holds no policy checkpoint ({_META} is missing)") from error
    for key, present in shape.items():
        if meta.shape[key] != present:
            raise CheckpointError(
                f"{folder} was written with {key}={meta.shape[key]}, now it is {present}; go on with "
                f"{key}={meta.shape[key]}, or start a new run from the exported model"
            )
    if meta.origin and origin and meta.origin != origin:
        raise CheckpointError(
            f"{folder} belongs to a stage that started from a model with checksum {meta.origin}, the present one has "
            f"{origin}: adapters and the KL term's reference need the very same model; put it back in its place, or "
            "start a new run from the exported model"
        )
    return meta
