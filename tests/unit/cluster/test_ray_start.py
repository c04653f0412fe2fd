"""Ray's start on a busy machine: tried again, and nothing of a failed try stays."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import ray

from rsgrpo.cluster import ray_cluster as cluster
from rsgrpo.cluster.ray_cluster import ClusterError
from rsgrpo.system.processes import RUN_VARIABLE, is_alive, marked_processes, new_mark

# What Ray 2.60 raises, as a bare Exception, where its node does not report within half a minute.
TIMED_OUT = (
    "The current node timed out during startup. This could happen because some of the raylet failed to startup or the "
    "GCS has become overloaded."
)


class BusyRay:
    """Stands in for ``ray.init``: makes a node's folder and process each time, and fails the first times."""

    def __init__(self, place: Path, num_failures: int, make: Callable[[], Exception]) -> None:
        self.place = place
        self.num_failures = num_failures
        self.make = make
        self.processes: list[subprocess.Popen[bytes]] = []
        self.num_shutdowns = 0

    def init(self, **_: object) -> None:
        session = self.place / "ray" / f"session_{len(self.processes)}_{os.getpid()}"
        (session / "logs").mkdir(parents=True)
        process = subprocess.Popen(
            [sys.executable, "-c", "import sys; print(flush=True); sys.stdin.read()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert process.stdout is not None
        process.stdout.readline()  # it is up, and shows its environment
        self.processes.append(process)
        if len(self.processes) <= self.num_failures:
            raise self.make()

    def shutdown(self) -> None:
        self.num_shutdowns += 1

    def sessions(self) -> list[str]:
        return sorted(folder.name for folder in (self.place / "ray").glob("session_*"))


@pytest.fixture
def begin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., BusyRay]]:
    """Puts a busy Ray in place of the real one; its processes end with the test."""
    made: list[BusyRay] = []
    for name in ("RAY_ADDRESS", "RAY_worker_niceness", "RAY_gcs_server_port_wait_time_s", RUN_VARIABLE):
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    # Another program's node, and one that this process's id was once given to.
    for other in (f"session_of_another_{os.getpid()}", f"session_x_{os.getpid() + 1}"):
        (tmp_path / "ray" / other).mkdir(parents=True)

    def busy(num_failures: int, make: Callable[[], Exception] = lambda: Exception(TIMED_OUT)) -> BusyRay:
        made.append(BusyRay(tmp_path, num_failures, make))
        monkeypatch.setattr(ray, "init", made[-1].init)
        monkeypatch.setattr(ray, "shutdown", made[-1].shutdown)
        return made[-1]

    yield busy
    for process in [process for busy_ray in made for process in busy_ray.processes]:
        process.kill()
        process.wait()


OTHERS = [f"session_of_another_{os.getpid()}", f"session_x_{os.getpid() + 1}"]


@pytest.mark.parametrize(
    "make",
    [
        lambda: Exception(TIMED_OUT),
        lambda: RuntimeError("Failed to start GCS. Last 0 lines of error files:"),
        lambda: TimeoutError("Timed out after 20 seconds while waiting for node to startup."),
        lambda: ray.exceptions.RaySystemError("no answer"),
    ],
)
def test_a_node_that_comes_up_too_late_is_started_again(
    make: Callable[[], Exception], begin: Callable[..., BusyRay]
) -> None:
    busy, mark = begin(2, make), new_mark()
    cluster._start(mark)
    assert len(busy.processes) == 3 and busy.num_shutdowns == 2
    assert [is_alive(process.pid) for process in busy.processes] == [False, False, True]
    assert marked_processes(mark) == [busy.processes[2].pid]
    assert busy.sessions() == sorted([f"session_2_{os.getpid()}", *OTHERS])


def test_after_three_tries_the_message_says_what_ray_said_and_nothing_stays(begin: Callable[..., BusyRay]) -> None:
    busy, mark = begin(99), new_mark()
    with pytest.raises(ClusterError) as raised:
        cluster._start(mark)
    message = str(raised.value)
    assert "tried 3 times: " in message and "The current node timed out during startup" in message
    assert "on a busy machine end other programs or try again" in message and len(message) < 500
    assert len(busy.processes) == 3 and marked_processes(mark) == []
    assert busy.sessions() == sorted(OTHERS)
