"""Pages ahead of need: in order, each once while it is held, never more bytes than allowed, nothing left behind."""

from __future__ import annotations

import threading
import time
import weakref
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rsgrpo.config.image_rules import ImageRules
from rsgrpo.data.images.loading import load_image
from rsgrpo.data.images.sources import ImageError
from rsgrpo.model.image_feed import ImageFeed, decoded_images
from rsgrpo.types import ImageRef
from tests.examples import examples
from tests.tiny_model import write_images

_PATIENCE_SECONDS = 10.0  # for what must happen in another thread; it takes microseconds


class Page:
    """What a loader makes of a page."""

    def __init__(self, number: int) -> None:
        self.number = number


class Loader:
    """Loads pages of given sizes and counts what is alive: held by the feed, by the consumer, or being loaded.

    Args:
        sizes: bytes of each page, by its number.
        broken: pages that cannot be loaded.
    """

    def __init__(self, sizes: list[int], broken: frozenset[int] = frozenset()) -> None:
        self.refs = [ImageRef(path=str(number)) for number in range(len(sizes))]
        self.loads = [0] * len(sizes)
        self.limit = 0
        self.exceeded = 0
        self._sizes, self._broken = sizes, broken
        self._lock = threading.Lock()
        self._live: weakref.WeakSet[Page] = weakref.WeakSet()
        self._loading = 0

    def num_bytes(self, ref: ImageRef) -> int:
        return self._sizes[int(ref.path)]

    def load(self, ref: ImageRef) -> Page:
        number = int(ref.path)
        with self._lock:
            self.loads[number] += 1
            self._loading += self._sizes[number]
        # The thread that made a page holds on to it for some microseconds after it was dropped.
        stop = time.monotonic() + _PATIENCE_SECONDS
        while self.live() > self.limit and time.monotonic() < stop:
            time.sleep(0)
        self.exceeded = max(self.exceeded, self.live() - self.limit)
        try:
            if number in self._broken:
                raise ImageError(f"page {number} is damaged")
            page = Page(number)
            with self._lock:
                self._live.add(page)
            return page
        finally:
            with self._lock:
                self._loading -= self._sizes[number]

    def live(self) -> int:
        with self._lock:
            return self._loading + sum(self._sizes[page.number] for page in list(self._live))


demands_of_images = st.lists(st.lists(st.integers(0, 7), max_size=4), max_size=12)
sizes_of_images = st.lists(st.integers(0, 9), min_size=8, max_size=8)


@given(
    demands_of_images,
    sizes_of_images,
    st.integers(1, 40),
    st.integers(1, 4),
    st.frozensets(st.integers(0, 7), max_size=2),
)
@examples(150)
def test_pages_come_in_order_within_the_bound_and_a_broken_one_when_its_turn_comes(
    demands, sizes, max_bytes, num_threads, broken
):
    loader = Loader(sizes, broken)
    # One demand's own pages may exceed the bound: nothing could be done with less.
    loader.limit = max([max_bytes, *(sum(sizes[number] for number in set(demand)) for demand in demands)])
    feed = ImageFeed(loader.load, loader.num_bytes, max_bytes=max_bytes, num_threads=num_threads)
    met = 0
    with closing(feed.images([[loader.refs[number] for number in demand] for demand in demands])) as pages:
        try:
            while (found := next(pages, None)) is not None:
                assert [page.number for page in found] == demands[met]
                met += 1
                del found
        except ImageError as error:
            first = next(number for number in demands[met] if number in broken)
            assert str(error) == f"page {first} is damaged"
            assert not any(broken & set(demand) for demand in demands[:met])
        else:
            assert met == len(demands)
            assert not any(broken & set(demand) for demand in demands)
    assert loader.exceeded <= 0
    assert max(loader.loads, default=0) <= len(demands)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("pages")]


@given(demands_of_images, sizes_of_images, st.integers(1, 4))
@examples(50)
def test_where_all_fit_each_page_is_loaded_once_in_the_next_call_too(demands, sizes, num_threads):
    loader = Loader(sizes)
    loader.limit = sum(sizes)
    feed = ImageFeed(loader.load, loader.num_bytes, max_bytes=loader.limit, num_threads=num_threads)
    for _ in range(2):
        list(feed.images([[loader.refs[number] for number in demand] for demand in demands]))
    shown = {number for demand in demands for number in demand}
    assert loader.loads == [int(number in shown) for number in range(8)]


def test_what_successive_demands_share_is_loaded_once_however_little_room_there_is():
    # Page 0 stands in all five, the bound holds two pages: each of the others makes room for the next.
    loader = Loader([1] * 6)
    loader.limit = 2
    feed = ImageFeed(loader.load, loader.num_bytes, max_bytes=2, num_threads=1)
    pages = feed.images([[loader.refs[0], loader.refs[number]] for number in range(1, 6)])
    while next(pages, None):
        pass
    assert loader.loads == [1] * 6
    assert loader.exceeded <= 0


def test_room_is_made_by_what_is_needed_last():
    # The bound holds three. After [0 1 2], page 3 is due and pages 0, 1 and 2 come again as 1, 0, 2: page 2 gives way.
    loader = Loader([1] * 4)
    loader.limit = 3
    feed = ImageFeed(loader.load, loader.num_bytes, max_bytes=3, num_threads=1)
    pages = feed.images([[loader.refs[number] for number in demand] for demand in ([0, 1, 2], [3], [1], [0], [2])])
    while next(pages, None):
        pass
    assert loader.loads == [1, 1, 2, 1]


def test_the_first_pages_wait_for_no_later_one_which_is_loaded_meanwhile():
    begun, finish = threading.Event(), threading.Event()
    first, later = ImageRef(path="first"), ImageRef(path="later")

    def load(ref: ImageRef) -> str:
        if ref == later:
            begun.set()
            assert finish.wait(_PATIENCE_SECONDS)
        return ref.path

    feed = ImageFeed(load, lambda ref: 1, max_bytes=2, num_threads=2)
    with closing(feed.images([[first], [later]])) as pages:
        assert next(pages) == ("first",)
        assert begun.wait(_PATIENCE_SECONDS)  # nobody asked for it yet
        finish.set()
        assert next(pages) == ("later",)


def test_an_early_close_loads_nothing_more_and_leaves_no_thread():
    loader = Loader([1] * 50)
    loader.limit = 50
    feed = ImageFeed(loader.load, loader.num_bytes, max_bytes=50, num_threads=2)
    pages = feed.images([[ref] for ref in loader.refs])
    next(pages)
    pages.close()
    loaded = list(loader.loads)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("pages")]
    list(feed.images([[ref] for ref in loader.refs]))
    assert loader.loads == [1] * 50  # what was loaded before the close was kept
    assert sum(loaded) >= 1


def test_a_page_that_could_not_be_loaded_is_tried_again_in_the_next_call():
    loader = Loader([1, 1], broken=frozenset({1}))
    loader.limit = 2
    feed = ImageFeed(loader.load, loader.num_bytes, max_bytes=2, num_threads=1)
    for turn in (1, 2):
        pages = feed.images([[loader.refs[0]], [loader.refs[1]]])
        assert next(pages)[0].number == 0
        with pytest.raises(ImageError, match="page 1 is damaged"):
            next(pages)
        assert loader.loads == [1, turn]


def test_decoded_pages_are_those_of_load_page_and_a_missing_one_is_named_in_its_turn(tmp_path: Path):
    rules = ImageRules(min_pixels=784, max_pixels=5000)
    refs = write_images(tmp_path, [(56, 56), (84, 156), (112, 140)])
    gone = ImageRef(path="gone.png", file=str(tmp_path / "gone.png"))
    feed = decoded_images(rules, max_bytes=10**6, num_threads=2)
    with closing(feed.images([refs[:2], refs[1:], [gone]])) as pages:
        for demand in (refs[:2], refs[1:]):
            for ref, page in zip(demand, next(pages), strict=True):
                assert np.array_equal(np.asarray(page), np.asarray(load_image(ref, rules)))
        with pytest.raises(ImageError, match=r"gone\.png.*does not exist"):
            next(pages)
