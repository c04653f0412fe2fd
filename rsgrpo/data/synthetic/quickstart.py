"""Write the quickstart's three data sets in EVisRAG's on-disk format."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from rsgrpo.config import QuickstartConfig
from rsgrpo.data.evisrag_files import write_evisrag
from rsgrpo.data.files import TEST_FILE
from rsgrpo.data.synthetic.cards import COLOURS, TURNS, Card, CardQuestion, draw_image, make_question
from rsgrpo.data.synthetic.gold_responses import has_answer
from rsgrpo.data.synthetic.ledger import (
    Account,
    Entry,
    LedgerQuestion,
    draw_ledger_page,
    make_ledger_questions,
    page_number,
)
from rsgrpo.data.synthetic.scans import split_scans
from rsgrpo.data.synthetic.ticket_sets import make_ticket_questions
from rsgrpo.data.synthetic.tickets import Ticket, TicketQuestion, draw_ticket
from rsgrpo.io.atomic_files import new_folder
from rsgrpo.types import ImageRef, Sample

_SFT, _RL, _TEST = range(3)
_NAMES = ("sft", "rl", "test")

_Page = Card | Ticket | Account | Entry
_Question = CardQuestion | TicketQuestion | LedgerQuestion


@dataclass(frozen=True, kw_only=True, slots=True)
class QuickstartPaths:
    """Where the data sets lie, ready for ``data.sft_path``, ``data.rl_path`` and ``data.test_path``.

    Attributes:
        sft_path: a JSONL file with tagged gold responses; its pages lie in ``images.parquet``.
        rl_path: a JSONL file of the same form, on other handwriting.
        test_path: a folder of the EVisRAG-Test layout, whose pages are files; it has handwriting of its own.
    """

    sft_path: str
    rl_path: str
    test_path: str


def make_questions(config: QuickstartConfig, seed: int) -> tuple[tuple[CardQuestion, ...], ...]:
    """All questions over cards: supervised, reinforcement, test; no scan is in two of the three.

    Args:
        config: how many questions of each kind, and the share without an answer.
        seed: the seed that everything is drawn from.

    Returns:
        Three tuples of questions: supervised, reinforcement, test. The kinds take turns (``TURNS``); in each kind the
        share of unanswerable questions is exact up to rounding.

    Example:
        With 300 test questions and ``unanswerable_frac=0.2`` there are 120 to read, 120 to add and 60 to
        find, a fifth of each unanswerable.
    """
    splits = split_scans((config.sft_scans_per_digit, config.rl_scans_per_digit, config.test_scans_per_digit), seed)
    sizes = (config.num_sft_samples, config.num_rl_samples, config.num_test_samples)
    return tuple(
        _draw_questions(size, config.unanswerable_frac, scans, np.random.default_rng((seed, 1 + split)))
        for split, (size, scans) in enumerate(zip(sizes, splits, strict=True))
    )


def _draw_questions(
    size: int, unanswerable_frac: float, scans: tuple[tuple[int, ...], ...], rng: np.random.Generator
) -> tuple[CardQuestion, ...]:
    questions = []
    for index in range(size):
        is_sufficient = has_answer(index // len(TURNS), unanswerable_frac)
        questions.append(make_question(TURNS[index % len(TURNS)], is_sufficient=is_sufficient, scans=scans, rng=rng))
    return tuple(questions[index] for index in rng.permutation(size))


def build_quickstart_data(config: QuickstartConfig, folder: Path, seed: int) -> QuickstartPaths:
    """Write the data sets; the folder appears all at once, and a complete one is left as it is.

    Args:
        config: the sizes of the data sets and images.
        folder: the folder to write.
        seed: the seed that everything is drawn from.

    Returns:
        The paths of the three data sets.
    """
    paths = QuickstartPaths(
        sft_path=str(folder / "sft" / "train.jsonl"),
        rl_path=str(folder / "rl" / "train.jsonl"),
        test_path=str(folder / "test"),
    )
    if folder.exists():
        return paths
    sft, rl, test = _questions(config, seed)
    with new_folder(folder) as partial:
        _write(partial / "sft" / "train.jsonl", _SFT, sft, config.image_pixels)
        _write(partial / "rl" / "train.jsonl", _RL, rl, config.image_pixels)
        _write(partial / "test" / TEST_FILE, _TEST, test, config.image_pixels)
    return paths


def corpus(config: QuickstartConfig, seed: int) -> list[str]:
    """Texts that the small model's tokenizer learns from: supervised questions and responses."""
    return [text for question in _questions(config, seed)[_SFT] for text in (question.question, question.response)]


def _questions(config: QuickstartConfig, seed: int) -> tuple[tuple[_Question, ...], ...]:
    if config.task == "tickets":
        return make_ticket_questions(config, seed)
    return make_ledger_questions(config, seed) if config.task == "ledger" else make_questions(config, seed)


def _write(file: Path, split: int, questions: Sequence[_Question], image_pixels: int) -> None:
    images: dict[str, Image.Image] = {}
    samples = []
    for index, question in enumerate(questions):
        pages = _pages(question)
        images |= {path: _drawn(page, image_pixels) for path, page in pages.items() if path not in images}
        samples.append(_sample(f"{_NAMES[split]}-{index:05d}", question, tuple(pages)))
    write_evisrag(file, samples, images, layout="test" if split == _TEST else "train", as_table=split != _TEST)


def _pages(question: _Question) -> Mapping[str, _Page]:
    """The pages of a question by their paths, which tell neither names nor digits: people and prompts see them."""
    if isinstance(question, TicketQuestion):
        return {f"imgs/{ticket.page_id}.png": ticket for ticket in question.tickets}
    if isinstance(question, LedgerQuestion):
        return {f"imgs/{page_number(page)}.png": page for page in question.pages}
    return {f"imgs/{card.scan * len(COLOURS) + list(COLOURS).index(card.colour)}.png": card for card in question.cards}


def _drawn(page: _Page, image_pixels: int) -> Image.Image:
    if isinstance(page, Ticket):
        return draw_ticket(page, image_pixels)
    return draw_image(page, image_pixels) if isinstance(page, Card) else draw_ledger_page(page, image_pixels)


def _sample(sample_id: str, question: _Question, paths: Sequence[str]) -> Sample:
    return Sample(
        sample_id=sample_id,
        question=question.question,
        images=tuple(ImageRef(path=path) for path in paths),
        answers=(question.answer,),
        gold_response=question.response,
        is_sufficient=question.is_sufficient,
        positive_images=question.positive_images,
        metadata=_metadata(question),
    )


def _metadata(question: _Question) -> Mapping[str, str]:
    if isinstance(question, CardQuestion):
        return {"kind": question.kind}
    if isinstance(question, LedgerQuestion):
        return {"kind": f"no {question.missing}" if question.missing else "both"}
    return {"kind": "read", "asked_page": question.asked.page_id}
