"""The ledger: questions whose answer takes two pages, and responses long enough for their length to matter.

An account page shows a coloured mark, such as a red star, and the handwritten number of its ledger; an entry page shows
the number of a ledger and an amount, both handwritten. A question names the mark and asks for the amount: the account
tells the ledger, the entry of that ledger the amount. Among the six to eight pages are accounts whose marks resemble
the one asked for, and entries of their ledgers, so that who misreads one page is led to another amount.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from rsgrpo.config import QuickstartConfig
from rsgrpo.data.synthetic.cards import COLOURS
from rsgrpo.data.synthetic.gold_responses import gold_response
from rsgrpo.data.synthetic.scans import INK, NUMBERS, scan_mask, split_scans
from rsgrpo.data.synthetic.tickets import FORMS, MARK_FRAC, PAPER, Mark, draw_mark
from rsgrpo.text.normalise import REFUSAL

HOPS = ("account", "entry")
"""The two pages that an answer takes, in the order in which they are looked up."""

_ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth")  # pages; numbers are ledgers
_MARKS = tuple(Mark(colour=colour, form=form) for colour in COLOURS for form in FORMS)
_PAGE_COUNTS = {6: 0.4, 7: 0.3, 8: 0.3}
_MIN_OF_A_HOP = 3  # pages: fewer leave nothing to choose from
_NEAR_FRAC = (
    0.5  # of the other accounts: share colour or form with the one asked for; of the other entries: belong to one
)


@dataclass(frozen=True, kw_only=True, slots=True)
class AccountPage:
    """A page that tells the ledger of a mark.

    Attributes:
        mark: the mark that names the account.
        scan: the index of the handwritten number of the ledger in scikit-learn's data.
        ledger: the number of the ledger that the scan shows, 0 to 9.
    """

    mark: Mark
    scan: int
    ledger: int

    @property
    def page_id(self) -> str:
        """The id of the page; it says neither the mark nor the ledger."""
        return f"{_MARKS.index(self.mark)}-{self.scan}"

    @property
    def transcript(self) -> str:
        """What stands on the page, in words."""
        return f"account {self.mark.name} ledger {NUMBERS[self.ledger]}"


@dataclass(frozen=True, kw_only=True, slots=True)
class EntryPage:
    """A page that tells the amount in a ledger.

    Attributes:
        scans: the indexes of the handwritten ledger and amount in scikit-learn's data.
        ledger: the number of the ledger, 0 to 9.
        amount: the amount, 0 to 9.
    """

    scans: tuple[int, int]
    ledger: int
    amount: int

    @property
    def page_id(self) -> str:
        """The id of the page; it says neither the ledger nor the amount."""
        return f"{len(_MARKS) + self.scans[0]}-{self.scans[1]}"

    @property
    def transcript(self) -> str:
        """What stands on the page, in words."""
        return f"entry ledger {NUMBERS[self.ledger]} amount {NUMBERS[self.amount]}"


@dataclass(frozen=True, kw_only=True, slots=True)
class LedgerQuestion:
    """A question over two hops with its gold.

    Attributes:
        question: the question for the prompt.
        asked: the mark whose amount is asked for.
        pages: six to eight pages, in order; no two accounts share a mark or a ledger, no two entries a ledger.
        missing: which of ``HOPS`` has no page; empty where the question can be answered.
        answer: the gold answer; ``REFUSAL`` where a hop is missing.
        positive_images: the 0-based indexes of the pages on the way: account and entry, the account alone where its
            entry is missing, none where the account is.
        response: the tagged gold response.
    """

    question: str
    asked: Mark
    pages: tuple[AccountPage | EntryPage, ...]
    missing: str
    answer: str
    positive_images: tuple[int, ...]
    response: str

    @property
    def is_sufficient(self) -> bool:
        """Whether the pages hold the answer."""
        return not self.missing


def draw_ledger_page(page: AccountPage | EntryPage, image_pixels: int) -> Image.Image:
    """Draw a page of a ledger.

    Args:
        page: the page to draw.
        image_pixels: the height of the image in pixels; it is twice as wide.

    Returns:
        The RGB image of two squares: the mark of an account or the ledger of an entry, and the number looked up by it.
    """
    image = Image.new("RGB", (2 * image_pixels, image_pixels), PAPER)
    scans = (page.scan,) if isinstance(page, AccountPage) else page.scans
    if isinstance(page, AccountPage):
        side = round(MARK_FRAC * image_pixels)
        margin = (image_pixels - side) // 2
        image.paste(draw_mark(page.mark, side), (margin, margin))
    ink = Image.new("RGB", (image_pixels, image_pixels), INK)
    for column, scan in enumerate(scans, start=2 - len(scans)):
        image.paste(ink, (column * image_pixels, 0), mask=scan_mask(scan, image_pixels))
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
            # Every time the running count of unanswerable ones passes a whole number, the question is one.
            count = int((index + 1) * config.unanswerable_frac)
            is_sufficient = count == int(index * config.unanswerable_frac)
            questions.append(make_ledger_question("" if is_sufficient else HOPS[count % 2], scans=scans, rng=rng))
        drawn.append(tuple(questions[index] for index in rng.permutation(size)))
    return tuple(drawn)


def make_ledger_question(
    missing: str, *, scans: tuple[tuple[int, ...], ...], rng: np.random.Generator
) -> LedgerQuestion:
    """Draw accounts and entries, and ask for the amount of a mark.

    Args:
        missing: which of ``HOPS`` shall have no page; empty for a question that can be answered.
        scans: the split's scans of each digit.
        rng: the generator that all choices are drawn from.

    Returns:
        The question with its gold: at least three accounts and three entries, in random order.
    """
    num_images = int(rng.choice(list(_PAGE_COUNTS), p=list(_PAGE_COUNTS.values())))
    num_accounts = int(rng.integers(_MIN_OF_A_HOP, num_images - _MIN_OF_A_HOP + 1))
    asked, *others = _draw_marks(num_accounts + 1, rng)
    ledgers = [int(ledger) for ledger in rng.permutation(len(scans))]
    linked = ledgers[1 : len(others) + 1]  # the ledgers of other accounts; the first one is the asked account's
    booked = [] if missing == "entry" else ledgers[:1]
    while len(booked) < num_images - num_accounts:
        ledger = int(rng.choice(linked if rng.random() < _NEAR_FRAC else ledgers[1:]))
        if ledger not in booked:
            booked.append(ledger)
    owners = list(zip(others, linked, strict=True))
    if missing != "account":
        owners[-1] = (asked, ledgers[0])
    pages: list[AccountPage | EntryPage] = [
        AccountPage(mark=mark, ledger=ledger, scan=int(rng.choice(scans[ledger]))) for mark, ledger in owners
    ]
    for ledger in booked:
        amount = int(rng.integers(len(scans)))
        both = (int(rng.choice(scans[ledger])), int(rng.choice(scans[amount])))
        pages.append(EntryPage(ledger=ledger, amount=amount, scans=both))
    return _question(asked, ledgers[0], tuple(pages[index] for index in rng.permutation(num_images)), missing)


def _draw_marks(count: int, rng: np.random.Generator) -> list[Mark]:
    """Different marks; about half of them share colour or form with the first."""
    marks = [_MARKS[int(rng.integers(len(_MARKS)))]]
    near = [mark for mark in _MARKS if (mark.colour == marks[0].colour) != (mark.form == marks[0].form)]
    while len(marks) < count:
        pool = near if rng.random() < _NEAR_FRAC else _MARKS
        mark = pool[int(rng.integers(len(pool)))]
        if mark not in marks:
            marks.append(mark)
    return marks


def _question(asked: Mark, ledger: int, pages: tuple[AccountPage | EntryPage, ...], missing: str) -> LedgerQuestion:
    accounts = [index for index, page in enumerate(pages) if isinstance(page, AccountPage)]
    entries = [index for index, page in enumerate(pages) if isinstance(page, EntryPage)]
    account = [index for index, page in enumerate(pages) if isinstance(page, AccountPage) and page.mark == asked]
    entry = [index for index, page in enumerate(pages) if isinstance(page, EntryPage) and page.ledger == ledger]
    if missing == "account":
        link, entry = "no account", []
        first, second = f"none is {asked.name}", "none counts without a ledger"
    else:
        link = f"ledger {NUMBERS[ledger]}"
        first = f"{pages[account[0]].transcript} is {_ORDINALS[account[0]]}"
        second = f"{pages[entry[0]].transcript} is {_ORDINALS[entry[0]]}" if entry else f"none is {link}"
    found = [page.amount for index, page in enumerate(pages) if index in entry and isinstance(page, EntryPage)]
    answer = NUMBERS[found[0]] if found else ""
    seen = ", ".join(f"{ordinal} page is {page.transcript}" for ordinal, page in zip(_ORDINALS, pages, strict=False))
    reason = f"accounts are {_listed(accounts)}: {first}. entries are {_listed(entries)}: {second}"
    positive_images = tuple(sorted(account + entry))
    return LedgerQuestion(
        question=f"What amount is in the ledger of the {asked.name}?",
        asked=asked,
        pages=pages,
        missing=missing,
        answer=answer or REFUSAL,
        positive_images=positive_images,
        # The evidence is told page by page, and whether an entry is evidence hangs on the account, which may come
        # later: what the account says is therefore the last thing observed.
        response=gold_response(
            [page.transcript for page in pages],
            positive_images,
            reason,
            answer,
            observed=f"{seen}. {asked.name} has {link}",
        ),
    )


def _listed(indexes: list[int]) -> str:
    return ", ".join(_ORDINALS[index] for index in indexes)
