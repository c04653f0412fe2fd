"""The processes that a run starts: found by a mark in their environment, watched, and ended with the run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from rsgrpo.system import interrupts

RUN_VARIABLE = "RSGRPO_RUN"
"""The name of an environment variable that everything a run starts inherits; its value is the run's own."""

_DISMISSED = "dismissed"
_SILENT = "silent"
_LOOK_SECONDS = 0.5
_END_SECONDS = 5.0  # one that hangs in the kernel goes when it can
_GRACE_SECONDS = 8.0  # for the main thread to end in an orderly way after Ray's death


def keep_bytecode() -> None:
    """Let Python keep what it compiles, in this process and those that it starts, where it was told not to.

    Docker images often tell it so (``PYTHONDONTWRITEBYTECODE``). Each of a run's processes would then compile all that
    it imports anew, which for vLLM takes half a minute.
    """
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    sys.dont_write_bytecode = False


def give_way(pid: int, steps: int) -> None:
    """Let others go before a process, and before all that it will start, where cores are short.

    Linux weighs sessions against one another before it looks at the niceness of their processes, so that of the session
    is set as well, where the system has one (``/proc/PID/autogroup``).

    Args:
        pid: the process; it leads a session of its own.
        steps: by how many steps of niceness.
    """
    with suppress(OSError):  # it has ended
        os.setpriority(os.PRIO_PROCESS, pid, os.getpriority(os.PRIO_PROCESS, pid) + steps)
    with suppress(OSError):
        Path(f"/proc/{pid}/autogroup").write_text(str(steps), encoding="ascii")


def new_mark() -> str:
    """A value for :data:`RUN_VARIABLE` that no other run has."""
    return uuid.uuid4().hex


def marked_processes(mark: str) -> list[int]:
    """Processes whose environment holds the mark, without this one.

    Args:
        mark: the mark that :func:`new_mark` made.
    """
    needle = f"{RUN_VARIABLE}={mark}".encode()
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit() or int(folder.name) == os.getpid():
            continue
        with suppress(OSError):  # gone meanwhile, or another user's
            if needle in (folder / "environ").read_bytes().split(b"\0"):
                found.append(int(folder.name))
    return found


def end_marked(mark: str) -> int:
    """Kill every process with the mark, also those that are born while it looks, and wait until they are gone.

    Args:
        mark: the mark that :func:`new_mark` made.

    Returns:
        How many processes were killed.
    """
    ended: set[int] = set()
    while alive := [pid for pid in marked_processes(mark) if pid not in ended]:
        for pid in alive:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        ended.update(alive)
        # On a busy machine a killed process may wait for its end, and one just born shows no environment yet.
        deadline = time.monotonic() + _END_SECONDS
        while any(is_alive(pid) for pid in alive) and time.monotonic() < deadline:
            time.sleep(_END_SECONDS / 500)
    return len(ended)


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and only waits to be noticed does not.

    Args:
        pid: the id of the process.
    """
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return False
    return state not in "ZX"


def death_message(name: str) -> str:
    """The message for a user after a process has died.

    Args:
        name: the name of the process.
    """
    return (
        f"{name} died, and the run with it; often the machine had run out of memory (see `dmesg`): nothing that was "
        "saved is lost, go on with resume=auto"
    )


class HeadWatch:
    """Looks after Ray's own processes from a thread; when one dies, the main thread is interrupted.

    Ray itself waits a minute for a dead part. If the main thread does not come back in time, all that the run started
    is killed, and the process leaves.

    Args:
        mark: the mark of the run's processes.
        processes: the ids of the processes to watch, by name.
        guard: the guard; once the watch has spoken, it does not speak any more.
    """

    def __init__(self, mark: str, processes: Mapping[str, int], guard: Guard) -> None:
        self._mark = mark
        self._guard = guard
        self._processes = dict(processes)
        self._dead = ""
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._look, name="ray-watch", daemon=True)
        self._thread.start()

    @property
    def message(self) -> str:
        """The message for a user after a process has died."""
        return death_message(f"Ray's {self._dead} process (pid {self._processes.get(self._dead, 0)})")

    def has_died(self) -> bool:
        """Whether one of the processes is gone, also if the thread has not looked yet."""
        if not self._dead and not self._is_over.is_set():
            self._dead = next((name for name, pid in self._processes.items() if not is_alive(pid)), "")
        return bool(self._dead)

    def _look(self) -> None:
        while not self._is_over.wait(_LOOK_SECONDS):
            if self.has_died():
                interrupts.interrupt_main_thread()
                if not self._is_over.wait(_GRACE_SECONDS):
                    self.leave()
                return

    def leave(self) -> NoReturn:
        """Say what died, kill what is left, and end this process: nothing in it can go on."""
        if interrupts.received():  # a scheduler that ends a job may tell Ray's processes too
            interrupts.end_now()
        print(f"error: {self.message}", file=sys.stderr, flush=True)
        self._guard.silence()
        end_marked(self._mark)
        os._exit(1)

    def stop(self) -> None:
        """End the watch; the block that it watched over is left."""
        self._is_over.set()
        self._thread.join(timeout=2 * _LOOK_SECONDS)


class Guard:
    """A small process beside the run that speaks and cleans up for it if it is gone without a word.

    Ray ends a process whose raylet has died at once, from within C++; the system kills one that takes too much memory.
    Neither leaves Python a chance.

    Args:
        mark: the mark of the run's processes.
    """

    def __init__(self, mark: str) -> None:
        # A session of its own: Ctrl-C is meant for the run.
        self._process = subprocess.Popen(
            [sys.executable, "-m", "rsgrpo.system.processes", mark],
            cwd=Path(__file__).resolve().parents[2],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )

    def watch(self, processes: Mapping[str, int]) -> None:
        """Tell it which processes Ray cannot do without.

        Args:
            processes: the ids of the processes to watch, by name.
        """
        self._send("".join(f"{name} {pid}\n" for name, pid in processes.items()))

    def silence(self) -> None:
        """Let it clean up without a word: the run has said why it ends."""
        self._send(f"{_SILENT}\n")

    def dismiss(self) -> None:
        """Tell the guard that the run ends by itself, so that it says nothing."""
        self._send(f"{_DISMISSED}\n")
        assert self._process.stdin is not None
        with suppress(OSError):
            self._process.stdin.close()
        self._process.wait()

    def _send(self, text: str) -> None:
        assert self._process.stdin is not None
        with suppress(OSError):  # somebody has killed it: the run goes on without
            self._process.stdin.write(text.encode())
            self._process.stdin.flush()


def stand_guard(mark: str) -> None:
    """The guard's own work: wait until the run dismisses it, or is gone.

    Args:
        mark: the mark of the run's processes.
    """
    # A scheduler that ends a job tells all its processes; this one has work left when the others are gone.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    told = sys.stdin.read().splitlines()  # until the run closes its end, or has none any more
    if _DISMISSED in told:
        return
    if _SILENT in told:
        end_marked(mark)
        return
    processes = dict(line.split() for line in told)
    # What the system reports of a death may come a moment after the run's own.
    deadline = time.monotonic() + _LOOK_SECONDS
    dead = ""
    while not dead and time.monotonic() < deadline:
        dead = next((name for name, pid in processes.items() if not is_alive(int(pid))), "")
        time.sleep(_LOOK_SECONDS / 10)
    name = f"Ray's {dead} process or this run's own" if dead else "this run's process"
    print(f"error: {death_message(name)}", file=sys.stderr, flush=True)
    end_marked(mark)


if __name__ == "__main__":
    stand_guard(sys.argv[1])
