"""Pages in the order in which they are needed, loaded by threads ahead of need, under one bound on bytes.

    demands:  [a b] [c] [b d] ...      what is needed, in order
    threads:   a b   c     d           each page is loaded once while it is held
    held:     <= max_bytes             what was not asked for yet, what is in use, and what may come again

Engines queue their first request while later pages are still being decoded; a trainer builds its first sequence so.
"""

from __future__ import annotations

import math
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Generic, TypeVar

from PIL import Image

from rsgrpo.config.image_rules import ImageRules
from rsgrpo.data.images.loading import image_size, load_image
from rsgrpo.types import ImageRef

_RGB_BYTES = 3  # of a pixel

Loaded = TypeVar("Loaded")
_Uses = dict[ImageRef, deque[int]]


class ImageFeed(Generic[Loaded]):
    """Loads pages ahead of need.

    Pages that are not needed any more stay until others need the room, so that what comes again later, in the next
    call as well, is not loaded anew. To make room goes what is needed last.

    Args:
        load: makes an image of its reference; called in threads.
        num_bytes: gives how many bytes that image will take; called before it is loaded, and cheap.
        max_bytes: the most bytes that images take together. Only what one demand needs by itself may exceed it.
        num_threads: how many images are loaded at once.
        begin_thread: is called first in each of these threads.

    Example:
        ::

            feed = ImageFeed(load, num_bytes, max_bytes=2**29, num_threads=8)
            with closing(feed.images([prompt.images for prompt in prompts])) as images:
                for prompt in prompts:
                    queue(prompt, next(images))
    """

    def __init__(
        self,
        load: Callable[[ImageRef], Loaded],
        num_bytes: Callable[[ImageRef], int],
        *,
        max_bytes: int,
        num_threads: int,
        begin_thread: Callable[[], None] | None = None,
    ) -> None:
        self._begin_thread = begin_thread
        self._load = load
        self._num_bytes = num_bytes
        self._max_bytes = max_bytes
        self._num_threads = max(1, num_threads)
        self._held: OrderedDict[ImageRef, Future[Loaded]] = OrderedDict()  # the one used longest ago first
        self._sizes: dict[ImageRef, int] = {}
        self._held_bytes = 0

    def images(self, demands: Sequence[Sequence[ImageRef]]) -> Generator[tuple[Loaded, ...], None, None]:
        """The pages of each demand, in order. Not for several threads at once.

        Loading begins with the first ``next``, and ends with the generator: close it where it may not be used up.
        Let go of a demand's pages before asking for those of the next: the bound counts them until then.

        Args:
            demands: the images of each demand, in its order; an image may stand there more than once.

        Yields:
            The pages of one demand after the other, each time as many as it names, in its order.

        Raises:
            Exception: the exception that ``load`` or ``num_bytes`` raised, once all demands before the one concerned
                were met.
        """
        uses: _Uses = defaultdict(deque)
        for index, refs in enumerate(demands):
            for ref in dict.fromkeys(refs):
                uses[ref].append(index)
        ahead = deque((index, ref) for index, refs in enumerate(demands) for ref in dict.fromkeys(refs))
        threads = ThreadPoolExecutor(self._num_threads, "pages", initializer=self._begin_thread)
        try:
            for index, refs in enumerate(demands):
                for ref in dict.fromkeys(refs):
                    self._request(ref, index, uses, threads, is_due=True)
                while ahead and self._request(ahead[0][1], ahead[0][0], uses, threads, is_due=False):
                    ahead.popleft()
                yield tuple(self._taken(ref) for ref in refs)
                for ref in dict.fromkeys(refs):
                    uses[ref].popleft()
        finally:
            threads.shutdown(wait=True, cancel_futures=True)
            for ref, future in list(self._held.items()):
                if future.cancelled() or future.exception() is not None:
                    self._drop(ref)

    def _request(self, ref: ImageRef, index: int, uses: _Uses, threads: ThreadPoolExecutor, *, is_due: bool) -> bool:
        """Have a page loaded unless it is held; False: there is no room for it yet."""
        if ref in self._held or not uses[ref] or uses[ref][0] > index:
            return True  # there, or its demand was met already
        try:
            size = self._num_bytes(ref)
        except Exception as error:  # the caller hears of it when the page's turn comes
            failed: Future[Loaded] = Future()
            failed.set_exception(error)
            self._hold(ref, failed, 0)
            return True
        while self._held_bytes + size > self._max_bytes:
            last = self._needed_last(index, uses)
            if last is None:
                if is_due:
                    break
                return False
            self._drop(last)
        self._hold(ref, threads.submit(self._load, ref), size)
        return True

    def _needed_last(self, index: int, uses: _Uses) -> ImageRef | None:
        """The page held whose next use is furthest behind demand ``index``; None: no page is held."""
        last, furthest = None, float(index)
        for ref in self._held:
            following = uses.get(ref)
            use = float(following[0]) if following else math.inf
            if use > furthest:
                last, furthest = ref, use
        return last

    def _hold(self, ref: ImageRef, future: Future[Loaded], size: int) -> None:
        self._held[ref] = future
        self._sizes[ref] = size
        self._held_bytes += size

    def _drop(self, ref: ImageRef) -> None:
        future = self._held.pop(ref)
        if not future.cancel():
            wait([future])  # else it would take its memory after its room was given away
        self._held_bytes -= self._sizes.pop(ref)

    def _taken(self, ref: ImageRef) -> Loaded:
        self._held.move_to_end(ref)
        return self._held[ref].result()


def decoded_images(rules: ImageRules, *, max_bytes: int, num_threads: int) -> ImageFeed[Image.Image]:
    """A feed of pages as ``load_image`` gives them.

    Args:
        rules: how images are read.
        max_bytes: the most bytes that decoded images take together; one of 1,568,000 pixels takes 4.7 MB.
        num_threads: how many are decoded at once.
    """

    def num_bytes(ref: ImageRef) -> int:
        width, height = image_size(ref, rules)
        return _RGB_BYTES * width * height

    return ImageFeed(lambda ref: load_image(ref, rules), num_bytes, max_bytes=max_bytes, num_threads=num_threads)
