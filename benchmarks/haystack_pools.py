"""Pools of pages with questions about them, and how many pages are worth showing, chosen on questions held out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from haystack_questions import Needle, haystacks, recalls_at
from haystack_worlds import World, scans_of

from rsgrpo.config.embedder import EmbedderConfig
from rsgrpo.data.synthetic.scans import NUMBERS
from rsgrpo.io.atomic_files import new_folder
from rsgrpo.retrieval.embedders.sentence_embedder import SentenceEmbedder
from rsgrpo.retrieval.filtering.cosine_scorer import CosineScorer
from rsgrpo.retrieval.filtering.page_filter import FilterStage, PagesOfQuestion, filter_pages
from rsgrpo.types import ImageRef

MAX_KEPT = 5
"""Most pages that go into the prompt: of 100 these are 20 times fewer tokens, and the target is 18."""

_HELD_OUT_PAGES = 100
_HELD_OUT_QUESTIONS = 500
_ENOUGH_RECALL = 0.995  # what is lost to the filter is then half a point at most, and the target is one


@dataclass(frozen=True, kw_only=True, slots=True)
class Pool:
    """Pages of a world and questions about them.

    Attributes:
        pages: the pages, drawn by hands that no training has seen.
        needles: the questions, each about one of the pages.
    """

    pages: tuple[ImageRef, ...]
    needles: tuple[Needle, ...]


def pool_of_test(world: World, folder: Path, num_questions: int, seed: int) -> Pool:
    """Draw the test's pages, and choose the ones that are asked for; pages that lie there are not drawn again.

    Args:
        world: the world.
        folder: the folder that gets ``imgs``.
        num_questions: how many questions there are.
        seed: the seed of pages and needles.
    """
    return _pool(world, folder, world.test_items, "test", num_questions, np.random.default_rng((seed, 3)), seed)


def _pool(
    world: World,
    folder: Path,
    items: Sequence[int],
    split: str,
    num_questions: int,
    rng: np.random.Generator,
    seed: int,
) -> Pool:
    scans = scans_of(split, seed)
    digits, drawn = [], {}
    for number, item in enumerate(items):
        digits.append(int(rng.integers(10)))
        drawn[f"imgs/{number}.png"] = world.draw(item, int(rng.choice(scans[digits[-1]])), rng)
    if not folder.exists():
        with new_folder(folder) as partial:
            (partial / "imgs").mkdir()
            for path, page in drawn.items():
                page.save(partial / path)
    # Where there are fewer pages than questions, some are asked for again, in another haystack.
    num_rounds = math.ceil(num_questions / len(digits))
    chosen = np.concatenate([rng.permutation(len(digits)) for _ in range(num_rounds)])[:num_questions]
    return Pool(
        pages=tuple(ImageRef(path=path, file=str((folder / path).absolute())) for path in drawn),
        needles=tuple(
            Needle(question=world.question(items[page]), answer=NUMBERS[digits[page]], page=int(page))
            for page in map(int, chosen)
        ),
    )


def asked_over(pool: Pool, pages: Sequence[Sequence[int]]) -> list[PagesOfQuestion]:
    """Pair every question of a pool with the pages of its haystack."""
    return [
        PagesOfQuestion(question=needle.question, pages=tuple(pool.pages[page] for page in shown))
        for needle, shown in zip(pool.needles, pages, strict=True)
    ]


def cached_scorer(pool: Pool, embedder: Path) -> CosineScorer:
    """Embed all pages of the pool; the scorer then knows their vectors, and no question costs tokens of images."""
    model = SentenceEmbedder(EmbedderConfig(model=str(embedder), device="cpu"))
    vectors = model.embed_pages(pool.pages)
    return CosineScorer(model, known=dict(zip(pool.pages, vectors, strict=True)))


def choose_num_kept(world: World, folder: Path, embedder: Path, seed: int) -> int:
    """Choose how many pages go into the prompt: the fewest that hold the right one for 99.5 % of held-out questions.

    Held out are tickets with names of neither training nor the test, and new views of the stamps, which both have; the
    hands are of neither.

    Args:
        world: the world.
        folder: the folder that gets the pages; those that lie there are not drawn again.
        embedder: the folder of the embedder.
        seed: the seed of pages, needles and haystacks.

    Returns:
        A number from 1 to ``MAX_KEPT``, which stands where no number is enough.
    """
    rng = np.random.default_rng((seed, 6))
    pool = _pool(world, folder, world.held_out_items, "rl", _HELD_OUT_QUESTIONS, rng, seed)
    piles = [haystacks(needle.page, len(pool.pages), [_HELD_OUT_PAGES], rng) for needle in pool.needles]
    pages = [pile[_HELD_OUT_PAGES] for pile in piles]
    best = FilterStage(name="cosine", scorer=cached_scorer(pool, embedder), top_k=MAX_KEPT, threshold=0.0)
    ranks = []
    for needle, shown, filtered in zip(pool.needles, pages, filter_pages(asked_over(pool, pages), [best]), strict=True):
        gold = shown.index(needle.page)
        better = sum(filtered.last[other] > filtered.last[gold] for other in filtered.kept)
        ranks.append(better if gold in filtered.kept else MAX_KEPT)
    recalls = recalls_at(ranks, MAX_KEPT)
    print(
        f"{world.name}, held out: page among the best " + ", ".join(f"{k}: {r:.1%}" for k, r in enumerate(recalls, 1))
    )
    return next((number for number, recall in enumerate(recalls, 1) if recall >= _ENOUGH_RECALL), MAX_KEPT)
