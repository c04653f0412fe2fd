"""Ask the questions of a world's test over haystacks: with all pages, with those that the filter keeps, with gold."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from haystack_pools import Pool, asked_over, cached_scorer, choose_num_kept, pool_of_test
from haystack_questions import PairedDifference, answering_prompt, haystacks, oracle_pages, paired_difference
from haystack_training import PROMPT_SETTINGS, Trained, run
from haystack_worlds import World

from recipes.filtering.forward_judge import ForwardJudge
from recipes.filtering.stages import AskedModel, yes_no_scorer
from rsgrpo.config import FilterStageConfig, QueryFilterConfig
from rsgrpo.config.image_rules import ImageRules
from rsgrpo.data.files import TEST_FILE
from rsgrpo.data.images.image_tokens import ImageTokens
from rsgrpo.retrieval.filtering.page_filter import (
    FilteredPages,
    FilterStage,
    filter_metrics,
    filter_pages,
)

MAX_SHOWN_PAGES = 100
"""Most pages of an unfiltered prompt: 100 of 9 tokens take 1,100 of the policy's 4,096 positions, 1,000 do not fit with
a response that says something of each of them."""

_MAX_MODEL_TOKENS = 4096
_RESPONSE_TOKENS = {10: 384, MAX_SHOWN_PAGES: 2048}
"""Room for a response by the most pages that are shown: it says something of every page."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What is asked.

    Attributes:
        sizes: how many pages the haystacks have, ascending.
        twice_sizes: the sizes for which the policy also judges the best pages at low resolution.
        num_questions: how many questions there are.
        num_kept: k, how many pages the filter keeps; 0: chosen on held-out questions.
        max_shown: the largest haystack that the policy is also shown whole, at most ``MAX_SHOWN_PAGES``.
        seed: the seed of pages, needles and haystacks.
    """

    sizes: tuple[int, ...]
    twice_sizes: tuple[int, ...]
    num_questions: int
    num_kept: int
    max_shown: int
    seed: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Arm:
    """One way to answer, on haystacks of one size.

    Attributes:
        size: how many pages a haystack has.
        name: ``unfiltered``, ``cosine``, ``cosine, yes/no`` or ``oracle``.
        shown: for each question the pages of the pool that the policy sees, in their order in the haystack.
        filter_tokens: the tokens of images that the filter read, on average.
    """

    size: int
    name: str
    shown: tuple[tuple[int, ...], ...]
    filter_tokens: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """What an arm reached.

    Attributes:
        world: the name of the world.
        size: how many pages a haystack has.
        name: the name of the arm.
        accuracy: the share of right answers, in per cent.
        recall: the share of questions whose page is shown, in per cent.
        answer_tokens: image tokens of an answering prompt.
        all_tokens: the same with those that the filter read.
        answer_ratio: how many times fewer tokens than unfiltered the answering prompt has.
        all_ratio: the same with those that the filter read.
        against_unfiltered: the difference to the unfiltered model; None where that was not asked.
        against_oracle: the difference to the oracle; None for the oracle.
    """

    world: str
    size: int
    name: str
    accuracy: float
    recall: float
    answer_tokens: float
    all_tokens: float
    answer_ratio: float
    all_ratio: float
    against_unfiltered: PairedDifference | None
    against_oracle: PairedDifference | None


def make_arms(world: World, pool: Pool, plan: Plan, trained: Trained, num_kept: int) -> list[Arm]:
    """Filter the haystacks of every size.

    Args:
        world: the world.
        pool: pages and questions of the test.
        plan: what is asked.
        trained: the models.
        num_kept: k, how many pages the filter keeps.

    Returns:
        All arms, of each size the oracle first.
    """
    cosine = cached_scorer(pool, trained.embedder)
    piles = [
        haystacks(needle.page, len(pool.pages), plan.sizes, np.random.default_rng((plan.seed, 4, number)))
        for number, needle in enumerate(pool.needles)
    ]
    best = FilterStage(name="cosine", scorer=cosine, top_k=num_kept, threshold=0.0)
    arms = []
    for size in plan.sizes:
        pages = [pile[size] for pile in piles]
        asked = asked_over(pool, pages)
        once = filter_pages(asked, [best])
        arms.append(Arm(size=size, name="oracle", shown=_with_gold(pool, pages, once, num_kept)))
        if size <= plan.max_shown:
            arms.append(Arm(size=size, name="unfiltered", shown=tuple(pages)))
        arms.append(Arm(size=size, name="cosine", shown=_kept(pages, once)))
        if size in plan.twice_sizes:
            stages = [
                FilterStage(name="cosine", scorer=cosine, top_k=world.num_looked_at, threshold=0.0),
                _yes_no_stage(world, trained.policy, num_kept),
            ]
            twice = filter_pages(asked, stages)
            tokens = sum(item.image_tokens for item in twice) / len(twice)
            arms.append(Arm(size=size, name="cosine, yes/no", shown=_kept(pages, twice), filter_tokens=tokens))
    return arms


def _yes_no_stage(world: World, policy: Path, num_kept: int) -> FilterStage:
    rules = ImageRules(min_pixels=world.low_pixels**2)
    judge = ForwardJudge(policy, rules, f"the policy {policy}")
    stage = FilterStageConfig(scorer="yes_no", top_k=num_kept, threshold=0.0, max_pixels=world.low_pixels**2)
    model = AskedModel(judge=judge, processor=judge.processor, rules=rules)
    scorer = yes_no_scorer(QueryFilterConfig(), stage, model)
    return FilterStage(name="yes_no", scorer=scorer, top_k=num_kept, threshold=0.0)


def _kept(pages: Sequence[Sequence[int]], filtered: Sequence[FilteredPages]) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(shown[index] for index in item.kept) for shown, item in zip(pages, filtered, strict=True))


def _with_gold(
    pool: Pool, pages: Sequence[Sequence[int]], filtered: Sequence[FilteredPages], num_kept: int
) -> tuple[tuple[int, ...], ...]:
    found = []
    for needle, shown, item in zip(pool.needles, pages, filtered, strict=True):
        best_first = sorted(item.kept, key=lambda index: -item.last[index])
        kept = oracle_pages(best_first, shown.index(needle.page), num_kept)
        found.append(tuple(shown[index] for index in kept))
    return tuple(found)


def answer(
    pool: Pool, arms: Sequence[Arm], trained: Trained, folder: Path, threads: int
) -> dict[tuple[int, tuple[int, ...]], bool]:
    """Answer every prompt of the arms once, greedily, with the rollout engine.

    Args:
        pool: pages and questions.
        arms: what is shown.
        trained: the models.
        folder: the folder of the world; runs go into it.
        threads: CPU threads of the engine.

    Returns:
        Whether the answer is right, by question and pages shown.
    """
    wanted = sorted({(number, shown) for arm in arms for number, shown in enumerate(arm.shown)})
    found: dict[tuple[int, tuple[int, ...]], bool] = {}
    for most_pages, max_response_tokens in _RESPONSE_TOKENS.items():
        fewer = max((size for size in _RESPONSE_TOKENS if size < most_pages), default=0)
        asked = [(number, shown) for number, shown in wanted if fewer < len(shown) <= most_pages]
        if not asked:
            continue
        right = _answer_run(pool, asked, trained, folder, threads, max_response_tokens)
        found |= dict(zip(asked, right, strict=True))
    return found


def _answer_run(
    pool: Pool,
    asked: Sequence[tuple[int, tuple[int, ...]]],
    trained: Trained,
    folder: Path,
    threads: int,
    max_response_tokens: int,
) -> list[bool]:
    rows = [
        {
            "qid": f"q{index}",
            "prompt": answering_prompt(pool.needles[number].question, len(shown)),
            "answer": [pool.needles[number].answer],
            "image": [pool.pages[page].path for page in shown],
        }
        for index, (number, shown) in enumerate(asked)
    ]
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    digest = hashlib.sha256(f"{trained.policy}{lines}".encode()).hexdigest()[:12]  # others are another run
    prompts = folder / f"prompts-{digest}"
    prompts.mkdir(parents=True, exist_ok=True)
    (prompts / TEST_FILE).write_text(lines, encoding="utf-8")
    answered = run(
        folder / f"answers-{digest}",
        threads,
        [
            "recipe=quickstart",
            "stage=eval",
            f"eval.checkpoint={trained.policy}",
            f"data.test_path={prompts}",
            f"data.image_root={folder / 'pool'}",
            f"data.max_images={MAX_SHOWN_PAGES}",
            f"data.max_prompt_tokens={_MAX_MODEL_TOKENS - max_response_tokens}",
            f"rollout.max_model_tokens={_MAX_MODEL_TOKENS}",
            f"eval.sampling.max_response_tokens={max_response_tokens}",
            *PROMPT_SETTINGS,
        ],
    )
    (file,) = answered.glob("evaluations/*/predictions.jsonl")
    # Strictly: official accuracy finds the right word in a long response that says everything.
    is_right = {row["qid"]: row["strict_em"] == 1.0 for row in map(json.loads, file.read_text().splitlines())}
    return [is_right[f"q{index}"] for index in range(len(asked))]


def rows_of(
    world: World, pool: Pool, arms: Sequence[Arm], answers: Mapping[tuple[int, tuple[int, ...]], bool], trained: Trained
) -> list[Row]:
    """Score every arm, and compare it with the unfiltered model and the oracle of its size."""
    processor = ForwardJudge(trained.policy, ImageRules(), f"the policy {trained.policy}").processor
    per_page = ImageTokens(processor.image_processor, ImageRules()).count(pool.pages[0])
    is_right = {
        (arm.size, arm.name): [answers[number, shown] for number, shown in enumerate(arm.shown)] for arm in arms
    }
    rows = []
    for arm in arms:
        right = is_right[arm.size, arm.name]
        metrics = filter_metrics(
            [FilteredPages(kept=tuple(range(len(shown))), probabilities=()) for shown in arm.shown],
            [()] * len(arm.shown),
            [[per_page] * len(shown) for shown in arm.shown],
        )
        answered = metrics.answer_image_tokens
        rows.append(
            Row(
                world=world.name,
                size=arm.size,
                name=arm.name,
                accuracy=100 * sum(right) / len(right),
                recall=100
                * sum(needle.page in shown for needle, shown in zip(pool.needles, arm.shown, strict=True))
                / len(right),
                answer_tokens=answered,
                all_tokens=answered + arm.filter_tokens,
                answer_ratio=arm.size * per_page / answered,
                all_ratio=arm.size * per_page / (answered + arm.filter_tokens),
                against_unfiltered=_against(right, is_right.get((arm.size, "unfiltered")), arm.name == "unfiltered"),
                against_oracle=_against(right, is_right[arm.size, "oracle"], arm.name == "oracle"),
            )
        )
    return rows


def _against(first: list[bool], second: list[bool] | None, is_itself: bool) -> PairedDifference | None:
    return None if second is None or is_itself else paired_difference(first, second)


def measure(world: World, trained: Trained, folder: Path, plan: Plan, threads: int) -> list[Row]:
    """Measure a world.

    Args:
        world: the world.
        trained: its models.
        folder: the folder of pages, answers and results.
        plan: what is asked.
        threads: CPU threads of the engine.
    """
    num_kept = plan.num_kept or choose_num_kept(world, folder / "held_out", trained.embedder, plan.seed)
    pool = pool_of_test(world, folder / "pool", plan.num_questions, plan.seed)
    arms = make_arms(world, pool, plan, trained, num_kept)
    answers = answer(pool, arms, trained, folder, threads)
    return rows_of(world, pool, arms, answers, trained)
