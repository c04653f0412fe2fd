"""The ledger: questions whose answer takes two pages, and responses long enough for their length to matter.

A page is framed in the colour of a ledger. An account page shows a dot, whose colour names the account that this ledger
belongs to; an entry page shows a handwritten amount. A question names an account and asks for its amount: the account
page tells the ledger, the entry in that ledger the amount. The same eight colours name accounts and ledgers, so that
who leaves out a hop, or misreads one of the six to eight pages, is led to another amount.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from PIL import Image, ImageDraw

from rsgrpo.config import QuickstartConfig
from rsgrpo.data.synthetic.cards import COLOURS, Card, draw_image, draw_paper
from rsgrpo.data.synthetic.gold_responses import gold_response, has_answer
from rsgrpo.data.synthetic.scans import NUMBERS, split_scans
from rsgrpo.text.normalise import REFUSAL

HOPS = ("account", "entry")
"""The two pages that an answer takes, in the order in which they are looked up."""

_Choice = TypeVar("_Choice")
_NAMES = tuple(COLOURS)  # of accounts, and of ledgers
_ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth")  # numbers are amounts
_PAGE_COUNTS = {6: 0.4, 7: 0.3, 8: 0.3}
_FIRST_PAGE_COUNTS = {2: 0.25, 3: 0.25, 4: 0.25, 5: 0.25}
_FIRST_FRAC = 0.5  # of the supervised questions: which page stands where is learned sooner on few pages
_MIN_OF_A_HOP = 3  # pages, of six or more: fewer leave nothing to choose from
_NEAR_FRAC = 0.6  # of the other entries: in the ledger of another account, or of the colour that the question names
_DOT_FRAC = 0.7  # of the page's side: large enough for a colour, with paper all around
_FINE = 8  # dots are drawn this many times larger and scaled down, so that small ones are round


@dataclass(frozen=True, kw_only=True, slots=True)
class Account:
    """A page that tells the ledger of an account.

    Attributes:
        name: the colour of the dot, which names the account; a key of ``COLOURS``.
        ledger: the colour of the frame, which names the ledger; another key of ``COLOURS``.
    """

    name: str
    ledger: str

    @property
    def transcript(self) -> str:
        """What stands on the page, in words."""
        return f"ledger account {self.name} {self.ledger}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """A page that tells the amount in a ledger.

    Attributes:
        ledger: the colour of the frame, which names the ledger; a key of ``COLOURS``.
        scan: the index of the handwritten amount in scikit-learn's data.
        amount: the amount that the scan shows, 0 to 9.
    """

    ledger: str
    scan: int
    amount: int

    @property
    def transcript(self) -> str:
        """What stands on the page, in words."""
        return f"ledger entry {self.ledger} {NUMBERS[self.amount]}"


@dataclass(frozen=True, kw_only=True, slots=True)
class LedgerQuestion:
    """A question over two hops with its gold.

    Attributes:
        question: the question for the prompt.
        asked: the name of the account whose amount is asked for.
        pages: two to eight pages, in order; no two accounts share a name or a ledger, no two entries a ledger.
        missing: which of ``HOPS`` has no page; empty where the question can be answered.
        answer: the gold answer; ``REFUSAL`` where a hop is missing.
        positive_images: the 0-based indexes of the pages on the way: account and entry, the account alone where its
            entry is missing, none where the account is.
        response: the tagged gold response.
    """

    question: str
    asked: str
    pages: tuple[Account | Entry, ...]
    missing: str
    answer: str
    positive_images: tuple[int, ...]
    response: str

    @property
    def is_sufficient(self) -> bool:
        """Whether the pages hold the answer."""
        return not self.missing


def page_number(page: Account | Entry) -> int:
    """The number of a page, under which it is stored; other pages have others."""
    other = _NAMES.index(page.name) if isinstance(page, Account) else len(_NAMES) + page.scan
    return other * len(_NAMES) + _NAMES.index(page.ledger)


def draw_ledger_page(page: Account | Entry, image_pixels: int) -> Image.Image:
    """Draw a page of a ledger.

    Args:
        page: the page to draw.
        image_pixels: the side of the square image, in pixels.

    Returns:
        The RGB image: frame and tinted paper in the colour of the ledger; on it the dot, or the scan in dark ink.
    """
    if isinstance(page, Entry):
        return draw_image(Card(colour=page.ledger, scan=page.scan, digit=page.amount), image_pixels)
    image = draw_paper(page.ledger, image_pixels)
    side = round(_DOT_FRAC * image_pixels)
    mask = Image.new("L", (_FINE * side, _FINE * side))
    ImageDraw.Draw(mask).ellipse((0, 0, _FINE * side - 1, _FINE * side - 1), fill=255)
    margin = (image_pixels - side) // 2
    dot = Image.new("RGB", (side, side), COLOURS[page.name])
    image.paste(dot, (margin, margin), mask=mask.resize((side, side), Image.Resampling.BOX))
    return image


def make_ledger_questions(config: QuickstartConfig, seed: int) -> tuple[tuple[LedgerQuestion, ...], ...]:
    """All questions over ledgers: supervised, reinforcement, test; no scan is in two of the three.

    Args:
        config: how many questions there are of each, how many scans each sees, and the share without an answer.
        seed: the seed that everything is drawn from.

    Returns:
        Three tuples of questions. The share of unanswerable ones is exact up to rounding; they lack an account and an
        entry by turns.
    """
    splits = split_scans((config.sft_scans_per_digit, config.rl_scans_per_digit, config.test_scans_per_digit), seed)
    sizes = (config.num_sft_samples, config.num_rl_samples, config.num_test_samples)
    drawn = []
    for split, (size, scans) in enumerate(zip(sizes, splits, strict=True)):
        rng = np.random.default_rng((seed, 50 + split))
        questions = []
        for index in range(size):
            missing = ""
            if not has_answer(index, config.unanswerable_frac):
                missing = HOPS[int((index + 1) * config.unanswerable_frac) % 2]  # by turns
            counts = _FIRST_PAGE_COUNTS if split == 0 and rng.random() < _FIRST_FRAC else _PAGE_COUNTS
            num_images = int(rng.choice(list(counts), p=list(counts.values())))
            questions.append(make_ledger_question(missing, num_images, scans=scans, rng=rng))
        drawn.append(tuple(questions[index] for index in rng.permutation(size)))
    return tuple(drawn)


def make_ledger_question(
    missing: str, num_images: int, *, scans: tuple[tuple[int, ...], ...], rng: np.random.Generator
) -> LedgerQuestion:
    """Draw accounts and entries, and ask for the amount of an account.

    Args:
        missing: which of ``HOPS`` shall have no page; empty for a question that can be answered.
        num_images: the number of pages, at least 2.
        scans: the split's scans of each digit.
        rng: the generator that all choices are drawn from.

    Returns:
        The question with its gold: accounts and entries in random order, at least three of each among six pages.
    """
    fewest = min(_MIN_OF_A_HOP, num_images // 2)
    num_accounts = int(rng.integers(fewest, num_images - fewest + 1))
    accounts = _draw_accounts(num_accounts + 1, rng)
    asked = accounts.pop()
    linked = [account.ledger for account in accounts[:-1]]  # the accounts that are shown beside the one asked for
    if missing != "account":
        accounts[-1] = asked
    booked = [] if missing == "entry" else [asked.ledger]
    while len(booked) < num_images - num_accounts:
        is_near = rng.random() < _NEAR_FRAC
        ledger = _any_of((asked.name, *linked) if is_near else _NAMES, rng)
        if ledger not in (*booked, asked.ledger):
            booked.append(ledger)
    entries = []
    for ledger in booked:
        amount = int(rng.integers(len(scans)))
        entries.append(Entry(ledger=ledger, amount=amount, scan=_any_of(scans[amount], rng)))
    pages = (*accounts, *entries)
    return _question(asked, tuple(pages[index] for index in rng.permutation(num_images)), missing)


def _draw_accounts(count: int, rng: np.random.Generator) -> list[Account]:
    """Accounts of different names and ledgers; none has its own colour as a ledger, which would be one hop."""
    while True:
        names, ledgers = rng.permutation(len(_NAMES))[:count], rng.permutation(len(_NAMES))[:count]
        if (names != ledgers).all():
            return [
                Account(name=_NAMES[name], ledger=_NAMES[ledger]) for name, ledger in zip(names, ledgers, strict=True)
            ]


def _question(asked: Account, pages: tuple[Account | Entry, ...], missing: str) -> LedgerQuestion:
    accounts = [index for index, page in enumerate(pages) if isinstance(page, Account)]
    entries = [index for index, page in enumerate(pages) if isinstance(page, Entry)]
    amounts = {page.ledger: page.amount for page in pages if isinstance(page, Entry)}
    told = [f"{page.transcript} {ordinal}" for page, ordinal in zip(pages, _ORDINALS, strict=False)]
    # What is looked up repeats what was told of the page word for word, and what is asked for stands right behind what
    # it is asked by: a small model finds it by copying.
    first, second = f"ledger account {asked.name} is missing", "without a ledger none counts"
    looked_up = [first]
    positive_images: list[int] = []
    answer = ""
    if missing != "account":
        positive_images = [pages.index(asked)]
        first, second = told[positive_images[0]], f"ledger entry {asked.ledger} is missing"
        if not missing:
            answer = NUMBERS[amounts[asked.ledger]]
            index = next(index for index in entries if pages[index].ledger == asked.ledger)
            positive_images.append(index)
            second = told[index]
        looked_up = [first, second]
    reason = f"accounts are {_listed(accounts)}: {first}. entries are {_listed(entries)}: {second}"
    return LedgerQuestion(
        question=f"What amount has the account of {asked.name}?",
        asked=asked.name,
        pages=pages,
        missing=missing,
        answer=answer or REFUSAL,
        positive_images=tuple(sorted(positive_images)),
        # The evidence is told page by page, and whether an entry is evidence hangs on the account, which may come
        # later: where both stand is therefore the last thing observed.
        response=gold_response(
            [page.transcript for page in pages],
            positive_images,
            reason,
            answer,
            observed=f"{', '.join(told)}. {', '.join(looked_up)}",
        ),
    )


def _any_of(choices: tuple[_Choice, ...], rng: np.random.Generator) -> _Choice:
    return choices[int(rng.integers(len(choices)))]


def _listed(indexes: list[int]) -> str:
    return ", ".join(_ORDINALS[index] for index in indexes)
