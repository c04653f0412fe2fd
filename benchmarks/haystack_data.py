"""Write what the policy and the embedder of a world train on."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from haystack_questions import answering_prompt
from haystack_worlds import World, scans_of
from PIL import Image

from rsgrpo.data.synthetic.gold_responses import gold_response
from rsgrpo.data.synthetic.scans import NUMBERS
from rsgrpo.io.atomic_files import new_folder
from rsgrpo.types import IMAGE_MARKER

RELEVANCE_PROMPT = "Does this page help to answer the question? Answer with the single word yes or no.\n\nQuestion: {}"
"""The filter's question about one page, as ``configs/prompt/relevance.jinja`` has it."""

_TRANSCRIBE = "What is on this page?"
_READ_DIGIT = "What number is on this page?"
_VIEWS_PER_ITEM = {"tickets": 6, "stamps": 48}


@dataclass(frozen=True, kw_only=True, slots=True)
class Lesson:
    """What one round of the policy's supervised training asks.

    Attributes:
        num_steps: optimizer steps.
        step_questions: questions of a step.
        num_questions: questions that are drawn; they come again when a round needs more.
        shares: the share of each kind of question: ``locate``, ``relevance``, ``digit``, ``transcribe``, or
            this at low resolution: ``transcribe_low``.
        page_counts: the share of each number of pages.
        near_frac: the share of other pages that are easily taken for the one that is asked for.
        nearest_frac: of these the share that a search would find next to it.
        low_frac: the share of relevance questions at low resolution.
    """

    num_steps: int
    step_questions: int = 32
    num_questions: int = 12_000
    shares: Mapping[str, float]
    page_counts: Mapping[int, float]
    near_frac: float = 0.5
    nearest_frac: float = 0.0
    low_frac: float = 0.7


_READING = Lesson(
    num_steps=400,
    step_questions=96,
    num_questions=20_000,
    shares={"transcribe": 0.7, "locate": 0.1, "relevance": 0.2},
    page_counts={1: 0.3, 2: 0.3, 3: 0.4},
)

LESSONS: Mapping[str, tuple[Lesson, ...]] = {
    "tickets": (
        _READING,
        Lesson(
            num_steps=700,
            step_questions=48,
            num_questions=20_000,
            shares={"locate": 0.9, "relevance": 0.1},
            page_counts={1: 0.05, 2: 0.3, 3: 0.4, 4: 0.1, 6: 0.05, 8: 0.05, 10: 0.05},
        ),
        Lesson(
            num_steps=600,
            step_questions=48,
            num_questions=20_000,
            shares={"locate": 1.0},
            page_counts={1: 0.05, 2: 0.35, 3: 0.3, 4: 0.05, 6: 0.05, 8: 0.05, 10: 0.15},
            near_frac=0.7,
        ),
        Lesson(
            num_steps=700,
            step_questions=48,
            num_questions=20_000,
            shares={"locate": 1.0},
            page_counts={1: 0.05, 2: 0.5, 3: 0.3, 5: 0.05, 10: 0.1},
            near_frac=0.85,
            nearest_frac=0.7,
        ),
    ),
    "stamps": (
        _READING,
        Lesson(
            num_steps=100,
            step_questions=64,
            num_questions=6_400,
            shares={"digit": 0.4, "transcribe": 0.6},
            page_counts={1: 1.0},
        ),
        # Between these two the embedder is trained, from whose weights the policy goes on.
        Lesson(
            num_steps=120,
            step_questions=64,
            num_questions=7_680,
            shares={"digit": 0.2, "transcribe": 0.8},
            page_counts={1: 1.0},
        ),
        Lesson(
            num_steps=700,
            step_questions=48,
            num_questions=20_000,
            shares={"transcribe": 0.1, "locate": 0.9},
            page_counts={1: 0.05, 2: 0.3, 3: 0.5, 4: 0.1, 10: 0.05},
        ),
        Lesson(
            num_steps=900,
            step_questions=48,
            num_questions=20_000,
            shares={"transcribe": 0.05, "locate": 0.95},
            page_counts={1: 0.05, 2: 0.2, 3: 0.5, 4: 0.05, 10: 0.2},
            near_frac=0.3,
        ),
    ),
}
"""The rounds of each world's policy."""


class TrainingPages:
    """Pages of the training items, each with a handwritten digit.

    Args:
        world: the world to draw.
        num_views: how often each item is drawn.
        seed: the seed that everything is drawn from.
    """

    def __init__(self, world: World, num_views: int, seed: int) -> None:
        rng = np.random.default_rng((seed, 1))
        scans = scans_of("sft", seed)
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


def locate_question(pages: TrainingPages, lesson: Lesson, rng: np.random.Generator) -> tuple[str, str, list[str]]:
    """Draw a question with a tagged response, which reads all pages and then finds the one: prompt, response, paths."""
    item, views = _drawn_views(pages, lesson, rng)
    answer, name = NUMBERS[views[item][1]], pages.world.transcript(item)
    transcripts = [f"{pages.world.transcript(other)} {NUMBERS[digit]}" for other, (_, digit) in views.items()]
    response = gold_response(transcripts, [list(views).index(item)], f"{name} is {answer}", answer)
    return pages.world.question(item), response, [path for path, _ in views.values()]


def _drawn_views(
    pages: TrainingPages, lesson: Lesson, rng: np.random.Generator
) -> tuple[int, dict[int, tuple[str, int]]]:
    """Draw an item to ask for, and the views of all items that are shown, in their order."""
    world, items = pages.world, pages.world.train_items
    item = items[int(rng.integers(len(items)))]
    num_pages = min(len(items), int(rng.choice(list(lesson.page_counts), p=list(lesson.page_counts.values()))))
    shown = {item}
    while len(shown) < num_pages:
        if rng.random() >= lesson.near_frac:
            shown.add(items[int(rng.integers(len(items)))])
        elif lesson.nearest_frac and rng.random() < lesson.nearest_frac:
            shown.add(world.nearest(item, rng))
        else:
            shown.add(world.near(item, rng))
    order = [int(other) for other in rng.permutation(sorted(shown))]
    return item, {other: pages.view(other, rng) for other in order}


def relevance_question(pages: TrainingPages, lesson: Lesson, rng: np.random.Generator) -> tuple[str, str, list[str]]:
    """Draw a yes-or-no question about one page, half of them yes."""
    world, items = pages.world, pages.world.train_items
    item = items[int(rng.integers(len(items)))]
    shown = item
    if rng.random() < 0.5:
        shown = world.near(item, rng) if rng.random() < lesson.near_frac else items[int(rng.integers(len(items)))]
    path = pages.view(shown, rng)[0]
    if rng.random() < lesson.low_frac:
        path = pages.low(path)
    return RELEVANCE_PROMPT.format(world.question(item)), "yes" if shown == item else "no", [path]


def transcript_question(pages: TrainingPages, lesson: Lesson, rng: np.random.Generator) -> tuple[str, str, list[str]]:
    """Draw a page to be put into words, which teaches to read: nothing is looked for, every token is on the page."""
    items = pages.world.train_items
    item = items[int(rng.integers(len(items)))]
    path, digit = pages.view(item, rng)
    return _TRANSCRIBE, f"{pages.world.transcript(item)} {NUMBERS[digit]}", [path]


def digit_question(pages: TrainingPages, lesson: Lesson, rng: np.random.Generator) -> tuple[str, str, list[str]]:
    """Draw a page whose digit alone is asked for: behind a caption of many words it is learnt late."""
    items = pages.world.train_items
    path, digit = pages.view(items[int(rng.integers(len(items)))], rng)
    return _READ_DIGIT, f" {NUMBERS[digit]}", [path]  # a blank: then it is the same token as in a transcript


def low_transcript_question(
    pages: TrainingPages, lesson: Lesson, rng: np.random.Generator
) -> tuple[str, str, list[str]]:
    """Draw a page at low resolution to be put into words, which is what its yes or no has to rest on."""
    question, response, paths = transcript_question(pages, lesson, rng)
    return question, response, [pages.low(path) for path in paths]


_MAKERS = {
    "locate": locate_question,
    "relevance": relevance_question,
    "digit": digit_question,
    "transcribe": transcript_question,
    "transcribe_low": low_transcript_question,
}


def policy_rows(pages: TrainingPages, lesson: Lesson, seed: int) -> list[dict[str, object]]:
    """Draw what the policy trains on: rows with ``qid``, ``prompt``, ``answer``, ``gold_response`` and ``image``.

    Args:
        pages: the training pages, to which those at low resolution are added.
        lesson: what is asked.
        seed: the seed that everything is drawn from.
    """
    rng = np.random.default_rng((seed, 2))
    rows: list[dict[str, object]] = []
    for index in range(lesson.num_questions):
        kind = str(rng.choice(list(lesson.shares), p=list(lesson.shares.values())))
        question, response, paths = _MAKERS[kind](pages, lesson, rng)
        is_relevance = kind == "relevance"  # then it is asked as the filter asks
        prompt = IMAGE_MARKER + question if is_relevance else answering_prompt(question, len(paths))
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


def write_training_data(world: World, folder: Path, lesson: Lesson, seed: int) -> None:
    """Write ``train.jsonl`` for a round of the policy and ``pairs.jsonl`` for the embedder with their pages.

    A complete folder is left as it is.

    Args:
        world: the world to ask about.
        folder: the folder to write.
        lesson: what the policy is asked.
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
    rows = policy_rows(pages, lesson, seed)
    with new_folder(folder) as partial:
        (partial / "imgs").mkdir()
        for path, page in pages.pages.items():
            page.save(partial / path)
        _write_lines(partial / "train.jsonl", rows)
        _write_lines(partial / "pairs.jsonl", pairs)


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
