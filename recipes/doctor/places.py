"""Folders that a run writes to: temporary files and sockets, the run folder, caches, shared memory."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from recipes.doctor.check import Check, Subject, ok, problem, warning
from rsgrpo.config import Config

_MIB, _GIB = 1 << 20, 1 << 30
_SOCKET_BYTES = 107
"""Longest path of a Unix socket on Linux, in bytes, without the zero at its end."""
_RAY_SOCKET = "/ray/session_2026-01-01_00-00-00_000000_1234567/sockets/plasma_store"
_RUN_BYTES = _GIB  # open_run_folder refuses less: the quickstart writes about 200 MB
_TMP_BYTES = 2 * _GIB  # Ray's logs, and its object store where shared memory is too small
_CACHE_BYTES = _GIB
_BUCKETS = 2  # one travels while the next is filled

FreeBytes = Callable[[Path], int]
"""A function that gives the free space at a folder, in bytes."""


def free_bytes(folder: Path) -> int:
    """How many bytes this user may still write at a folder."""
    return shutil.disk_usage(folder).free


def place_checks(subject: Subject) -> Iterator[Check]:
    """Temporary folder, run folder, caches, shared memory."""
    yield from temporary_checks(dict(os.environ))
    config = subject.config
    if config is not None:
        yield run_folder_check(config)
        yield space_check("space for the run", Path(config.run_dir).absolute(), _RUN_BYTES, "choose another run_dir")
    for name, folder, variable in _caches():
        yield space_check(name, folder, _CACHE_BYTES, f"set {variable} to a folder with space", is_needed=False)
    bucket_mib = config.rollout.weight_bucket_mib if config else 512
    yield shared_memory_check(Path("/dev/shm"), _BUCKETS * bucket_mib * _MIB)


def temporary_checks(environment: dict[str, str], free: FreeBytes = free_bytes) -> Iterator[Check]:
    """Whether sockets and files can be made where temporary files go.

    Args:
        environment: variables; Ray reads ``RAY_TMPDIR``, then ``TMPDIR``, else it uses ``/tmp``.
        free: gives the free space of the disk that a folder is on.
    """
    variable = next((name for name in ("RAY_TMPDIR", "TMPDIR") if environment.get(name)), "TMPDIR")
    folder = environment.get(variable) or "/tmp"
    length = len(os.fsencode(folder.rstrip("/") + _RAY_SOCKET))
    advice = f"export {variable}=/tmp, or to another short folder with space"
    if length > _SOCKET_BYTES:
        yield problem(
            "socket paths",
            f"{variable}={_shown(folder)} makes Ray's sockets {length} bytes long; the kernel allows {_SOCKET_BYTES}",
            advice,
        )
    else:
        yield ok("socket paths", f"{length} of {_SOCKET_BYTES} bytes in {folder}")
    if not Path(folder).is_dir():
        yield problem("temporary files", f"{variable}={_shown(folder)} is no folder", f"create it, or {advice}")
        return
    yield space_check("temporary files", Path(folder), _TMP_BYTES, advice, free=free)


def space_check(
    name: str,
    folder: Path,
    wanted_bytes: int,
    advice: str,
    *,
    is_needed: bool = True,
    free: FreeBytes = free_bytes,
) -> Check:
    """Whether a folder can be written, and has space; it need not be there yet.

    Args:
        name: the name of the check.
        folder: absolute; where it is missing, the nearest folder above it counts.
        wanted_bytes: how much space a run needs, in bytes.
        advice: which setting or variable moves the folder elsewhere.
        is_needed: whether a run needs the folder; False: it may get along without it.
        free: gives the free space of the disk that a folder is on.
    """
    report = problem if is_needed else warning
    existing = next(place for place in (folder, *folder.parents) if place.exists())
    if not existing.is_dir():
        return report(name, f"{_shown(existing)} is a file where {_shown(folder)} should be a folder", advice)
    if not os.access(existing, os.W_OK | os.X_OK):
        return report(name, f"{_shown(existing)} cannot be written by this user", advice)
    space = free(existing)
    found = f"{space / _GIB:.1f} GiB free at {_shown(existing)}"
    if space < wanted_bytes:
        return report(name, f"{found}; a run needs at least {wanted_bytes / _GIB:.1f} GiB", f"free some, or {advice}")
    return ok(name, found)


def run_folder_check(config: Config) -> Check:
    """Whether ``run_dir`` is free, or holds a run to go on with; nothing is written."""
    root = Path(config.run_dir).absolute()
    name = "run folder"
    if root.exists() and not root.is_dir():
        return problem(name, f"run_dir={_shown(root)} is a file", "choose another run_dir")
    if not (root / "config.yaml").exists():
        return ok(name, f"{_shown(root)} is free")
    if config.resume == "never":
        return problem(
            name, f"{_shown(root)} already holds a run", "add resume=auto to go on with it, or choose another run_dir"
        )
    return ok(name, f"{_shown(root)} holds a run; resume=auto goes on with it")


def shared_memory_check(folder: Path, wanted_bytes: int, free: FreeBytes = free_bytes) -> Check:
    """Whether shared memory holds the buckets in which weights travel.

    Args:
        folder: where the shared memory is mounted.
        wanted_bytes: how much the buckets of the weight transfer need, in bytes.
        free: gives the free space of the disk that a folder is on.
    """
    name = "shared memory"
    advice = "docker run --shm-size=8g (or --ipc=host), or lower rollout.weight_bucket_mib"
    if not folder.is_dir():
        return problem(name, f"{folder} is not there", advice)
    space = free(folder)
    found = f"{space / _GIB:.2f} GiB free at {folder}"
    if space < wanted_bytes:
        return warning(
            name,
            f"{found}; weights on their way take up to {wanted_bytes / _GIB:.2f} GiB, and Ray would use the disk",
            advice,
        )
    return ok(name, found)


def _caches() -> Iterator[tuple[str, Path, str]]:
    """Caches that a run writes: name, folder, and the variable that moves it."""
    from huggingface_hub import constants

    yield "hub cache", Path(constants.HF_HUB_CACHE).absolute(), "HF_HOME"
    # As vLLM itself chooses: its compiled graphs.
    root = os.environ.get("VLLM_CACHE_ROOT") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "vllm"
    yield "vLLM cache", Path(root).expanduser().absolute(), "VLLM_CACHE_ROOT"


def _shown(path: Path | str) -> str:
    """A path of at most 120 characters: a longer one loses its beginning, since its end tells more."""
    text = str(path)
    return text if len(text) <= 120 else f"…{text[-119:]}"
