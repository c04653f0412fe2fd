"""The quickstart's task: questions over cards, each a page with one real handwritten digit.

A page shows a lightly tinted card in a coloured frame; the colour is the card's name. Questions ask for the number
on one card, for the card that shows a number, or for the sum of two cards.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from rsgrpo.data.synthetic.gold_responses import gold_response
from rsgrpo.data.synthetic.scans import INK, NUMBERS, scan_mask
from rsgrpo.text.normalise import REFUSAL

COLOURS = {
    "red": (214, 40, 40),
    "blue": (40, 80, 220),
    "green": (30, 150, 60),
    "yellow": (240, 200, 20),
    "purple": (140, 50, 170),
    "orange": (245, 130, 20),
    "pink": (250, 140, 190),
    "grey": (120, 120, 120),
}
"""The colours of cards by name, with the frame's red, green and blue."""

KINDS = ("read", "which", "add")
"""The kinds of questions: read one card; which card shows a number; add two cards, which lie on different pages."""

TURNS = ("read", "add", "which", "add", "read")
"""The kinds of questions in the order in which a data set asks. Finding a number is the hardest to learn, so there is
less of it."""

_TINT_FRAC = 0.25  # of the card's colour in its paper: from the frame alone some seeds do not learn colours in time
_FRAME_FRAC = 0.11  # of the page's side: enough pixels for a colour, most of the page for the digit
_PAGE_COUNTS = {2: 0.5, 3: 0.3, 4: 0.2}  # more pages, longer responses: the short ones keep the run short


@dataclass(frozen=True, kw_only=True, slots=True)
class Card:
    """One page with a handwritten digit.

    Attributes:
        colour: the name of the colour, a key of ``COLOURS``.
        scan: the index of the handwritten digit in scikit-learn's data.
        digit: the digit that the scan shows.
    """

    colour: str
    scan: int
    digit: int


@dataclass(frozen=True, kw_only=True, slots=True)
class CardQuestion:
    """A question with its gold.

    Attributes:
        kind: the kind of question, one of ``KINDS``.
        question: the question for the prompt.
        cards: the pages, in order.
        answer: the gold answer; ``REFUSAL`` where the pages do not hold it.
        is_sufficient: whether the pages hold the answer.
        positive_images: the 0-based indexes of the pages that the answer needs.
        response: the tagged gold response.
    """

    kind: str
    question: str
    cards: tuple[Card, ...]
    answer: str
    is_sufficient: bool
    positive_images: tuple[int, ...]
    response: str


def _frame_pixels(image_pixels: int) -> int:
    return max(2, round(_FRAME_FRAC * image_pixels))


def draw_paper(colour: str, image_pixels: int) -> Image.Image:
    """Draw an empty page: a coloured frame around paper with a tint of it.

    Args:
        colour: a key of ``COLOURS``.
        image_pixels: the side of the square image, in pixels.
    """
    frame = _frame_pixels(image_pixels)
    side = image_pixels - 2 * frame
    tint = tuple(round(255 + _TINT_FRAC * (part - 255)) for part in COLOURS[colour])
    image = Image.new("RGB", (image_pixels, image_pixels), COLOURS[colour])
    image.paste(Image.new("RGB", (side, side), tint), (frame, frame))
    return image


def draw_image(card: Card, image_pixels: int) -> Image.Image:
    """Draw a card.

    Args:
        card: the card to draw.
        image_pixels: the side of the square image, in pixels.

    Returns:
        The RGB image: coloured frame, paper with a tint of it, the scan in dark ink.
    """
    image = draw_paper(card.colour, image_pixels)
    frame = _frame_pixels(image_pixels)
    side = image_pixels - 2 * frame
    image.paste(Image.new("RGB", (side, side), INK), (frame, frame), mask=scan_mask(card.scan, side))
    return image


def make_question(
    kind: str, *, is_sufficient: bool, scans: tuple[tuple[int, ...], ...], rng: np.random.Generator
) -> CardQuestion:
    """Draw cards and ask something about them.

    Args:
        kind: one of ``KINDS``.
        is_sufficient: whether the pages shall hold the answer. If not, the card asked for is missing
            (one of the two for ``add``), or no card shows the number.
        scans: the split's scans of each digit.
        rng: the generator that all choices are drawn from.

    Returns:
        The question with its gold.
    """
    num_images = int(rng.choice(list(_PAGE_COUNTS), p=list(_PAGE_COUNTS.values())))
    colours = [str(colour) for colour in rng.permutation(list(COLOURS))]
    digits = [int(digit) for digit in rng.permutation(10)]  # all different: "which card" has one answer
    if kind != "which":
        digits = [int(digit) for digit in rng.integers(0, 10, num_images)]
    cards = tuple(
        Card(colour=colour, scan=int(rng.choice(scans[digit])), digit=digit)
        for colour, digit in zip(colours[:num_images], digits[:num_images], strict=True)
    )
    first, second = (int(index) for index in rng.permutation(num_images)[:2])
    absent_colour, absent_digit = colours[num_images], digits[-1]
    if kind == "read":
        return _read(cards, first, "" if is_sufficient else absent_colour)
    if kind == "which":
        return _which(cards, first, -1 if is_sufficient else absent_digit)
    if kind == "add":
        return _add(cards, first, second, "" if is_sufficient else absent_colour)
    raise ValueError(f"kind={kind!r} is not known; choose one of {', '.join(KINDS)}")


def _read(cards: tuple[Card, ...], index: int, absent_colour: str) -> CardQuestion:
    colour = absent_colour or cards[index].colour
    question = f"What number is on the {colour} card?"
    if absent_colour:
        return _question("read", question, cards, (), f"no {colour} card", "")
    return _question("read", question, cards, (index,), f"{colour} is {_number(cards[index])}", _number(cards[index]))


def _which(cards: tuple[Card, ...], index: int, absent_digit: int) -> CardQuestion:
    number = NUMBERS[absent_digit] if absent_digit >= 0 else _number(cards[index])
    question = f"Which card shows {number}?"
    if absent_digit >= 0:
        return _question("which", question, cards, (), f"no card is {number}", "")
    return _question("which", question, cards, (index,), f"{number} is {cards[index].colour}", cards[index].colour)


def _add(cards: tuple[Card, ...], left: int, right: int, absent_colour: str) -> CardQuestion:
    colours = [cards[left].colour, absent_colour or cards[right].colour]
    question = f"What is {colours[0]} plus {colours[1]}?"
    if absent_colour:
        return _question("add", question, cards, (left,), f"no {absent_colour} card", "")
    total = NUMBERS[cards[left].digit + cards[right].digit]
    reason = f"{_number(cards[left])} plus {_number(cards[right])} is {total}"
    return _question("add", question, cards, (left, right), reason, total)


def _question(
    kind: str, question: str, cards: tuple[Card, ...], positive_images: tuple[int, ...], reason: str, answer: str
) -> CardQuestion:
    """Put a question together; an empty ``answer`` is a refusal."""
    transcripts = [_transcript(card, kind) for card in cards]
    return CardQuestion(
        kind=kind,
        question=question,
        cards=cards,
        answer=answer or REFUSAL,
        is_sufficient=bool(answer),
        positive_images=positive_images,
        response=gold_response(transcripts, positive_images, reason, answer),
    )


def _transcript(card: Card, kind: str) -> str:
    # What the question names comes first: a card is then found by its number in the same way as by its colour.
    return f"{_number(card)} {card.colour}" if kind == "which" else f"{card.colour} {_number(card)}"


def _number(card: Card) -> str:
    return NUMBERS[card.digit]
