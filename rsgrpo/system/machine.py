"""What a run needs of this machine, looked at before anything starts: temporary folder, open files, home."""

from __future__ import annotations

import os
import resource
import shutil
import socket
import tempfile
from pathlib import Path

from rsgrpo.config import ClusterConfig
from rsgrpo.errors import RsgrpoError, shown
from rsgrpo.system.home import choose_home

REPOSITORY = Path(__file__).resolve().parents[2]

# Linux gives the path of a socket 107 bytes. Ray's lies in `ray/session_2026-11-28_19-33-25_123456_4194304/sockets/` of
# the temporary folder and is called `plasma_store`: 75 bytes.
_MAX_TEMPORARY_BYTES = 107 - 75 - 1
_SHORT_FOLDERS = ("/tmp", "/var/tmp", "/dev/shm")
_MIN_FREE_BYTES = 64 << 20
_WANTED_FILES = 65_536
_MIN_FILES = 512  # Ray's own processes open some hundred
_CONNECT_SECONDS = 5.0
_GPU_FILES = ("nvidia[0-9]*", "kfd", "dxg")


class MachineError(RsgrpoError):
    """The machine or the environment of this process lacks something; the message says what."""


class ClusterError(RsgrpoError):
    """Ray could not be started or joined, or its processes died."""


def prepare_process() -> list[str]:
    """Make this process fit to start workers, or say why it cannot; its environment reaches them.

    Returns:
        Lines for the user about what was changed.

    Raises:
        MachineError: there is no usable folder for temporary files, or too few open files are allowed.
    """
    lines = [line for line in (_choose_temporary_folder(), choose_home()) if line]
    _allow_open_files()
    return lines


def _choose_temporary_folder() -> str:
    """Refuse one that cannot be used; replace one whose path is too long for a socket."""
    variable = next((name for name in ("RAY_TMPDIR", "TMPDIR") if os.environ.get(name)), "")
    place = os.environ.get(variable, "/tmp")
    problem = _folder_problem(place)
    if problem:
        named = f"{variable}={shown(place)}" if variable else "/tmp"
        raise MachineError(
            f"{named} cannot hold temporary files: {problem}; set TMPDIR to a folder that can be written, such as "
            f"{'/var/tmp' if place == '/tmp' else '/tmp'}"
        )
    if variable == "RAY_TMPDIR" and os.environ.get("TMPDIR") and _folder_problem(os.environ["TMPDIR"]):
        raise MachineError(f"TMPDIR={shown(os.environ['TMPDIR'])}: {_folder_problem(os.environ['TMPDIR'])}; unset it")
    if max(len(os.fsencode(os.environ.get(name, ""))) for name in ("RAY_TMPDIR", "TMPDIR")) <= _MAX_TEMPORARY_BYTES:
        return ""
    candidates = (*_SHORT_FOLDERS, os.environ.get("XDG_RUNTIME_DIR", ""))
    for candidate in candidates:
        if candidate and len(os.fsencode(candidate)) <= _MAX_TEMPORARY_BYTES and not _folder_problem(candidate):
            for name in ("RAY_TMPDIR", "TMPDIR"):
                os.environ[name] = candidate
            tempfile.tempdir = None  # Python looks again
            return (
                f"{variable}={shown(place)} is too long for the sockets of Ray and vLLM (at most "
                f"{_MAX_TEMPORARY_BYTES} bytes): {candidate} is used for temporary files"
            )
    raise MachineError(
        f"{variable}={shown(place)} is too long for the sockets of Ray and vLLM (at most {_MAX_TEMPORARY_BYTES} "
        f"bytes), and none of {', '.join(_SHORT_FOLDERS)} can be written; set TMPDIR to a shorter path"
    )


def _folder_problem(place: str) -> str:
    """Why a folder cannot hold temporary files; empty if it can."""
    if not Path(place).is_absolute():
        return "it is no absolute path"
    if not Path(place).is_dir():
        return "there is no such folder"
    try:
        with tempfile.TemporaryFile(dir=place) as file:
            file.write(b"\0" * 4096)
            file.flush()
        free = shutil.disk_usage(place).free
    except OSError as error:
        return error.strerror or str(error)
    return f"only {free >> 20} MiB are free, {_MIN_FREE_BYTES >> 20} are needed" if free < _MIN_FREE_BYTES else ""


def _allow_open_files() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _WANTED_FILES if hard == resource.RLIM_INFINITY else min(hard, _WANTED_FILES)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
        soft = most
    if soft != resource.RLIM_INFINITY and soft < _MIN_FILES:
        raise MachineError(
            f"only {soft} files may be open at a time (ulimit -n {soft}), {_MIN_FILES} are needed; raise the limit, "
            "such as with `ulimit -n 65536` or your container's --ulimit nofile=65536"
        )


def check_cluster(config: ClusterConfig) -> None:
    """Refuse an address at which nobody answers, and GPUs that are not there, before Ray looks for them for minutes.

    Args:
        config: the settings, of which ``address`` and ``device`` count.

    Raises:
        ClusterError: nobody answers at the address, or there are no GPUs; the message names the setting.
    """
    if config.address:
        _knock(config.address)
    elif config.device == "gpu" and not has_gpu_files():
        raise ClusterError("cluster.device=gpu, but this machine shows no GPU; set cluster.device=cpu or auto")


def has_gpu_files() -> bool:
    """Whether the system shows any GPU at all."""
    return any(next(Path("/dev").glob(name), None) for name in _GPU_FILES)


def no_cluster(address: str, error: Exception) -> ClusterError:
    """What to say where no cluster answers.

    Args:
        address: the address in the settings.
        error: the error that was raised.
    """
    return ClusterError(
        f"no Ray cluster answers at cluster.address={shown(address)!r}: {shown(error)}; start one with `ray start "
        "--head`, or leave cluster.address empty to start one on this machine"
    )


def _knock(address: str) -> None:
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if address == "auto":
        return  # Ray looks for a cluster on this machine
    if not host or not port.isdigit() or not 0 < int(port) < 2**16:
        raise ClusterError(
            f"cluster.address={shown(address)!r} is no address; write HOST:PORT, such as 10.0.0.1:6379, or auto"
        )
    try:
        socket.create_connection((host, int(port)), timeout=_CONNECT_SECONDS).close()
    except (OSError, ValueError) as error:  # ValueError: a host name that cannot be encoded
        raise no_cluster(address, error) from error
