"""Ray: start or join a cluster, and say what the workers may use."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import ray

from rsgrpo.config import ClusterConfig
from rsgrpo.errors import RsgrpoError

REPOSITORY = Path(__file__).resolve().parent.parent

_CONNECT_SECONDS = 10.0


class ClusterError(RsgrpoError):
    """Ray could not be started or joined."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cluster:
    """What the cluster offers.

    Attributes:
        device: ``cpu`` or ``gpu``.
        num_threads: threads that one worker may use on a CPU.
        gpus_per_node: GPUs of each node.
    """

    device: str
    num_threads: int
    gpus_per_node: tuple[int, ...]


def _no_cluster(address: str, error: Exception) -> ClusterError:
    return ClusterError(
        f"no Ray cluster answers at cluster.address={address!r}: {error}; start one with `ray start --head`, or leave "
        "cluster.address empty to start one on this machine"
    )


def _check_answers(address: str) -> None:
    """Knock first: Ray itself tries a dead address for many minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host:
        return  # ``auto``: Ray looks for a cluster on this machine
    try:
        socket.create_connection((host, int(port)), timeout=_CONNECT_SECONDS).close()
    except (OSError, ValueError) as error:
        raise _no_cluster(address, error) from error


def _join(config: ClusterConfig) -> None:
    # Generic top-level names (recipes, rewards, rollout) could be shadowed by another package's in
    # site-packages: workers get this repository first on their path.
    environment = {"env_vars": {"PYTHONPATH": str(REPOSITORY)}}
    if config.address:
        _check_answers(config.address)
        try:
            ray.init(address=config.address, runtime_env=environment, logging_level=logging.ERROR)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise _no_cluster(config.address, error) from error
        return
    # An address left in the environment would silently join some other cluster.
    os.environ.pop("RAY_ADDRESS", None)
    # Ray would start its workers 15 steps of niceness below this process: whatever else runs here would slow
    # training, which is what people started. `nice uv run train.py` still lowers all of it.
    os.environ.setdefault("RAY_worker_niceness", "0")
    try:
        ray.init(
            address="local",
            include_dashboard=False,
            log_to_driver=False,
            runtime_env=environment,
            logging_level=logging.ERROR,
        )
    except (ConnectionError, OSError, RuntimeError, ValueError) as error:
        raise ClusterError(
            f"Ray could not start on this machine: {error}; look for a running `ray` process or a full /tmp"
        ) from error


@contextmanager
def open_cluster(config: ClusterConfig) -> Iterator[Cluster]:
    """Join or start Ray for the length of the block.

    Args:
        config: address, device and size.

    Yields:
        What the workers may use.

    Raises:
        ClusterError: Ray cannot be reached or started.
    """
    _join(config)
    try:
        gpus = tuple(int(node["Resources"].get("GPU", 0)) for node in ray.nodes() if node["Alive"])
        device = config.device if config.device != "auto" else ("gpu" if any(gpus) else "cpu")
        yield Cluster(device=device, num_threads=len(os.sched_getaffinity(0)), gpus_per_node=gpus)
    finally:
        ray.shutdown()
