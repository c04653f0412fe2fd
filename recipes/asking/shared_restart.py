"""One restart of an engine for all who need it, in a thread of its own: it takes half a minute, and others go on."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from recipes.asking.chat_server import ServerError

STOPPED = "the engine was stopped; ask again"
"""What those hear who wait for an engine that will not come back."""


class SharedRestart:
    """Restarts an engine, once for all who ask for it at the same time; from any event loop.

    Args:
        restart: restarts it, in a thread; it gives up soon after whoever calls :meth:`close` has told it to.
    """

    def __init__(self, restart: Callable[[], None]) -> None:
        self._restart = restart
        self._lock = threading.Lock()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="restart")
        self._running: Future[None] | None = None
        self._is_closed = False

    async def done(self) -> None:
        """Have the engine restarted, or wait for the restart that is under way.

        Raises:
            ServerError: it does not start, or it was stopped.
        """
        with self._lock:
            if self._is_closed:
                raise ServerError(STOPPED)
            if self._running is None:
                self._running = Future()
                self._running.set_running_or_notify_cancel()  # from here on nobody can cancel it for the others
                self._thread.submit(self._run, self._running)
            running = self._running
        await asyncio.wrap_future(running)

    def close(self) -> None:
        """Wait until the thread has given up; nothing is restarted any more."""
        with self._lock:
            self._is_closed = True
        self._thread.shutdown()

    def _run(self, running: Future[None]) -> None:
        try:
            self._restart()
        except BaseException as error:  # of whatever kind: whoever waits must be told
            with self._lock:
                self._running = None
            running.set_exception(error)
        else:
            with self._lock:
                self._running = None
            running.set_result(None)
