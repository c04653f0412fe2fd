"""Ray: start or join a cluster, watch over it, and say what there is."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import ray
from ray._common.utils import get_default_ray_temp_dir

from rsgrpo.config import ClusterConfig
from rsgrpo.failures import reason
from rsgrpo.system import interrupts
from rsgrpo.system.machine import REPOSITORY, ClusterError, check_cluster, no_cluster
from rsgrpo.system.processes import RUN_VARIABLE, Guard, HeadWatch, end_marked, new_mark

__all__ = ["REPOSITORY", "Cluster", "ClusterError", "open_cluster"]

_START_TRIES = 3  # on a busy machine Ray's own processes may miss each other's deadlines

_SHUTDOWN_SECONDS = 5.0
_INTERRUPTED_SECONDS = 10.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Node:
    """What one machine of the cluster has.

    Attributes:
        node_id: Ray's id of the node.
        cores: how many CPU cores the processes of the run may use.
        gpus: how many GPUs Ray sees.
    """

    node_id: str
    cores: int
    gpus: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Cluster:
    """What the cluster offers.

    Attributes:
        nodes: the machines of the cluster that are up.
        num_cores: how many CPU cores of this machine this process may use.
    """

    nodes: tuple[Node, ...]
    num_cores: int

    @property
    def gpus_per_node(self) -> tuple[int, ...]:
        """How many GPUs each node has."""
        return tuple(node.gpus for node in self.nodes)


def _read_cluster(config: ClusterConfig) -> Cluster:
    num_cores = len(os.sched_getaffinity(0))
    # A client of a cluster elsewhere runs on none of its nodes.
    own = "" if config.address.startswith("ray://") else ray.get_runtime_context().get_node_id()
    nodes = []
    for row in ray.nodes():
        if row["Alive"]:
            # Ray counts a container's share of the processors, but not which of them a process is bound to.
            cores = int(row["Resources"].get("CPU", 0)) or 1
            cores = min(cores, num_cores) if row["NodeID"] == own else cores
            nodes.append(Node(node_id=row["NodeID"], cores=cores, gpus=int(row["Resources"].get("GPU", 0))))
    return Cluster(nodes=tuple(nodes), num_cores=next((n.cores for n in nodes if n.node_id == own), num_cores))


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
        older = _session_folders()
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
            # Ray forgets the processes of a node that did not come up, and leaves its folder.
            ray.shutdown()
            end_marked(mark)
            for folder in _session_folders() - older:
                shutil.rmtree(folder, ignore_errors=True)
            if attempt + 1 == _START_TRIES:
                raise ClusterError(
                    f"Ray could not start on this machine, tried {_START_TRIES} times: {reason(error)}; on a busy "
                    "machine end other programs or try again, else look for a full /tmp or too little memory"
                ) from error


def _session_folders() -> set[Path]:
    """Session folders of Ray's nodes that this process has started: their names end with its process id."""
    return set(Path(get_default_ray_temp_dir()).glob(f"session_*_{os.getpid()}"))


@contextmanager
def open_cluster(config: ClusterConfig) -> Iterator[Cluster]:
    """Join or start Ray for the length of the block.

    A cluster that was started here is watched: when one of its own processes dies, the block ends within seconds, and
    nothing that was started stays.

    Args:
        config: address, device and size.

    Yields:
        The nodes of the cluster; :func:`rsgrpo.cluster.topology.fit` decides what of them a run uses.

    Raises:
        ClusterError: Ray cannot be reached or started, or its processes died.
    """
    mark = new_mark()
    with ExitStack() as stack:
        if config.address:
            stack.callback(_leave_ray)
            with _own_termination():
                _join(config)
        else:
            stack.callback(os.environ.pop, RUN_VARIABLE, None)
            stack.callback(end_marked, mark)
            guard = Guard(mark)
            stack.callback(guard.dismiss)
            # The guard kills what is left once this process is gone: what is connected to Ray would be ended with it.
            stack.callback(interrupts.at_forced_end(guard.silence))
            stack.callback(_leave_ray)
            with _own_termination():
                _start(mark)
            guard.watch(_head_processes())
            stack.enter_context(_watched(mark, guard))
        yield _read_cluster(config)


@contextmanager
def _own_termination() -> Iterator[None]:
    """Keep this process's handler of SIGTERM: Ray's own ends it without a word."""
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)


def _leave_ray() -> None:
    """Ray's shutdown; after Ctrl-C or SIGTERM it gets some seconds, then the process ends without."""
    is_done = threading.Event()

    def leave() -> None:
        try:
            ray.shutdown()
        finally:
            is_done.set()

    # In a thread of its own: broken off in the middle, it would leave this process connected to what is killed next.
    threading.Thread(target=leave, name="ray-shutdown", daemon=True).start()
    interrupted: KeyboardInterrupt | None = None
    try:
        if not interrupts.received():
            is_done.wait()
    except KeyboardInterrupt as error:
        interrupted = error
    if interrupts.received() and not is_done.wait(_INTERRUPTED_SECONDS):
        interrupts.end_now()
    is_done.wait()
    if interrupted is not None:
        raise interrupted


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
