"""Tickets: generated pages that two coloured marks name, each with one handwritten digit.

A ticket shows two marks, such as a red star and a blue circle, above a digit. Of the 64 marks any two make a pair, and
every pair is always printed in the same order: the 2,016 pairs are the names of 2,016 tickets. A question names the two
marks and asks for the number. The pairs of the test do not occur in training, nor does its handwriting: a test page
is found only by who has learned to read single marks, and its digit only by who reads unseen hands.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from rsgrpo.data.synthetic.cards import COLOURS
from rsgrpo.data.synthetic.gold_responses import gold_response
from rsgrpo.data.synthetic.scans import INK, NUMBERS, scan_mask
from rsgrpo.text.normalise import REFUSAL

TICKET_PIXELS = 56
"""The least side of a ticket: each mark and the digit fill one image token of 28 pixels."""

PHRASINGS = (
    "What number is on the ticket with the {} and the {}?",
    "Which number does the ticket with the {} and the {} show?",
    "What is written on the ticket with the {} and the {}?",
)
"""The ways in which a question asks for a ticket; the marks stand in the order in which they are printed."""

_PAPER = (250, 250, 245)
_MARK_FRAC = 0.86  # of a quarter's side
_FINE = 8  # marks are drawn this many times larger and scaled down, so that small ones keep their forms
_PAGE_COUNTS = {1: 0.25, 2: 0.3, 3: 0.25, 4: 0.2}  # of a question: a filter leaves one page or several
_NEAR_FRAC = 0.5  # of the other pages of a question: share a mark with the ticket asked for, as pages found do

Points = list[tuple[float, float]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Mark:
    """A coloured shape.

    Attributes:
        colour: the name of the colour, a key of ``COLOURS``.
        form: the name of the form, a key of ``FORMS``.
    """

    colour: str
    form: str

    @property
    def name(self) -> str:
        """The name of the mark, such as ``red star``."""
        return f"{self.colour} {self.form}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Ticket:
    """One page: two marks that name it, and a handwritten digit.

    Attributes:
        pair: the number of the pair of marks, an index of :func:`mark_pairs`.
        marks: the two marks, left and right.
        scan: the index of the handwritten digit in scikit-learn's data.
        digit: the digit that the scan shows.
    """

    pair: int
    marks: tuple[Mark, Mark]
    scan: int
    digit: int

    @property
    def page_id(self) -> str:
        """The id of the page; it says neither the marks nor the digit."""
        return f"{self.pair}-{self.scan}"

    @property
    def transcript(self) -> str:
        """What stands on the ticket, in words."""
        return f"{self.marks[0].name} {self.marks[1].name} {NUMBERS[self.digit]}"


@dataclass(frozen=True, kw_only=True, slots=True)
class TicketQuestion:
    """A question over tickets with its gold.

    Attributes:
        question: the question for the prompt.
        asked: the ticket asked for, whether or not it is among the pages.
        tickets: the pages, in order.
        answer: the gold answer; ``REFUSAL`` where no page is the ticket asked for.
        is_sufficient: whether the ticket asked for is among the pages.
        positive_images: the 0-based index of that ticket; empty where it is missing.
        response: the tagged gold response.
    """

    question: str
    asked: Ticket
    tickets: tuple[Ticket, ...]
    answer: str
    is_sufficient: bool
    positive_images: tuple[int, ...]
    response: str


def _polygon(points: Points) -> Callable[[ImageDraw.ImageDraw, int, tuple[int, int, int]], None]:
    def paint(pen: ImageDraw.ImageDraw, side: int, colour: tuple[int, int, int]) -> None:
        pen.polygon([(x * (side - 1), y * (side - 1)) for x, y in points], fill=colour)

    return paint


def _circle(pen: ImageDraw.ImageDraw, side: int, colour: tuple[int, int, int]) -> None:
    pen.ellipse((0, 0, side - 1, side - 1), fill=colour)


def _ring(pen: ImageDraw.ImageDraw, side: int, colour: tuple[int, int, int]) -> None:
    pen.ellipse((0, 0, side - 1, side - 1), outline=colour, width=round(0.24 * side))


def _star_points() -> Points:
    # Ten corners, outer and inner by turns, the first at the top; the inner radius is that of a pentagram.
    return [
        (0.5 + radius * math.sin(math.pi * corner / 5), 0.53 - radius * math.cos(math.pi * corner / 5))
        for corner, radius in zip(range(10), itertools.cycle((0.53, 0.53 * 0.382)), strict=False)
    ]


def _heart_points() -> Points:
    # The usual curve x = 16 sin³ t, y = 13 cos t - 5 cos 2t - 2 cos 3t - cos 4t, which is 32 wide and 29 high.
    angles = [math.tau * step / 60 for step in range(60)]
    return [
        (
            0.5 + math.sin(t) ** 3 / 2,
            0.44 - (13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)) / 32,
        )
        for t in angles
    ]


def _cross_points() -> Points:
    near, far = 0.32, 0.68  # where the arms begin and end
    first = [(near, 0.0), (far, 0.0), (far, near), (1.0, near), (1.0, far), (far, far)]
    return [*first, *((1.0 - x, 1.0 - y) for x, y in first)]  # the other half, turned round


FORMS: dict[str, Callable[[ImageDraw.ImageDraw, int, tuple[int, int, int]], None]] = {
    "circle": _circle,
    "square": _polygon([(0.06, 0.06), (0.94, 0.06), (0.94, 0.94), (0.06, 0.94)]),
    "triangle": _polygon([(0.5, 0.05), (1.0, 0.95), (0.0, 0.95)]),
    "star": _polygon(_star_points()),
    "cross": _polygon(_cross_points()),
    "ring": _ring,
    "diamond": _polygon([(0.5, 0), (0.9, 0.5), (0.5, 1), (0.1, 0.5)]),
    "heart": _polygon(_heart_points()),
}
"""How each form is painted into a square, by its name."""


def mark_pairs(seed: int) -> tuple[tuple[Mark, Mark], ...]:
    """List all pairs of two different marks, shuffled; which of the two stands on the left is drawn as well.

    Args:
        seed: the seed of the shuffle.

    Returns:
        The 64 · 63 / 2 = 2,016 pairs; no two of them have the same marks in either order.
    """
    rng = np.random.default_rng((seed, 1))
    marks = [Mark(colour=colour, form=form) for colour in COLOURS for form in FORMS]
    pairs = list(itertools.combinations(marks, 2))
    is_turned = rng.integers(0, 2, len(pairs))
    turned = [(right, left) if turn else (left, right) for (left, right), turn in zip(pairs, is_turned, strict=True)]
    return tuple(turned[index] for index in rng.permutation(len(pairs)))


def draw_ticket(ticket: Ticket, image_pixels: int) -> Image.Image:
    """Draw a ticket.

    Args:
        ticket: the ticket to draw.
        image_pixels: the side of the square image, in pixels, at least ``TICKET_PIXELS``.

    Returns:
        The RGB image: the marks in the upper quarters, the digit in dark ink in the lower right one.
    """
    quarter = image_pixels // 2
    side = round(_MARK_FRAC * quarter)
    margin = (quarter - side) // 2
    image = Image.new("RGB", (image_pixels, image_pixels), _PAPER)
    for column, mark in enumerate(ticket.marks):
        fine = Image.new("RGB", (_FINE * side, _FINE * side), _PAPER)
        FORMS[mark.form](ImageDraw.Draw(fine), _FINE * side, COLOURS[mark.colour])
        image.paste(fine.resize((side, side), Image.Resampling.BOX), (column * quarter + margin, margin))
    image.paste(Image.new("RGB", (quarter, quarter), INK), (quarter, quarter), mask=scan_mask(ticket.scan, quarter))
    return image


def ticket_query(marks: tuple[Mark, Mark], phrasing: int = 0) -> str:
    """Write the question that asks for the number on the ticket with these marks.

    Args:
        marks: the two marks, left and right.
        phrasing: an index of ``PHRASINGS``.
    """
    return PHRASINGS[phrasing].format(marks[0].name, marks[1].name)


def make_ticket(
    pair: int, pairs: tuple[tuple[Mark, Mark], ...], scans: tuple[tuple[int, ...], ...], rng: np.random.Generator
) -> Ticket:
    """Give a pair of marks a digit.

    Args:
        pair: the number of the pair.
        pairs: all pairs, as :func:`mark_pairs` lists them.
        scans: the split's scans of each digit.
        rng: the generator that draws the digit and its handwriting.
    """
    digit = int(rng.integers(10))
    scan = scans[digit][int(rng.integers(len(scans[digit])))]
    return Ticket(pair=pair, marks=pairs[pair], scan=scan, digit=digit)


@dataclass(frozen=True, kw_only=True, slots=True)
class TicketPool:
    """The tickets of a split, from which questions are drawn.

    Attributes:
        tickets: the tickets, of at least five different pairs.
        by_mark: the same tickets by each of their two marks.
    """

    tickets: tuple[Ticket, ...]
    by_mark: Mapping[Mark, tuple[Ticket, ...]]


def ticket_pool(tickets: Iterable[Ticket]) -> TicketPool:
    """Collect the tickets of a split."""
    kept = tuple(tickets)
    by_mark: dict[Mark, list[Ticket]] = {}
    for ticket in kept:
        for mark in ticket.marks:
            by_mark.setdefault(mark, []).append(ticket)
    return TicketPool(tickets=kept, by_mark={mark: tuple(found) for mark, found in by_mark.items()})


def make_ticket_question(pool: TicketPool, *, is_sufficient: bool, rng: np.random.Generator) -> TicketQuestion:
    """Choose a ticket and others beside it, and ask for its number.

    Args:
        pool: the tickets of the split.
        is_sufficient: whether the ticket asked for shall be among the pages.
        rng: the generator that all choices are drawn from.

    Returns:
        The question with its gold: one to four pages of different pairs, in random order. About half of the other
        pages share a mark with the ticket asked for, as the pages that a retriever finds do.
    """
    num_images = int(rng.choice(list(_PAGE_COUNTS), p=list(_PAGE_COUNTS.values())))
    asked = _any_of(pool.tickets, rng)
    pages = [asked] if is_sufficient else []
    while len(pages) < num_images:
        is_near = rng.random() < _NEAR_FRAC
        other = _any_of(pool.by_mark[asked.marks[int(rng.integers(2))]] if is_near else pool.tickets, rng)
        if other.pair not in {asked.pair, *(page.pair for page in pages)}:
            pages.append(other)
    order = [int(index) for index in rng.permutation(num_images)]
    shown = tuple(pages[index] for index in order)
    positive_images = (order.index(0),) if is_sufficient else ()
    names = " ".join(mark.name for mark in asked.marks)
    answer = NUMBERS[asked.digit] if is_sufficient else ""
    reason = f"{names} is {answer}" if is_sufficient else f"no {names}"
    return TicketQuestion(
        question=ticket_query(asked.marks, int(rng.integers(len(PHRASINGS)))),
        asked=asked,
        tickets=shown,
        answer=answer or REFUSAL,
        is_sufficient=is_sufficient,
        positive_images=positive_images,
        response=gold_response([ticket.transcript for ticket in shown], positive_images, reason, answer),
    )


def _any_of(tickets: tuple[Ticket, ...], rng: np.random.Generator) -> Ticket:
    return tickets[int(rng.integers(len(tickets)))]
