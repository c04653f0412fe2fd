"""A checkpoint on the test questions, behind the filter: it judges pages at low resolution, answers from the best."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from recipes.filtering.forward_judge import ForwardJudge
from recipes.filtering.yes_no import YesNoScorer
from recipes.pipeline import run
from rsgrpo.config import (
    ClusterConfig,
    Config,
    DataConfig,
    EvalConfig,
    FilterStageConfig,
    LoggingConfig,
    ModelConfig,
    PromptConfig,
    QueryFilterConfig,
    RolloutConfig,
    SamplingConfig,
)
from rsgrpo.data.images.image_tokens import ImageTokens
from rsgrpo.prompts.relevance import RelevancePrompts, answer_tokens
from rsgrpo.run.summary import read_summary
from tests.tiny_model import build_tiny_model, write_images

pytestmark = pytest.mark.engine

LOW = 56 * 56


def test_a_checkpoint_answers_the_test_questions_from_the_pages_that_it_finds(tmp_path: Path) -> None:
    base = build_tiny_model(tmp_path / "base", hidden=128, tie=True, seed=5)
    folder = build_tiny_model(tmp_path / "model", hidden=128, tie=True)
    pages = write_images(tmp_path / "data" / "imgs", [(112, 84)] * 6)
    rows = [
        {"qid": f"q{number}", "query": question, "answer": ["x"], "image": [page.path for page in pages],
         "posImgs": [pages[number].path]}
        for number, question in enumerate(("Who signed?", "What is the total?"))
    ]  # fmt: skip
    (tmp_path / "data" / "top3_test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = Config(
        name="filtered",
        stage="eval",
        run_dir=str(tmp_path / "run"),
        model=ModelConfig(path=str(base), dtype="float32"),
        data=DataConfig(test_path=str(tmp_path / "data"), min_pixels=784, max_images=2),
        prompt=PromptConfig(path="configs/prompt/quickstart.jinja"),
        filter=QueryFilterConfig(
            enabled=True, stages=[FilterStageConfig(top_k=2, threshold=0.0, max_pixels=LOW)], yes="y", no="n"
        ),
        rollout=RolloutConfig(
            sampling=SamplingConfig(max_response_tokens=8),
            max_model_tokens=512,
            max_num_sequences=8,
            max_batched_tokens=512,
            enforce_eager=True,
        ),
        eval=EvalConfig(checkpoint=str(folder), sampling=SamplingConfig(temperature=0.0, max_response_tokens=4)),
        cluster=ClusterConfig(device="cpu"),
        logging=LoggingConfig(wandb_mode="disabled", tensorboard=False),
    )
    assert run(config) is not None
    summary = read_summary(tmp_path / "run" / "summary.json")
    assert {point: metrics.num_responses for point, metrics in summary.evaluations.items()} == {"checkpoint": 2}
    point = tmp_path / "run" / "evaluations" / "checkpoint"
    filtered = [json.loads(line) for line in (point / "filter.jsonl").read_text().splitlines()]
    answered = [json.loads(line) for line in (point / "predictions.jsonl").read_text().splitlines()]
    assert [answer["qid"] for answer in answered] == ["q0", "q1"]

    judge = ForwardJudge(folder, config.data.image_rules, "model.path=tiny")
    scorer = YesNoScorer(
        judge,
        RelevancePrompts(config.filter.prompt, judge.processor),
        answer_tokens(judge.processor.tokenizer, "y", "n"),
        max_pixels=LOW,
        image_tokens=ImageTokens(judge.processor.image_processor, config.data.image_rules.scaled_down(LOW)),
    )
    for row, said, answer in zip(rows, filtered, answered, strict=True):
        expected = scorer.score(str(row["query"]), pages)
        assert said["probabilities"]["yes_no"] == pytest.approx(expected.tolist(), abs=1e-5)
        best = sorted(sorted(range(6), key=lambda index: -expected[index])[:2])
        assert said["kept"] == answer["page_numbers"] == [index + 1 for index in best]
        assert answer["imgs"] == [pages[index].path for index in best]

    metrics = summary.evaluation_filters["checkpoint"]
    # 112 × 84: 4 × 3 tokens; at 56 × 56 pixels 64 × 48, rounded to 56 × 56: 4 tokens. Six pages were judged, two shown.
    assert (metrics.unfiltered_image_tokens, metrics.answer_image_tokens, metrics.filter_image_tokens) == (72, 24, 24)
    assert (metrics.answer_ratio, metrics.total_ratio) == (3.0, 1.5)
    found = sum(row["gold"][0] in row["kept"] for row in filtered)
    assert (metrics.image_recall, metrics.image_precision) == (found / 2, found / 4)
    assert "Filter: gold pages kept" in (tmp_path / "run" / "report.html").read_text()
