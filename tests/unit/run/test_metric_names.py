"""Metrics that texts, console lines, the summary and the report name are among those that steps give."""

from __future__ import annotations

import ast
import dataclasses
import re
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from recipes import stages
from recipes.counterfactuals import CounterfactualAnswers
from recipes.evaluation.evaluate import Evaluation
from recipes.setup.job import Job
from recipes.sft import SftPhase, SftState
from recipes.sft_data import Taken
from rsgrpo.config import KlConfig, LossConfig
from rsgrpo.evaluation.metrics import aggregate
from rsgrpo.prompts.conversation import Conversation, ResponsePart
from rsgrpo.retrieval.filtering.page_filter import FilteredPages, filter_metrics
from rsgrpo.run.logger import MetricRow
from rsgrpo.run.report.curves import _SPECS
from rsgrpo.run.summary import summarise_rl, summarise_sft
from rsgrpo.types import ChatPrompt, TrainingGroup
from tests.unit.recipes.rl_fakes import FakeEngine, FakePolicy, new_training, rl_config, update_metrics

REPOSITORY = Path(__file__).resolve().parents[3]
TEXTS = sorted(
    [
        REPOSITORY / "README.md",
        *(REPOSITORY / "docs").glob("**/*.md"),
        *(
            file
            for package in ("rsgrpo", "recipes", "rewards", "rollout")
            for file in (REPOSITORY / package).rglob("*.py")
        ),
    ]
)
NAMED = re.compile(r"`((?:reward|scope|signal|policy|engine|response|selection|time|eval)/[a-z0-9_/<>*]+)`")
REWARD = "length"  # of the fake scorer


class SftPolicy:
    """Takes one step and scores what is held out."""

    def update(self, groups: list[TrainingGroup], objective: str) -> Any:
        return SimpleNamespace(metrics=update_metrics(0.0))

    def score(self, groups: list[TrainingGroup]) -> list[Any]:
        return [SimpleNamespace(logprobs=np.zeros(len(group.responses[0].token_ids))) for group in groups]


class SftSource:
    """The same conversation in training and held out."""

    conversation = Conversation(
        sample_id="s",
        prompt=ChatPrompt(sample_id="s", text="a"),
        parts=(ResponsePart(text="bc", is_target=True),),
    )

    def take(self, position: int, count: int) -> Taken:
        return Taken(conversations=[self.conversation], position=position + 1, skipped=())

    def held_out(self) -> list[Conversation]:
        return [self.conversation]


@pytest.fixture(scope="module")
def sft_values() -> dict[str, float]:
    """What a step of the supervised stage logs."""
    rows: list[dict[str, float]] = []
    encoder = SimpleNamespace(encode=lambda text, **_: [ord(character) for character in text])
    job = SimpleNamespace(
        policy=SftPolicy(),
        config=SimpleNamespace(sft=SimpleNamespace(validate_every_steps=1, save_every_steps=9)),
        prepared=SimpleNamespace(tokenizer=encoder, image_tokens=lambda image: 1),
        logger=SimpleNamespace(log=lambda stage, step, values: rows.append(values)),
    )
    phase = SimpleNamespace(settings=SimpleNamespace(samples_per_step=1), source=SftSource(), num_steps=1)
    stages._train_sft_phase(cast(Job, job), cast(SftPhase, phase), SftState(), lambda line: None, 1)
    return rows[0]


@pytest.fixture(scope="module")
def rl_values() -> dict[str, float]:
    """What steps of reinforcement learning log, under settings that add something; and held-out questions."""
    filtered = FilteredPages(kept=(0,), probabilities=((1.0,),), image_tokens=1, text_tokens=1)
    found = filter_metrics([filtered], [[0]], [[1]])
    numbers = Evaluation(metrics=aggregate([]), rewards={REWARD: 1.0}, filter=found).numbers()
    values = {f"eval/{name}": value for name, value in numbers.items()}
    for rl in (
        {},
        {"updates_per_batch": 2, "loss": LossConfig(kl=KlConfig(coefficient=0.1))},
        {"max_staleness_steps": 1},
    ):
        training = new_training(rl_config(samples_per_prompt=4, **rl), FakeEngine(), FakePolicy())
        training.counterfactuals = cast(CounterfactualAnswers, SimpleNamespace(ask=lambda *_: {}))
        for is_last in (False, True):
            values |= training.train_step(is_last=is_last).metrics
    return values


def _texts(file: Path) -> Iterator[str]:
    """The prose of a file: Markdown, or the strings of Python that stand by themselves."""
    if file.suffix == ".md":
        yield file.read_text()
        return
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield node.value.value


def test_metrics_that_texts_name_are_logged(sft_values: dict[str, float], rl_values: dict[str, float]) -> None:
    logged = {name.replace(f"/{REWARD}", "/*") for name in (*sft_values, *rl_values)}
    unknown = {}
    for file in TEXTS:
        for name in (name for text in _texts(file) for name in NAMED.findall(text)):
            pattern = re.sub(r"<\w+>", "*", name)
            if not any(
                fnmatchcase(logged_name, pattern) or fnmatchcase(pattern, logged_name) for logged_name in logged
            ):
                unknown[name] = str(file.relative_to(REPOSITORY))
    assert unknown == {}


def test_every_curve_and_shown_number_is_logged(sft_values: dict[str, float], rl_values: dict[str, float]) -> None:
    logged = {"sft": sft_values, "rl": rl_values}
    # The curves of a retriever's training: tests/unit/recipes/test_retriever_stage.py.
    known = [spec for spec in _SPECS if spec.stage in logged]
    lost = [spec.title for spec in known if not any(re.fullmatch(spec.pattern, name) for name in logged[spec.stage])]
    assert lost == []
    assert set(stages._SHOWN_METRICS.values()) <= rl_values.keys()


def test_the_summary_lacks_nothing(sft_values: dict[str, float], rl_values: dict[str, float]) -> None:
    rows = [
        MetricRow(stage="sft", step=1, values={**sft_values, "time/step": 1.0}),
        MetricRow(stage="rl", step=1, values={**rl_values, "time/update": 1.0, "time/generate": 1.0}),
    ]
    for found in (summarise_sft(rows), summarise_rl(rows)):
        assert found is not None
        assert [name for name, value in dataclasses.asdict(found).items() if value is None] == []


def test_tokens_per_second_count_every_update_of_a_batch() -> None:
    training = new_training(rl_config(updates_per_batch=4), FakeEngine(), policy := FakePolicy())
    values = dict(training.train_step(is_last=True).metrics)
    assert len(policy.updates) == 4
    # each update of the fake reports one token
    found = summarise_rl([MetricRow(stage="rl", step=1, values={**values, "time/update": 2.0})])
    assert found is not None
    assert found.trained_tokens_per_second == 2.0
    assert {f"policy/update_{number}/loss" for number in range(1, 5)} <= values.keys()
    assert f"scope/{REWARD}/clip_frac" in values
