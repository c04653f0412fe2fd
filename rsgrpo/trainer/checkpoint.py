"""Folders that are either complete or not there, and which of them is the newest."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError

from rsgrpo.errors import RsgrpoError, shown
from rsgrpo.io.atomic_files import FileError, read_json_object, shown_error, shown_value, write_json
from rsgrpo.io.manifest import CHECKPOINT_VERSION, folder_problem
from rsgrpo.io.record_codec import RecordError, from_plain, to_plain, version_problem

_PARTIAL = ".partial-"  # a folder of this prefix was being written when its process died

_FULL_DISK_BYTES = 2**20
POLICY_META_FILE = "policy.json"
_SHOWN_CHECKPOINTS = 2


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
        folder: the folder to write; its parent is made if need be.
        write: fills the empty folder that it is given.

    Raises:
        CheckpointError: the disk is full; what stood there before still stands.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.parent / f"{_PARTIAL}{folder.name}"
    _remove(partial)
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
    _remove(replaced)
    if folder.exists():
        folder.replace(replaced)
    partial.replace(folder)
    _sync(folder.parent)
    _remove(replaced)


def checkpoint_step(folder: Path) -> int:
    """The step that a checkpoint ``<stage>-<step>`` was written after."""
    return int(folder.name.rpartition("-")[2])


def checkpoint_folders(root: Path, stage: str) -> list[Path]:
    """Checkpoints of a stage, ``<stage>-<step>``, by step; whether they are whole is not looked at.

    Args:
        root: the folder that holds them; need not exist.
        stage: the name of the stage, such as ``sft`` or ``rl``.
    """
    pattern = re.compile(rf"{re.escape(stage)}-([0-9]{{1,18}})")
    found = [
        (int(match.group(1)), path)
        for path in (root.iterdir() if root.is_dir() else ())
        if (match := pattern.fullmatch(path.name))
    ]
    return [path for _, path in sorted(found)]


@dataclass(frozen=True, kw_only=True, slots=True)
class FoundCheckpoint:
    """What a stage can go on from.

    Attributes:
        folder: the newest whole checkpoint; None: the stage wrote none yet.
        damaged: what is wrong with the checkpoints that are newer, the newest first.
    """

    folder: Path | None
    damaged: tuple[str, ...] = ()


def find_checkpoint(root: Path, stage: str, needed: Iterable[str] = ()) -> FoundCheckpoint:
    """The newest checkpoint of a stage in which every file is what it was when it was written.

    Args:
        root: the folder that holds them; need not exist.
        stage: the name of the stage, such as ``sft`` or ``rl``.
        needed: names that must be among a checkpoint's files.

    Raises:
        CheckpointError: there are checkpoints, but none is whole.
    """
    problems: list[str] = []
    try:
        folders = checkpoint_folders(root, stage)
    except OSError as error:
        raise CheckpointError(f"{shown(root)} cannot be read ({shown_error(error)})") from error
    for folder in reversed(folders):
        problem = folder_problem(folder, needed) if folder.is_dir() else "is no folder"
        if not problem:
            return FoundCheckpoint(folder=folder, damaged=tuple(problems))
        problems.append(f"{folder.name}: {problem}")
    if not problems:
        return FoundCheckpoint(folder=None)
    more = f" and {len(problems) - _SHOWN_CHECKPOINTS} more" if len(problems) > _SHOWN_CHECKPOINTS else ""
    reasons = shown("; ".join(problems[:_SHOWN_CHECKPOINTS]), limit=300)
    raise CheckpointError(
        f"no checkpoint of the stage {stage!r} can be used ({reasons}{more}); put one back from a copy, or move "
        f"{stage}-* out of {shown(root, limit=80)} to train the stage again"
    )


def remove_old_checkpoints(root: Path, stage: str, *, keep: int, newest: int | None = None) -> None:
    """Remove all but the newest ``keep`` checkpoints of a stage, and what was cut off while written.

    Args:
        root: the folder that holds them.
        stage: the name of the stage, such as ``sft`` or ``rl``.
        keep: how many checkpoints stay, at least 1.
        newest: the step of the one just written; what claims to be of later steps is what a resumed run passed over.
            None: the last one by number.
    """
    folders = checkpoint_folders(root, stage)
    void = [folder for folder in folders if newest is not None and checkpoint_step(folder) > newest]
    valid = [folder for folder in folders if folder not in void]
    for folder in (*void, *valid[: -max(1, keep)]):
        # Renamed first: a process killed in the middle must not leave half a checkpoint under its name.
        doomed = folder.parent / f"{_PARTIAL}old-{folder.name}"
        folder.replace(doomed)
        _remove(doomed)
    for partial in root.glob(f"{_PARTIAL}*"):
        _remove(partial)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@dataclass(frozen=True, kw_only=True, slots=True)
class PolicyMeta:
    """What a policy's checkpoint says of itself.

    Attributes:
        version: how many optimizer steps were taken.
        shape: the settings that its files depend on, by their full names.
        base_checksum: the checksum of frozen weights that the checkpoint rests on but does not hold; empty: there are
            none.
    """

    version: int
    shape: Mapping[str, int | bool]
    base_checksum: str


def write_policy_meta(folder: Path, meta: PolicyMeta) -> None:
    """Write what a checkpoint says of itself beside the ranks' files."""
    write_json(folder / POLICY_META_FILE, {"checkpoint_version": CHECKPOINT_VERSION, **to_plain(meta)}, indent=1)


def read_policy_meta(folder: Path, *, shape: Mapping[str, int | bool], base_checksum: str) -> PolicyMeta:
    """What a checkpoint says of itself, checked against the present policy.

    Args:
        folder: the folder of the policy's checkpoint.
        shape: the shape that the present settings give.
        base_checksum: the checksum of the present frozen weights.

    Raises:
        CheckpointError: there is no checkpoint, or it does not fit the present policy.
    """
    path = folder / POLICY_META_FILE
    if not path.exists():
        raise CheckpointError(f"{shown(folder)} holds no policy checkpoint ({POLICY_META_FILE} is missing)")
    try:
        plain = read_json_object(path)
        if (version := plain.pop("checkpoint_version", 1)) != CHECKPOINT_VERSION:
            raise CheckpointError(version_problem(shown(folder), version, CHECKPOINT_VERSION))
        meta = from_plain(PolicyMeta, plain)
    except FileError as error:
        raise CheckpointError(str(error)) from error
    except RecordError as error:
        raise CheckpointError(f"{shown(path)} is not what a policy writes ({error})") from error
    for key, present in shape.items():
        if (before := meta.shape.get(key)) != present:
            raise CheckpointError(
                f"{shown(folder)} was written with {key}={shown_value(before)}, now it is {present}; go on with "
                f"{key}={shown_value(before)}, or start a new run from the exported model"
            )
    if meta.base_checksum and base_checksum and meta.base_checksum != base_checksum:
        raise CheckpointError(
            f"{shown(folder)} belongs to a stage that started from a model with checksum {meta.base_checksum[:8]}, the "
            f"present one has {base_checksum}: adapters and the KL term's reference need the very same model; put it "
            "back in its place, or start a new run from the exported model"
        )
    return meta
