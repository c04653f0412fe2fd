"""Prompts made ready for the engine in the order in which it takes them, a few ahead of need."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from typing import Generic, TypeVar

from PIL import Image

from rollout.requests import RolloutRequest

Prompt = TypeVar("Prompt")


class PromptRenderer(Generic[Prompt]):
    """Renders in a thread of its own, in order: vLLM's cache of images goes by the order on both of its ends.

    Args:
        render: makes the prompt of a request from its images; called in that thread.
        images: yields the images of each request in turn, as ``render`` wants them.
        max_ahead: how many prompts lie ready at most.

    Example:
        ::

            renderer = PromptRenderer(render, images, max_ahead=4)
            renderer.put(requests)
            while len(renderer):
                request, prompt = renderer.take()
    """

    def __init__(
        self,
        render: Callable[[RolloutRequest, tuple[Image.Image, ...]], Prompt],
        images: Callable[[Sequence[RolloutRequest]], Generator[tuple[Image.Image, ...], None, None]],
        *,
        max_ahead: int,
    ) -> None:
        self._render = render
        self._images = images
        self._max_ahead = max_ahead
        self._changed = threading.Condition()
        self._waiting: deque[RolloutRequest] = deque()
        self._ready: deque[tuple[RolloutRequest, Prompt | Exception]] = deque()
        self._num_put = 0
        self._is_busy = False
        self._is_cleared = False
        self._thread: threading.Thread | None = None

    def __len__(self) -> int:
        """How many requests were put and not taken."""
        return self._num_put

    def put(self, requests: Sequence[RolloutRequest]) -> None:
        """Queue requests behind those that wait."""
        if not requests:
            return
        with self._changed:
            self._waiting.extend(requests)
            self._num_put += len(requests)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="render", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def take(self) -> tuple[RolloutRequest, Prompt]:
        """The next request with its prompt; waits until it is ready.

        Raises:
            Exception: the exception that rendering the prompt, or reading its pages, raised.
        """
        with self._changed:
            self._changed.wait_for(lambda: bool(self._ready))
            request, prompt = self._ready.popleft()
            self._num_put -= 1
            self._changed.notify_all()
        if isinstance(prompt, Exception):
            raise prompt
        return request, prompt

    def clear(self) -> None:
        """Forget what waits and what is ready; returns when nothing is rendered any more."""
        with self._changed:
            self._waiting.clear()
            self._is_cleared = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._is_busy)
            self._ready.clear()
            self._num_put = 0
            self._is_cleared = False

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: bool(self._waiting))
                batch = list(self._waiting)
                self._waiting.clear()
                self._is_busy = True
            self._render_batch(batch)
            with self._changed:
                self._is_busy = False
                self._changed.notify_all()

    def _render_batch(self, batch: Sequence[RolloutRequest]) -> None:
        with closing(self._images(batch)) as images:
            for request in batch:
                prompt: Prompt | Exception
                try:
                    prompt = self._render(request, next(images))
                except Exception as error:  # the taker's to raise, once all prompts before it were taken
                    prompt = error
                if not self._offer(request, prompt):
                    return

    def _offer(self, request: RolloutRequest, prompt: Prompt | Exception) -> bool:
        """Lay a prompt ready once there is room; False if the queue was cleared: further prompts are not wanted."""
        with self._changed:
            self._changed.wait_for(lambda: len(self._ready) < self._max_ahead or self._is_cleared)
            if not self._is_cleared:
                self._ready.append((request, prompt))
                self._changed.notify_all()
            return not self._is_cleared and not isinstance(prompt, Exception)
