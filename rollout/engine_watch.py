"""Ends a worker whose engine has died, so that Ray tells the pool of it.

On GPUs vLLM's engine is a process of its own, with more of them for tensor parallelism. When one dies, calls that are
under way are never answered: vLLM only refuses the next one.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, NoReturn

from rsgrpo.system.processes import is_alive

_LOOK_SECONDS = 0.5


def process_and_parent(_worker: Any) -> tuple[int, int]:
    """Ids of the process that one of vLLM's workers runs in, and of the one that started it."""
    return os.getpid(), os.getppid()


class EngineWatch:
    """Looks after an engine's processes from a thread; when one dies, the others and this process go as well.

    Args:
        processes: what :func:`process_and_parent` gave, of every worker of vLLM's. An engine inside this process has
            none of its own.
    """

    def __init__(self, processes: Iterable[tuple[int, int]]) -> None:
        own = {os.getpid(), os.getppid()}
        # One worker lives in EngineCore's process; several are its children.
        self._process_ids = sorted({pid for pair in processes for pid in pair} - own)
        if self._process_ids:
            threading.Thread(target=self._look, name="engine-watch", daemon=True).start()

    def has_died(self) -> bool:
        """Whether one of the processes is gone."""
        return not all(map(is_alive, self._process_ids))

    def _look(self) -> None:
        while not self.has_died():
            time.sleep(_LOOK_SECONDS)
        self.leave()

    def leave(self) -> NoReturn:
        """End the engine's processes, whatever state they are in, and this one."""
        print("error: vLLM's engine died; this worker goes with it", file=sys.stderr, flush=True)
        for pid in self._process_ids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        os._exit(1)
