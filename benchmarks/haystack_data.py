"""Write what the policy and the embedder of a world train on."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from haystack_worlds import World, scans_of, ticket_settings
from PIL import Image

from rsgrpo.data.files import TEST_FILE
from rsgrpo.data.synthetic.gold_responses import gold_response
from rsgrpo.data.synthetic.scans import NUMBERS
from rsgrpo.data.synthetic.ticket_sets import make_ticket_questions
from rsgrpo.data.synthetic.tickets import draw_ticket
from rsgrpo.io.atomic_files import new_folder
from rsgrpo.types import IMAGE_MARKER

RELEVANCE_PROMPT = "Does this page help to answer the question? Answer with the single word yes or no.\n\nQuestion: {}"
"""The filter's question about one page, as ``configs/prompt/relevance.jinja`` has it."""

BRIEF_PROMPT = "Answer in one word. {}"
"""How the policy is asked for the answer alone."""

_VIEWS_PER_ITEM = {"tickets": 6, "stamps": 64}
_SHARES = {
    "tickets": {"tagged": 0.4, "find": 0.35, "relevance": 0.25},
    "stamps": {"locate": 0.8, "relevance": 0.2},
}
_BRIEF_PAGE_COUNTS = {1: 0.1, 2: 0.15, 3: 0.4, 4: 0.15, 10: 0.2}
_PAGE_COUNTS = {1: 0.3, 2: 0.2, 3: 0.5}
_NEAR_FRAC = 0.5
_LOW_FRAC = 0.7  # of the pages of relevance questions: the others are at full resolution


class TrainingPages:
    """Pages of the training items, each with a handwritten digit.

    Args:
        world: the world to draw.
        num_views: how often each item is drawn.
        seed: the seed that everything is drawn from.
        split: whose hands write the digits: ``sft``, ``rl`` or ``test``.
    """

    def __init__(self, world: World, num_views: int, seed: int, split: str = "sft") -> None:
        rng = np.random.default_rng((seed, 1))
        scans = scans_of(split, seed)
        self.world = world
        self.pages: dict[str, Image.Image] = {}
        self.views: dict[int, list[tuple[str, int]]] = {}
        for item in world.train_items:
            views = []
            for view in range(num_views):
                digit = int(rng.integers(10))
                path = f"imgs/{item}-{view}.png"
                self.pages[path] = world.draw(item, int(rng.choice(scans[digit])), rng)
                views.append((path, digit))
            self.views[item] = views

    def view(self, item: int, rng: np.random.Generator) -> tuple[str, int]:
        """Draw one of an item's pages: its path and its digit."""
        views = self.views[item]
        return views[int(rng.integers(len(views)))]

    def low(self, path: str) -> str:
        """Make the low-resolution copy of a page; returns its path."""
        low = path.replace(".png", "-low.png")
        if low not in self.pages:
            self.pages[low] = at_low_resolution(self.pages[path], self.world.low_pixels)
        return low


def at_low_resolution(page: Image.Image, pixels: int) -> Image.Image:
    """Scale a page down as the readers of images do."""
    return page.resize((pixels, pixels), Image.Resampling.BICUBIC)


def find_question(pages: TrainingPages, rng: np.random.Generator) -> tuple[str, str, list[str]]:
    """Draw a question over up to ten pages that is answered in one word: prompt text, response, paths."""
    item, views = _drawn_views(pages, _BRIEF_PAGE_COUNTS, rng)
    return (
        BRIEF_PROMPT.format(pages.world.question(item)),
        NUMBERS[views[item][1]],
        [path for path, _ in views.values()],
    )


def locate_question(pages: TrainingPages, rng: np.random.Generator) -> tuple[str, str, list[str]]:
    """Draw a question over up to three pages with a tagged response, which says of every page what stands on it."""
    item, views = _drawn_views(pages, _PAGE_COUNTS, rng)
    answer, name = NUMBERS[views[item][1]], pages.world.transcript(item)
    response = gold_response(
        [f"{pages.world.transcript(other)} {NUMBERS[digit]}" for other, (_, digit) in views.items()],
        [list(views).index(item)],
        f"{name} is {answer}",
        answer,
    )
    return pages.world.question(item), response, [path for path, _ in views.values()]


def _drawn_views(
    pages: TrainingPages, page_counts: Mapping[int, float], rng: np.random.Generator
) -> tuple[int, dict[int, tuple[str, int]]]:
    """Draw an item to ask for, and the views of all items that are shown, in their order."""
    world, items = pages.world, pages.world.train_items
    item = items[int(rng.integers(len(items)))]
    num_pages = min(len(items), int(rng.choice(list(page_counts), p=list(page_counts.values()))))
    shown = {item}
    while len(shown) < num_pages:
        is_near = rng.random() < _NEAR_FRAC
        shown.add(world.near(item, rng) if is_near else items[int(rng.integers(len(items)))])
    order = [int(other) for other in rng.permutation(sorted(shown))]
    return item, {other: pages.view(other, rng) for other in order}


def relevance_question(pages: TrainingPages, rng: np.random.Generator) -> tuple[str, str, list[str]]:
    """Draw a yes-or-no question about one page, half of them yes."""
    world, items = pages.world, pages.world.train_items
    item = items[int(rng.integers(len(items)))]
    shown = item
    if rng.random() < 0.5:
        shown = world.near(item, rng) if rng.random() < _NEAR_FRAC else items[int(rng.integers(len(items)))]
    path = pages.view(shown, rng)[0]
    if rng.random() < _LOW_FRAC:
        path = pages.low(path)
    return RELEVANCE_PROMPT.format(world.question(item)), "yes" if shown == item else "no", [path]


_MAKERS = {
    "find": find_question,
    "locate": locate_question,
    "relevance": relevance_question,
}


def policy_rows(world: World, pages: TrainingPages, num_samples: int, seed: int) -> list[dict[str, object]]:
    """Draw what the policy trains on: rows with ``qid``, ``prompt``, ``answer``, ``gold_response`` and ``image``.

    Tickets have three kinds: the quickstart's own questions with tagged responses, such in brief, and whether a page is
    relevant. Stamps have tagged responses, which caption every page, and whether a page is relevant.

    Args:
        world: the world to ask about.
        pages: its training pages, to which those of further questions are added.
        num_samples: how many rows there are.
        seed: the seed that everything is drawn from.
    """
    rng = np.random.default_rng((seed, 2))
    shares = _SHARES[world.name]
    tagged = iter(make_ticket_questions(ticket_settings(), seed)[0] if "tagged" in shares else ())
    rows: list[dict[str, object]] = []
    for index in range(num_samples):
        kind = str(rng.choice(list(shares), p=list(shares.values())))
        if kind == "tagged":
            asked = next(tagged)
            question, response, paths = asked.question, asked.response, []
            for ticket in asked.tickets:
                paths.append(f"imgs/tagged-{ticket.page_id}.png")
                if paths[-1] not in pages.pages:
                    pages.pages[paths[-1]] = draw_ticket(ticket, world.page_pixels)
        else:
            question, response, paths = _MAKERS[kind](pages, rng)
        images = IMAGE_MARKER * len(paths)
        prompt = images + question if kind == "relevance" else question + images  # as the filter and the answerer ask
        rows.append(
            {
                "qid": f"{kind}-{index}",
                "prompt": prompt,
                "answer": [response],
                "gold_response": response,
                "image": paths,
            }
        )
    return rows


def write_training_data(world: World, folder: Path, num_samples: int, seed: int) -> None:
    """Write ``train.jsonl`` for the policy and ``pairs.jsonl`` for the embedder with their pages.

    A complete folder is left as it is.

    Args:
        world: the world to ask about.
        folder: the folder to write.
        num_samples: how many questions of all kinds the policy gets.
        seed: the seed that everything is drawn from.
    """
    if folder.exists():
        return
    pages = TrainingPages(world, _VIEWS_PER_ITEM[world.name], seed)
    pairs = [
        {"query": world.question(item), "image": path, "source": world.name}
        for item, views in pages.views.items()
        for path, _ in views
    ]
    rows = policy_rows(world, pages, num_samples, seed)
    with new_folder(folder) as partial:
        (partial / "imgs").mkdir()
        for path, page in pages.pages.items():
            page.save(partial / path)
        _write_lines(partial / "train.jsonl", rows)
        _write_lines(partial / "pairs.jsonl", pairs)


def write_held_out(world: World, folder: Path, num_samples: int, seed: int) -> None:
    """Write questions over training items in hands that neither training nor the test has, to choose settings by.

    A complete folder is left as it is.

    Args:
        world: the world to ask about.
        folder: the folder to write, in EVisRAG-Test's layout.
        num_samples: how many questions there are.
        seed: the seed that everything is drawn from.
    """
    if folder.exists():
        return
    pages = TrainingPages(world, 1, seed, split="rl")
    rng = np.random.default_rng((seed, 5))
    rows = []
    for index in range(num_samples):
        question, response, paths = locate_question(pages, rng)
        rows.append(
            {
                "qid": f"held-out-{index}",
                "prompt": question + IMAGE_MARKER * len(paths),
                "answer": [response.split("<answer> ")[1].removesuffix("</answer>")],
                "image": paths,
            }
        )
    with new_folder(folder) as partial:
        (partial / "imgs").mkdir()
        for path, page in pages.pages.items():
            page.save(partial / path)
        _write_lines(partial / TEST_FILE, rows)


def tokenizer_corpus(data: Path) -> list[str]:
    """Collect the texts that the start model's tokenizer learns from; answers of one word count as often as they come.

    Args:
        data: the folder that :func:`write_training_data` wrote.
    """
    lines = (data / "train.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    return [text for row in rows for text in (row["prompt"].replace(IMAGE_MARKER, ""), row["gold_response"])]


def _write_lines(file: Path, rows: Sequence[Mapping[str, object]]) -> None:
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
