"""Ray: start or join a cluster, watch over it, and say what the workers may use."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import ray

from rsgrpo.config import ClusterConfig
from rsgrpo.failures import reason
from rsgrpo.machine import REPOSITORY, ClusterError, check_cluster, no_cluster
from rsgrpo.processes import RUN_VARIABLE, Guard, HeadWatch, end_marked, new_mark

__all__ = ["REPOSITORY", "Cluster", "ClusterError", "open_cluster"]

_START_TRIES = 3  # on a busy machine Ray's own processes may miss each other's deadlines

_SHUTDOWN_SECONDS = 5.0


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


def _environment(mark: str) -> dict[str, dict[str, str]]:
    # Generic top-level names (recipes, rewards, rollout) could be shadowed by another package's in
    # site-packages: workers get this repository first on their path.
    return {"env_vars": {"PYTHONPATH": str(REPOSITORY), RUN_VARIABLE: mark}}


def _join(config: ClusterConfig) -> None:
    check_cluster(config)
    try:
        ray.init(address=config.address, runtime_env=_environment(""), logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise no_cluster(config.address, error) from error


def _start(mark: str) -> None:
    # An address left in the environment would silently join some other cluster.
    os.environ.pop("RAY_ADDRESS", None)
    # Ray would start its workers 15 steps of niceness below this process: whatever else runs here would slow
    # training, which is what people started. `nice uv run train.py` still lowers all of it.
    os.environ.setdefault("RAY_worker_niceness", "0")
    # Each try gives Ray's node half a minute, which is not to be changed; its head takes what it is told.
    os.environ.setdefault("RAY_gcs_server_port_wait_time_s", "60")
    os.environ[RUN_VARIABLE] = mark
    for attempt in range(_START_TRIES):
        try:
            ray.init(
                address="local",
                include_dashboard=False,
                log_to_driver=False,
                runtime_env=_environment(mark),
                logging_level=logging.ERROR,
            )
            return
        except Exception as error:  # Ray raises bare exceptions of its own when a process of its does not come up
            ray.shutdown()
            end_marked(mark)
            if attempt + 1 == _START_TRIES:
                raise ClusterError(
                    f"Ray could not start on this machine, tried {_START_TRIES} times: {reason(error)}; on a busy "
                    "machine end other programs or try again, else look for a full /tmp or too little memory"
                ) from error


@contextmanager
def open_cluster(config: ClusterConfig) -> Iterator[Cluster]:
    """Join or start Ray for the length of the block.

    A cluster that was started here is watched: when one of its own processes dies, the block ends within seconds, and
    nothing that was started stays.

    Args:
        config: address, device and size.

    Yields:
        What the workers may use.

    Raises:
        ClusterError: Ray cannot be reached or started, or its processes died.
    """
    mark = new_mark()
    with ExitStack() as stack:
        if config.address:
            stack.callback(ray.shutdown)
            with _own_termination():
                _join(config)
        else:
            stack.callback(os.environ.pop, RUN_VARIABLE, None)
            stack.callback(end_marked, mark)
            guard = Guard(mark)
            stack.callback(guard.dismiss)
            stack.callback(ray.shutdown)
            with _own_termination():
                _start(mark)
            guard.watch(_head_processes())
            stack.enter_context(_watched(mark, guard))
        gpus = tuple(int(node["Resources"].get("GPU", 0)) for node in ray.nodes() if node["Alive"])
        device = config.device if config.device != "auto" else ("gpu" if any(gpus) else "cpu")
        yield Cluster(device=device, num_threads=len(os.sched_getaffinity(0)), gpus_per_node=gpus)


@contextmanager
def _own_termination() -> Iterator[None]:
    """Keep this process's handler of SIGTERM: Ray's own ends it without a word."""
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)


@contextmanager
def _watched(mark: str, guard: Guard) -> Iterator[None]:
    """Watch over Ray's processes; their death becomes a ClusterError."""
    watch = HeadWatch(mark, _head_processes(), guard)
    try:
        yield
    except BaseException as error:
        if not watch.has_died():
            raise
        # Without its head, Ray's shutdown may wait for a minute; and while it is connected, killing what is left of it
        # would end this process.
        leaving = threading.Thread(target=ray.shutdown, daemon=True)
        leaving.start()
        leaving.join(_SHUTDOWN_SECONDS)
        if leaving.is_alive():
            watch.leave()
        raise ClusterError(watch.message) from error
    finally:
        watch.stop()


def _head_processes() -> dict[str, int]:
    """Process ids of the parts of Ray without which nothing goes on, by name."""
    node = ray._private.worker._global_node
    running = node.all_processes if node is not None else {}
    return {name: running[name][0].process.pid for name in ("gcs_server", "raylet") if running.get(name)}
