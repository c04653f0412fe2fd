"""Worker processes that render pages, each one task at a time, so that it is known at which page a worker died."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from pathlib import Path

from rsgrpo.config.documents import RenderSettings
from rsgrpo.documents.records import StoreError
from rsgrpo.documents.tasks import LAST_ANSWERS, Answer, Died, Ready, Survey, Task

_IMPORT_FROM = Path(__file__).resolve().parents[2]
_START_SECONDS = 120.0  # on a machine that is busy with other things
_END_SECONDS = 5.0
_NEVER = float("inf")
_MAX_FAILED_STARTS = 3  # in a row: something is wrong with all of them


class _Worker:
    """A worker process, and the task that it is doing."""

    def __init__(self, store: Path, settings: RenderSettings) -> None:
        self.connection, theirs = Pipe()
        given = json.dumps(dataclasses.asdict(settings))
        # A session of its own: Ctrl-C is meant for us, and whatever it starts (LibreOffice) ends with it.
        self.process = subprocess.Popen(
            [sys.executable, "-m", "rsgrpo.documents.render_worker", str(theirs.fileno()), str(store), given],
            cwd=_IMPORT_FROM,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
            start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        theirs.close()
        self.task: Task | None = None
        self.is_ready = False
        self.heard = time.monotonic()

    def kill(self) -> int:
        """Kill the process and all that it started, and return its exit status."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.connection.close()
        return self.process.wait(_END_SECONDS)


class RenderPool:
    """The worker processes of one run; a worker that dies is replaced.

    Args:
        store: the absolute path of the folder that the page store lies in.
        settings: how pages are rendered, and by how many workers.
    """

    def __init__(self, store: Path, settings: RenderSettings) -> None:
        self._store = store
        self._settings = settings
        self._workers: list[_Worker] = []
        self._num_failed_starts = 0

    def __enter__(self) -> RenderPool:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            with suppress(subprocess.TimeoutExpired):  # one that hangs in the kernel goes when it can
                worker.kill()
        self._workers = []

    @property
    def has_idle(self) -> bool:
        """Whether at least one worker waits for a task."""
        return any(worker.is_ready and worker.task is None for worker in self._workers)

    def grow(self, num_tasks: int) -> None:
        """Start as many workers as there are tasks for, up to the number in the settings.

        Args:
            num_tasks: the number of tasks that wait for a worker.

        Raises:
            StoreError: the system does not start another process.
        """
        num_free = sum(worker.task is None for worker in self._workers)
        for _ in range(min(num_tasks - num_free, self._settings.num_workers - len(self._workers))):
            self._workers.append(self._started())

    def _started(self) -> _Worker:
        try:
            return _Worker(self._store, self._settings)
        except OSError as error:
            raise StoreError(
                f"no process can be started to render pages ({error.strerror}); end others, or lower workers="
                f"{self._settings.num_workers}"
            ) from error

    def give(self, task: Task) -> None:
        """Send a task to an idle worker; there must be one.

        Args:
            task: the task that the worker has to do.
        """
        worker = next(worker for worker in self._workers if worker.is_ready and worker.task is None)
        worker.task, worker.heard = task, time.monotonic()
        with suppress(BrokenPipeError):  # it has died; the next answer says so
            worker.connection.send(task)

    def answers(self) -> Iterator[tuple[Task, Answer]]:
        """Wait for answers of workers, and replace workers that have died or take too long.

        Yields:
            Each answer with the task that it belongs to; nothing if workers have only reported that they started.

        Raises:
            StoreError: workers do not start.
        """
        by_connection = {worker.connection: worker for worker in self._workers}
        soonest = min(self._deadline(worker) for worker in self._workers)
        patience = None if soonest == _NEVER else max(0.0, soonest - time.monotonic())
        heard = wait(list(by_connection), timeout=patience)
        for connection in heard:
            assert isinstance(connection, Connection)
            worker = by_connection[connection]
            while worker.connection is connection:
                try:
                    answer = connection.recv()
                except (EOFError, OSError):
                    yield from self._bury(worker, "")
                    break
                task, worker.heard = worker.task, time.monotonic()
                if isinstance(answer, Ready):
                    worker.is_ready, self._num_failed_starts = True, 0
                elif task is not None:
                    if isinstance(answer, LAST_ANSWERS):
                        worker.task = None
                    yield task, answer
                if not connection.poll():
                    break
        if not heard:
            for worker in list(self._workers):
                if time.monotonic() >= self._deadline(worker):
                    yield from self._bury(worker, f"took longer than {self._patience(worker):g} s")

    def _patience(self, worker: _Worker) -> float:
        if not worker.is_ready:
            return _START_SECONDS
        return worker.task.seconds if isinstance(worker.task, Survey) else self._settings.page_seconds

    def _deadline(self, worker: _Worker) -> float:
        is_idle = worker.is_ready and worker.task is None
        return _NEVER if is_idle else worker.heard + self._patience(worker)

    def _bury(self, worker: _Worker, reason: str) -> Iterator[tuple[Task, Answer]]:
        """Replace a worker that died or takes too long, and answer its task with how it ended."""
        if not reason:
            with suppress(subprocess.TimeoutExpired):  # the end of its pipe comes a moment before its own
                worker.process.wait(_END_SECONDS)
        status = worker.kill()
        reason = reason or f"died ({_ending(status)})"
        self._num_failed_starts += not worker.is_ready
        if self._num_failed_starts == _MAX_FAILED_STARTS:
            raise StoreError(f"processes that render pages do not start ({reason}); their own words stand above")
        self._workers[self._workers.index(worker)] = self._started()
        if worker.task is not None:
            yield worker.task, Died(reason=f"the process that had it {reason}")


def _ending(status: int) -> str:
    if status == -signal.SIGKILL:
        return "killed, often because the machine had run out of memory"
    if status < 0:
        return f"signal {signal.Signals(-status).name}"
    return f"exit status {status}"
