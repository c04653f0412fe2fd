"""Prompts made ready ahead of need: order, how far ahead, failures, and giving up."""

from __future__ import annotations

import threading
from collections.abc import Generator, Sequence

import pytest
from PIL import Image

from rollout.rendering import PromptRenderer
from rollout.requests import RolloutRequest, requests_for
from rsgrpo.config import SamplingConfig
from rsgrpo.types import ChatPrompt, PromptedSample, Sample

Pages = tuple[Image.Image, ...]
WAIT_SECONDS = 20.0


def _requests(*sample_ids: str) -> list[RolloutRequest]:
    prompted = [
        PromptedSample(sample=Sample(sample_id=sample_id), prompt=ChatPrompt(sample_id=sample_id, text=sample_id))
        for sample_id in sample_ids
    ]
    return requests_for(prompted, num_samples=1, sampling=SamplingConfig(), seed=0)


class _Kitchen:
    """What a renderer calls: notes the order, may be held up, and may fail on a sample."""

    def __init__(self, fails_on: str = "") -> None:
        self.rendered: list[str] = []
        self.num_closed = 0
        self.more = threading.Semaphore(0)
        self._fails_on = fails_on

    def render(self, request: RolloutRequest, pages: Pages) -> str:
        self.rendered.append(request.sample_id)
        self.more.release()
        if request.sample_id == self._fails_on:
            raise ValueError(f"no {request.sample_id}")
        return request.sample_id.upper()

    def pages(self, requests: Sequence[RolloutRequest]) -> Generator[Pages, None, None]:
        try:
            for _ in requests:
                yield ()
        finally:
            self.num_closed += 1

    def renderer(self, max_ahead: int) -> PromptRenderer[str]:
        return PromptRenderer(self.render, self.pages, max_ahead=max_ahead)

    def wait_for(self, number: int) -> None:
        """Until so many further prompts were rendered."""
        for _ in range(number):
            assert self.more.acquire(timeout=WAIT_SECONDS)


def test_prompts_come_in_the_order_in_which_requests_were_put() -> None:
    kitchen = _Kitchen()
    renderer = kitchen.renderer(max_ahead=2)
    renderer.put(_requests("a", "b"))
    renderer.put(())
    renderer.put(_requests("c", "d", "e"))
    assert len(renderer) == 5
    taken = [renderer.take() for _ in range(5)]
    assert [(request.sample_id, prompt) for request, prompt in taken] == [(x, x.upper()) for x in "abcde"]
    assert len(renderer) == 0


def test_no_more_prompts_are_made_than_may_lie_ready_and_one_in_work() -> None:
    kitchen = _Kitchen()
    renderer = kitchen.renderer(max_ahead=2)
    renderer.put(_requests(*"abcdef"))
    # Two lie ready, and the third was made and waits for room; the fourth is not begun before one is taken.
    kitchen.wait_for(3)
    assert not kitchen.more.acquire(timeout=0.1)
    assert kitchen.rendered == ["a", "b", "c"]
    renderer.take()
    kitchen.wait_for(1)
    assert kitchen.rendered == ["a", "b", "c", "d"]
    renderer.clear()


def test_a_failure_is_raised_when_its_turn_comes_and_work_goes_on_after_clearing() -> None:
    kitchen = _Kitchen(fails_on="b")
    renderer = kitchen.renderer(max_ahead=4)
    renderer.put(_requests("a", "b", "c"))
    assert renderer.take()[1] == "A"
    with pytest.raises(ValueError, match="no b"):
        renderer.take()
    renderer.clear()
    assert len(renderer) == 0
    assert kitchen.rendered == ["a", "b"]
    renderer.put(_requests("d"))
    assert renderer.take()[1] == "D"


def test_clearing_gives_up_what_waits_and_what_is_ready_and_lets_go_of_the_pages() -> None:
    kitchen = _Kitchen()
    renderer = kitchen.renderer(max_ahead=1)
    renderer.put(_requests("a", "b", "c"))
    kitchen.wait_for(2)
    renderer.clear()
    assert len(renderer) == 0
    assert kitchen.num_closed == 1
    renderer.put(_requests("d"))
    assert renderer.take()[1] == "D"
    assert "c" not in kitchen.rendered
