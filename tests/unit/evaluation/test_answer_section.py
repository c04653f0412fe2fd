"""Which section holds the answer is a setting: the same rules on another tag give the same numbers."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rsgrpo.config import EVISRAG, ResponseFormat
from rsgrpo.evaluation.benchmarks import find_benchmark
from rsgrpo.evaluation.benchmarks.base import MODES, Answered
from rsgrpo.evaluation.metrics import official_answer, score_answer, score_response, strict_score_answer
from rsgrpo.types import Box, Sample

FINAL = ResponseFormat(
    sections=tuple(
        dataclasses.replace(rule, name="final" if rule.name == "answer" else rule.name) for rule in EVISRAG.sections
    ),
    answer_section="final",
)
PIECES = st.sampled_from(
    [
        "<answer>",
        "</answer>",
        "<answer",
        "<think>",
        "</think>",
        "<evidence>[1]: a\n",
        "</evidence>",
        "Paris",
        " 3.5",
        "x ",
    ]
)
TEXTS = st.lists(PIECES, max_size=14).map("".join)
REFERENCES = ["Paris", "35", "3.5 x"]


def renamed(text: str) -> str:
    return text.replace("<answer", "<final").replace("</answer", "</final")


@given(TEXTS)
def test_the_metrics_of_another_tag_are_those_of_the_public_one(text: str) -> None:
    other = renamed(text)
    assert official_answer(other, "final") == renamed(official_answer(text))
    for score in (score_answer, strict_score_answer):
        assert score(other, REFERENCES, section="final") == score(text, REFERENCES)
    assert score_response(other, REFERENCES, response_format=FINAL) == score_response(text, REFERENCES)


@given(TEXTS)
def test_a_prompt_that_opens_the_answer_wrote_its_tag(text: str) -> None:
    behind = score_response(renamed(text), REFERENCES, response_format=FINAL, opened="final")
    assert behind == score_response(f"<final>{renamed(text)}", REFERENCES, response_format=FINAL)


@pytest.mark.parametrize(
    ("task", "sample", "right", "wrong"),
    [
        ("evisrag/chartqa", Sample(sample_id="q", answers=("red",)), "red", "blue"),
        (
            "milebench/ALFRED",
            Sample(
                sample_id="q", answers=("red",), choices=("red", "blue"), metadata={"question_type": "multi-choice"}
            ),
            "red",
            "blue",
        ),
        ("vhs/single", Sample(sample_id="q", answers=("yes",)), "yes", "no"),
        (
            "mig_bench/diff",
            Sample(sample_id="q", task="mig_bench/diff", boxes=(Box(left=0.1, top=0.1, right=0.4, bottom=0.4),)),
            "(100,100),(400,400)",
            "(500,500),(900,900)",
        ),
    ],
)
def test_every_benchmark_reads_the_answer_section_that_it_is_told(
    task: str, sample: Sample, right: str, wrong: str
) -> None:
    benchmark = find_benchmark(task)
    text = f"<think>{wrong}</think><final>{right}</final>"
    answered = [Answered(sample=sample, text=text)]
    assert benchmark.score(answered, "strict", answer_section="final").main.value == 1.0
    # by the public tag there is no section, and the whole text says two things
    assert benchmark.score(answered, "strict").main.value < 1.0
    public = [Answered(sample=sample, text=text.replace("final>", "answer>"))]
    for mode in MODES:
        told, found = benchmark.score(answered, mode, answer_section="final"), benchmark.score(public, mode)
        assert (told.metrics, told.printed, told.anomalies) == (found.metrics, found.printed, found.anomalies)
