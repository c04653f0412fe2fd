"""Held-out answers are worth what the benchmark's metrics and the run's own rewards say."""

from __future__ import annotations

import json
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from recipes.evaluation.evaluate import evaluate, validate
from rewards.plugins import load_rewards
from rewards.scorer import Scorer
from rsgrpo.config import Config, ResponseConfig, RewardConfig, SamplingConfig, ScopeConfig, SectionConfig
from rsgrpo.types import Box, ChatPrompt, ImageRef, PromptedSample, RolloutGroup, Sample
from rsgrpo.weights.update import WeightUpdate
from tests.unit.reward_calls import character_group

ANSWERS = {
    "near": "here: (100,100),(300,300)",  # gold is the left half of it: IoU 0.5
    "none": "nowhere",
    "final": "<plan>a dog or a cat</plan><final>a dog</final>",
    "lines": "<evidence>[1]: a dog and a cat\n[2]: no relevant information</evidence>",
}
REWARDS = {
    "iou": RewardConfig(function="rewards.functions.grounding:iou", scope=ScopeConfig(pattern="box")),
    "needle": RewardConfig(function="rewards.functions.haystack:needle_lines", scope=ScopeConfig(evidence_line=True)),
}


@dataclass
class FakeEngine:
    """Gives each question the answer with its id."""

    policy_version: int = 0

    def generate(
        self, prompted: Sequence[PromptedSample], *, num_samples: int, sampling: SamplingConfig, seed: int
    ) -> list[RolloutGroup]:
        return list(self.stream(prompted, num_samples=num_samples, sampling=sampling, seed=seed))

    def stream(
        self, prompted: Sequence[PromptedSample], *, num_samples: int, sampling: SamplingConfig, seed: int
    ) -> Generator[RolloutGroup, None, None]:
        for asked in prompted:
            yield character_group(asked.sample, ANSWERS[asked.sample.sample_id])

    def update_weights(self, update: WeightUpdate) -> None:
        raise AssertionError("an evaluation changes no weights")


def _prompted(sample_id: str, positive_images: tuple[int, ...] = ()) -> PromptedSample:
    sample = Sample(
        sample_id=sample_id,
        images=(ImageRef(path="1.png"), ImageRef(path="2.png")),
        answers=("a dog",),
        boxes=(Box(left=0.1, top=0.1, right=0.2, bottom=0.3, image_index=0),),
        positive_images=positive_images,
    )
    return PromptedSample(sample=sample, prompt=ChatPrompt(sample_id=sample_id, text=""))


def _scorer() -> Scorer:
    return Scorer(load_rewards(REWARDS, Path.cwd()))


def test_rewards_are_averaged_over_answers_and_kept_with_each(tmp_path: Path) -> None:
    prompts = [_prompted("near", positive_images=(0,)), _prompted("none", positive_images=(0,))]
    found, groups = evaluate(FakeEngine(), prompts, Config(rewards=REWARDS), _scorer(), tmp_path, lambda done: None)
    # iou: 0.5 and 0 (no box); needle: no lines at all
    assert found.rewards == pytest.approx({"iou": 0.25, "needle": 0.0})
    assert json.loads((tmp_path / "rewards.json").read_text()) == pytest.approx(found.rewards)
    rows = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    assert [row["rewards"]["iou"] for row in rows] == pytest.approx([0.5, 0.0])
    assert found.numbers()["reward/iou"] == found.rewards["iou"]
    assert found.numbers()["num_responses"] == len(groups) == 2


def test_one_value_an_image_counts_as_their_mean() -> None:
    # needle on page 2: both lines are wrong; on page 1: both are right
    for place, value in ((0, 1.0), (1, 0.0)):
        found = validate(
            FakeEngine(), [_prompted("lines", positive_images=(place,))], Config(rewards=REWARDS), _scorer()
        )
        assert found.rewards["needle"] == value


def test_rewards_without_gold_in_the_questions_are_left_out() -> None:
    prompts = [_prompted("near", positive_images=(0,)), _prompted("lines")]  # the second lacks positive_images
    found = validate(FakeEngine(), prompts, Config(rewards=REWARDS), _scorer())
    assert set(found.rewards) == {"iou"}
    assert _scorer().limited_to([prompted.sample for prompted in prompts[:1]]).rewards == _scorer().rewards


def test_the_metrics_read_the_answer_section_of_the_settings() -> None:
    sections = [SectionConfig(name="plan"), SectionConfig(name="final")]
    config = Config(stage="eval", response=ResponseConfig(sections=sections, answer_section="final"))
    metrics = validate(FakeEngine(), [_prompted("final")], config, Scorer(())).metrics
    assert (metrics.em, metrics.strict_em, metrics.well_formed_frac) == (1.0, 1.0, 1.0)
    # by EVisRAG's tags there is no answer section: official judges all of the text, strict gives nothing
    metrics = validate(FakeEngine(), [_prompted("final")], Config(stage="eval"), Scorer(())).metrics
    assert (metrics.em, metrics.strict_em, metrics.well_formed_frac) == (0.0, 0.0, 0.0)
