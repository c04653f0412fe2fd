"""The two worlds that haystacks are built from: generated tickets, and the stamps of a Debian package.

A world has items. An item's page shows what names it and a handwritten digit; the question names the item and asks for
the digit. Hands of the test do not occur in training. Tickets of the test have names that training has not seen. Stamps
are the same pictures in training and test, since a model from scratch cannot know what it never saw: they differ in
scale, crop, mirror, place, paper and digit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import numpy as np
from haystack_stamps import LOW_PIXELS, PAGE_PIXELS, Stamp, draw_stamp, fetch_stamps, read_stamps, told_apart
from PIL import Image

from rsgrpo.data.synthetic.scans import split_scans
from rsgrpo.data.synthetic.tickets import TICKET_PIXELS, Mark, Ticket, draw_ticket, mark_pairs, ticket_query

_SCANS_PER_DIGIT = (90, 40, 40)  # supervised training, retriever and reinforcement learning, test
_SPLITS = ("sft", "rl", "test")
_NUM_TEST_TICKETS = 1000  # the first of all pairs, as the quickstart deals them out
_NUM_HELD_OUT_TICKETS = 200  # the next
_FIRST_TRAINING_TICKET = _NUM_TEST_TICKETS + _NUM_HELD_OUT_TICKETS
_LOW_TICKET_PIXELS = 28


class World(Protocol):
    """Items with pages and questions."""

    @property
    def name(self) -> str:
        """Give the name: ``tickets`` or ``stamps``."""

    @property
    def page_pixels(self) -> int:
        """Give the width and height of a page."""

    @property
    def low_pixels(self) -> int:
        """Give the width and height of a page that is judged at low resolution."""

    @property
    def num_looked_at(self) -> int:
        """Give how many pages are judged so: as many as leave the filter 18 times fewer tokens in all."""

    @property
    def train_items(self) -> Sequence[int]:
        """Items that training asks for."""

    @property
    def held_out_items(self) -> Sequence[int]:
        """Items that are to training what the test's are, for what is chosen before the test."""

    @property
    def test_items(self) -> Sequence[int]:
        """Items of the test's pool."""

    def question(self, item: int) -> str:
        """Write the question for the digit beside an item."""

    def transcript(self, item: int) -> str:
        """Say in words what names an item."""

    def near(self, item: int, rng: np.random.Generator) -> int:
        """Draw another training item that is easily taken for this one."""

    def nearest(self, item: int, rng: np.random.Generator) -> int:
        """Draw another training item out of those that a search finds next to this one."""

    def draw(self, item: int, scan: int, rng: np.random.Generator) -> Image.Image:
        """Draw an item's page with a handwritten digit."""


@lru_cache(maxsize=1)
def _pairs(seed: int) -> tuple[tuple[Mark, Mark], ...]:
    return mark_pairs(seed)


@lru_cache(maxsize=1)
def _train_pairs_by_mark(seed: int) -> Mapping[Mark, tuple[int, ...]]:
    by_mark: dict[Mark, list[int]] = {}
    for item, marks in enumerate(_pairs(seed)):
        for mark in marks if item >= _FIRST_TRAINING_TICKET else ():
            by_mark.setdefault(mark, []).append(item)
    return {mark: tuple(items) for mark, items in by_mark.items()}


@dataclass(frozen=True, slots=True)
class Tickets:
    """Tickets with two coloured marks; a pair of marks is an item.

    Attributes:
        seed: the seed of the order of pairs, of which the first 1,000 are the test's and 200 more are held out.
    """

    seed: int
    name: str = "tickets"
    page_pixels: int = TICKET_PIXELS
    low_pixels: int = _LOW_TICKET_PIXELS
    num_looked_at: int = 10

    @property
    def train_items(self) -> Sequence[int]:
        """See :class:`World`."""
        return range(_FIRST_TRAINING_TICKET, len(_pairs(self.seed)))

    @property
    def held_out_items(self) -> Sequence[int]:
        """See :class:`World`."""
        return range(_NUM_TEST_TICKETS, _FIRST_TRAINING_TICKET)

    @property
    def test_items(self) -> Sequence[int]:
        """See :class:`World`."""
        return range(_NUM_TEST_TICKETS)

    def question(self, item: int) -> str:
        """See :class:`World`."""
        return ticket_query(_pairs(self.seed)[item])

    def transcript(self, item: int) -> str:
        """See :class:`World`."""
        return " ".join(mark.name for mark in _pairs(self.seed)[item])

    def near(self, item: int, rng: np.random.Generator) -> int:
        """Draw a training ticket that shares a mark."""
        sharing = _train_pairs_by_mark(self.seed)[_pairs(self.seed)[item][int(rng.integers(2))]]
        while (other := sharing[int(rng.integers(len(sharing)))]) == item:
            pass
        return other

    def nearest(self, item: int, rng: np.random.Generator) -> int:
        """Draw a training ticket that shares a mark, and of the other mark the colour or the form."""
        pairs = _pairs(self.seed)
        marks = set(pairs[item])
        found = []
        for shared in pairs[item]:
            (own,) = marks - {shared}
            for other in _train_pairs_by_mark(self.seed)[shared]:
                (mark,) = set(pairs[other]) - {shared}
                if other != item and (mark.colour == own.colour or mark.form == own.form):
                    found.append(other)
        return found[int(rng.integers(len(found)))] if found else self.near(item, rng)

    def draw(self, item: int, scan: int, rng: np.random.Generator) -> Image.Image:
        """See :class:`World`."""
        marks = _pairs(self.seed)[item]
        # The scan is drawn; its digit is for words alone.
        return draw_ticket(Ticket(pair=item, marks=marks, scan=scan, digit=0), self.page_pixels)


@dataclass(frozen=True, slots=True)
class Stamps:
    """Real pictures with captions; a caption is an item.

    Attributes:
        pictures: the folder of the package's pictures.
        num_items: how many are taken of those whose captions can be told apart, evenly spread over them; 0: all these.
    """

    pictures: Path
    num_items: int = 0
    name: str = "stamps"
    page_pixels: int = PAGE_PIXELS
    low_pixels: int = LOW_PIXELS
    num_looked_at: int = 5

    @property
    def train_items(self) -> Sequence[int]:
        """See :class:`World`."""
        return range(len(self._stamps()))

    @property
    def held_out_items(self) -> Sequence[int]:
        """See :class:`World`."""
        return self.train_items

    @property
    def test_items(self) -> Sequence[int]:
        """See :class:`World`."""
        return self.train_items

    def question(self, item: int) -> str:
        """See :class:`World`."""
        return f"What number is beside this picture? {self._stamps()[item].caption}"

    def transcript(self, item: int) -> str:
        """See :class:`World`."""
        return self._stamps()[item].caption.rstrip(".")

    def near(self, item: int, rng: np.random.Generator) -> int:
        """Draw a neighbour in the order of paths, which is mostly of the same category."""
        num_items = len(self.train_items)
        return (item + int(rng.choice([-3, -2, -1, 1, 2, 3]))) % num_items

    def nearest(self, item: int, rng: np.random.Generator) -> int:
        """Draw a neighbour, since nobody knows which pictures are alike."""
        return self.near(item, rng)

    def draw(self, item: int, scan: int, rng: np.random.Generator) -> Image.Image:
        """See :class:`World`."""
        return draw_stamp(self._stamps()[item], scan, rng)

    def _stamps(self) -> tuple[Stamp, ...]:
        return _spread(self.pictures, self.num_items)


@lru_cache(maxsize=1)
def _spread(pictures: Path, num_items: int) -> tuple[Stamp, ...]:
    found = read_stamps(pictures)
    stamps = tuple(found[index] for index in told_apart([stamp.caption for stamp in found]))
    if not num_items or num_items >= len(stamps):
        return stamps
    return tuple(stamps[index * len(stamps) // num_items] for index in range(num_items))


def open_world(name: str, folder: Path, num_stamps: int, seed: int) -> World:
    """Make a world by its name.

    Args:
        name: ``tickets`` or ``stamps``.
        folder: the folder that gets the package of the stamps.
        num_stamps: how many pictures are taken of those whose captions can be told apart; 0: all these.
        seed: the seed of the tickets.
    """
    return Tickets(seed) if name == "tickets" else Stamps(fetch_stamps(folder), num_stamps)


def scans_of(split: str, seed: int) -> tuple[tuple[int, ...], ...]:
    """Give the scans of each digit.

    Args:
        split: ``sft``, ``rl`` or ``test``.
        seed: the seed by which they are dealt out.
    """
    return split_scans(_SCANS_PER_DIGIT, seed)[_SPLITS.index(split)]
