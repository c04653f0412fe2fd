"""Test questions are answered from the pages that the filter keeps, and the run says what that found and saved."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from recipes.evaluation.evaluate import evaluate, read_evaluation
from recipes.filtering.questions import filter_questions, largest_pages
from rewards.plugins import load_rewards
from rewards.scorer import Scorer
from rsgrpo.config import Config, ConfigError, DataConfig, FilterStageConfig, QueryFilterConfig
from rsgrpo.evaluation.metrics import EvaluationMetrics
from rsgrpo.io.atomic_files import FileError
from rsgrpo.retrieval.filtering.page_filter import FilterStage
from rsgrpo.run.report.results import collect_cards, collect_evaluations
from rsgrpo.run.summary import RunSummary, read_summary, write_summary
from rsgrpo.types import ChatPrompt, ImageRef, PromptedSample, Sample
from tests.unit.recipes.test_evaluate import FakeEngine
from tests.unit.retrieval.test_page_filter import ByName


def _sample(sample_id: str, positive_images: tuple[int, ...], num_pages: int = 3) -> Sample:
    return Sample(
        sample_id=sample_id,
        question="What is it?",
        images=tuple(ImageRef(path=f"{number}.png") for number in range(1, num_pages + 1)),
        answers=("a dog",),
        positive_images=positive_images,
    )


def _filtered(samples: Sequence[Sample]):
    scorer = ByName({"1.png": 0.2, "2.png": 0.6, "3.png": 0.9}, image_tokens=10)
    stages = [FilterStage(name="yes_no", scorer=scorer, top_k=1)]
    return filter_questions(samples, stages, lambda page: 100)


def test_answers_come_from_survivors_and_the_run_counts_what_it_saved(tmp_path: Path) -> None:
    found = _filtered([_sample("near", (2,)), _sample("none", (0,))])
    assert [sample.page_numbers for sample in found.samples] == [(3,), (3,)]
    prompts = [
        PromptedSample(sample=sample, prompt=ChatPrompt(sample_id=sample.sample_id, text=""))
        for sample in found.samples
    ]
    scorer = Scorer(load_rewards({}, Path.cwd()))
    evaluation, groups = evaluate(
        FakeEngine(), prompts, Config(stage="eval"), scorer, tmp_path, lambda done: None, found.metrics
    )
    assert [image.path for image in groups[0].sample.images] == ["3.png"]
    # 2 × 300 tokens without the filter, 2 × 100 in the prompts, 2 × 30 for the filter; one of two gold pages is kept.
    assert evaluation.filter is not None
    assert (evaluation.filter.answer_ratio, evaluation.filter.image_recall) == (3.0, 0.5)
    assert evaluation.filter.total_ratio == pytest.approx(600 / 260)
    assert evaluation.numbers()["filter/total_ratio"] == pytest.approx(600 / 260)
    assert read_evaluation(tmp_path) == evaluation
    rows = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    assert [(row["imgs"], row["page_numbers"]) for row in rows] == [(["3.png"], [3]), (["3.png"], [3])]
    (tmp_path / "filter.json").write_text("{}")
    with pytest.raises(FileError, match="filter"):
        read_evaluation(tmp_path)


def test_what_the_filter_said_is_kept_by_page_number() -> None:
    found = _filtered([_sample("near", (2,))])
    (row,) = found.rows()
    assert (row["page_numbers"], row["kept"], row["gold"]) == ([1, 2, 3], [3], [3])
    assert row["probabilities"] == {"yes_no": [0.2, 0.6, 0.9]}
    # Asked once more, the numbers are those of the user still.
    again = _filtered(list(found.samples))
    assert again.rows()[0]["kept"] == [3]


def test_a_question_fits_if_it_does_with_its_largest_pages() -> None:
    tokens = {"1.png": 5, "2.png": 50, "3.png": 20, "4.png": 30}
    shown = largest_pages(_sample("q", (), 4), 2, lambda page: tokens[page.path])
    assert [image.path for image in shown.images] == ["2.png", "4.png"]


def test_summary_and_report_say_what_the_filter_found_and_saved(tmp_path: Path) -> None:
    metrics = EvaluationMetrics(**dict.fromkeys(EvaluationMetrics.__dataclass_fields__, 0))
    filtered = _filtered([_sample("near", (2,))]).metrics
    summary = RunSummary(
        name="run",
        stage="eval",
        recipe="run",
        seed=0,
        evaluations={"checkpoint": metrics},
        evaluation_filters={"checkpoint": filtered},
    )
    write_summary(tmp_path / "summary.json", summary)
    assert read_summary(tmp_path / "summary.json").evaluation_filters == {"checkpoint": filtered}
    evaluations = collect_evaluations(summary, [])
    bars = {bar["key"]: bar["value"] for bar in evaluations[0]["bars"]}
    assert (bars["filter/image_recall"], bars["filter/image_precision"]) == (1.0, 1.0)
    (card,) = [card for card in collect_cards(summary, evaluations, []) if card["label"].startswith("Image tokens")]
    # 300 against 100, and against 100 + 30.
    assert (card["value"], card["note"]) == ("÷ 3.0", "÷ 2.3 with the filter's own; 1.0 of 3 pages")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"stages": [FilterStageConfig(scorer="cosine")]}, "set filter.index or filter.embedder"),
        ({"stages": [FilterStageConfig(scorer="head")]}, "filter.head is empty"),
        ({"stages": []}, "filter.stages is empty"),
        ({"yes": "ja", "no": "ja"}, "must differ"),
        ({"head": "~/head"}, "only a shell expands"),
    ],
    ids=["cosine", "head", "no stages", "same words", "tilde"],
)
def test_settings_that_cannot_work_are_refused(settings, words) -> None:
    with pytest.raises(ConfigError, match=words):
        QueryFilterConfig(enabled=True, **settings)


def test_a_filter_that_keeps_more_than_the_model_may_see_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"keeps 9 pages, the model sees at most data.max_images=5"):
        Config(
            stage="eval",
            filter=QueryFilterConfig(enabled=True, stages=[FilterStageConfig(top_k=9)]),
            data=DataConfig(max_images=5),
        )
