"""A pool that renders in this process: it does the same tasks in the same order every time and starts no process."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from rsgrpo.config.documents import RenderSettings
from rsgrpo.documents.page_store import PageStore
from rsgrpo.documents.render_worker import RenderWorker
from rsgrpo.documents.rendering import RenderPool
from rsgrpo.documents.tasks import LAST_ANSWERS, Answer, Died, RenderPages, Task


class InProcessPool(RenderPool):
    """A pool without processes that does a task when its answers are asked for."""

    killers: frozenset[int] = frozenset()  # numbers of pages at which a worker dies
    given: list[Task]

    def __init__(self, store: Path, settings: RenderSettings) -> None:
        super().__init__(store, settings)
        self._said: deque[Answer] = deque()
        self._task: Task | None = None
        self._worker = RenderWorker(cast(Any, self), store, settings)
        self.given = []

    def __exit__(self, *error: object) -> None:
        # Pool and worker hold each other. Left to the garbage collector, the document would be closed in whatever
        # thread that runs, while another one renders: PDFium, which knows no threads, then crashes the process.
        if self._worker._document is not None:
            self._worker._document.close()
        super().__exit__(*error)

    def grow(self, num_tasks: int) -> None:
        """Do nothing: this process is the only worker."""

    @property
    def has_idle(self) -> bool:
        return self._task is None

    def give(self, task: Task) -> None:
        self._task = task
        self.given.append(task)

    def send(self, answer: Answer) -> None:
        """Keep an answer of the worker, which takes this pool for its connection."""
        self._said.append(answer)

    def answers(self) -> Iterator[tuple[Task, Answer]]:
        task, self._task = self._task, None
        assert task is not None
        self._worker._do(task)
        while self._said:
            answer = self._said.popleft()
            if isinstance(task, RenderPages) and getattr(answer, "number", 0) in self.killers:
                self._said.clear()
                answer = Died(reason="the process that had it died (signal SIGSEGV)")
            yield task, answer
            if isinstance(answer, LAST_ANSWERS):
                assert not self._said


def in_process(store: PageStore, pool: type[InProcessPool] = InProcessPool) -> PageStore:
    """Return the same store, with a pool that renders pages in this process."""
    return PageStore(store.folder, store.rendering, pool)
