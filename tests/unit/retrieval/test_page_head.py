"""A trained head: it begins as the model's own yes or no, learns from labelled pages, and asks as it was trained."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling

from recipes.filtering.forward_judge import ForwardJudge
from recipes.filtering.head import head_scorer, worded
from recipes.filtering.yes_no import YesNoScorer
from rsgrpo.config import FilterStageConfig, HeadTrainingConfig, QueryFilterConfig
from rsgrpo.config.image_rules import ImageRules
from rsgrpo.data.images.image_tokens import ImageTokens
from rsgrpo.prompts.relevance import RelevancePrompts, answer_tokens
from rsgrpo.retrieval.filtering.page_filter import PagesOfQuestion
from rsgrpo.retrieval.filtering.page_head import LabelledPage, PageHeadError, train_head
from rsgrpo.types import ImageRef
from tests.tiny_model import build_tiny_model, tiny_tokenizer

TEMPLATE = "configs/prompt/relevance.jinja"
RULES = ImageRules(min_pixels=784, max_pixels=10**6)
LOW = 56 * 56
TOKENS = answer_tokens(tiny_tokenizer(), "y", "n")
STAGE = FilterStageConfig(scorer="head", max_pixels=LOW)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ImageRef]:
    root = tmp_path_factory.mktemp("pages")
    found = {}
    for colour in ("black", "white"):
        Image.new("RGB", (112, 84), colour).save(root / f"{colour}.png")
        found[colour] = ImageRef(path=f"{colour}.png", file=str(root / f"{colour}.png"))
    return found


def pairs(pages: dict[str, ImageRef]) -> list[LabelledPage]:
    return [
        LabelledPage(question="Is it white?", page=page, is_relevant=colour == "white")
        for colour, page in pages.items()
    ]


def train(start: Path, out: Path, pages: dict[str, ImageRef], **settings: float) -> None:
    train_head(
        pairs(pages) * 4,
        start,
        out,
        HeadTrainingConfig(batch_size=8, micro_batch_size=4, max_pixels=LOW, **settings),  # type: ignore[arg-type]  # its floats
        tokens=TOKENS,
        wording=Path(TEMPLATE).read_text(),
        word=worded(TEMPLATE),
        rules=RULES,
    )


def test_a_head_that_learnt_nothing_is_the_models_own_yes_or_no(folder: Path, pages, tmp_path: Path) -> None:
    train(folder, tmp_path / "head", pages, max_steps=1, learning_rate=1e-12)
    # Another template in the settings: the head's own counts.
    settings = QueryFilterConfig(head=str(tmp_path / "head"), prompt="configs/prompt/quickstart.jinja")
    scorer = head_scorer(settings, RULES)(STAGE)
    judge = ForwardJudge(folder, RULES, "filter.policy=tiny")
    own = YesNoScorer(
        judge,
        RelevancePrompts(TEMPLATE, judge.processor),
        TOKENS,
        max_pixels=LOW,
        image_tokens=ImageTokens(judge.processor.image_processor, RULES.scaled_down(LOW)),
    )
    shown = tuple(pages.values())
    np.testing.assert_allclose(scorer.score("Is it blue?", shown), own.score("Is it blue?", shown), atol=1e-5)
    asked = [PagesOfQuestion(question="Is it blue?", pages=shown)]
    assert scorer.score_all(asked)[0].image_tokens == own.score_all(asked)[0].image_tokens


@pytest.fixture(scope="module")
def embedder(folder: Path) -> Path:
    """An embedder as it is saved: without an output layer, which begins at random."""
    reader = Transformer(str(folder))
    pooling = Pooling(reader.get_embedding_dimension(), "lasttoken")
    SentenceTransformer(modules=[reader, pooling, Normalize()]).save(str(folder.parent / "embedder"))
    return folder.parent / "embedder"


def test_a_head_can_start_from_an_embedders_weights(embedder: Path, pages, tmp_path: Path) -> None:
    train(embedder, tmp_path / "head", pages, max_steps=1)
    scorer = head_scorer(QueryFilterConfig(head=str(tmp_path / "head")), RULES)(STAGE)
    assert len(set(scorer.score("Is it white?", tuple(pages.values())).tolist())) == 2


def test_training_tells_relevant_pages_from_others(folder: Path, pages, tmp_path: Path) -> None:
    train(folder, tmp_path / "head", pages, max_steps=12, learning_rate=3e-3)
    scorer = head_scorer(QueryFilterConfig(head=str(tmp_path / "head")), RULES)(STAGE)
    found = dict(zip(pages, scorer.score("Is it white?", tuple(pages.values())), strict=True))
    assert found["white"] > 0.6 > 0.4 > found["black"]


def test_what_is_no_head_or_has_one_label_is_refused(folder: Path, pages, tmp_path: Path) -> None:
    with pytest.raises(PageHeadError, match=r"no page_head.json"):
        head_scorer(QueryFilterConfig(head=str(folder)), RULES)(STAGE)
    only = [pair for pair in pairs(pages) if pair.is_relevant]
    with pytest.raises(PageHeadError, match="1 of 1 pairs are relevant"):
        train_head(
            only,
            folder,
            tmp_path / "head",
            HeadTrainingConfig(),
            tokens=TOKENS,
            wording="",
            word=worded(TEMPLATE),
            rules=RULES,
        )
