from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rsgrpo.data.readers import ReaderOptions, read_samples
from rsgrpo.evaluation.benchmarks import BENCHMARKS, find_benchmark, find_benchmarks
from rsgrpo.evaluation.benchmarks.aggregate import bootstrap_means, summarize_values
from rsgrpo.evaluation.benchmarks.base import (
    DOUBLED,
    MISSING,
    UNKNOWN,
    UNREADABLE,
    Answered,
    BenchmarkError,
    Prediction,
    PredictionFile,
    last_of_each,
    pair_predictions,
)
from rsgrpo.types import Sample


def answered(sample_id: str, text: str, answers: tuple[str, ...] = ("Paris",), is_sufficient: bool = True) -> Answered:
    return Answered(sample=Sample(sample_id=sample_id, answers=answers, is_sufficient=is_sufficient), text=text)


def test_an_unknown_benchmark_names_the_choices() -> None:
    with pytest.raises(BenchmarkError, match="evisrag/chartqa"):
        find_benchmark("evisrag/chartvqa")


def test_a_family_stands_for_all_its_tasks() -> None:
    assert [benchmark.name for benchmark in find_benchmarks("evisrag")] == [
        "evisrag/chartqa",
        "evisrag/infovqa",
        "evisrag/docvqa",
        "evisrag/slidevqa",
        "evisrag/vidoseek",
    ]
    assert [benchmark.name for benchmark in find_benchmarks("evisrag/docvqa")] == ["evisrag/docvqa"]


def test_every_registered_name_is_the_benchmarks_own() -> None:
    for name, benchmark in BENCHMARKS.items():
        assert benchmark.name == name
        assert benchmark.sets


def test_pairing_names_what_has_no_partner() -> None:
    samples = [Sample(sample_id="a"), Sample(sample_id="b")]
    file = PredictionFile(
        predictions=tuple(Prediction(sample_id=name, text=text) for name, text in [("a", "1"), ("a", "2"), ("c", "3")]),
        problems=("line 4",),
    )
    pairing = pair_predictions(samples, file)
    assert [(answer.sample.sample_id, answer.text) for answer in pairing.answered] == [("a", "1"), ("a", "2")]
    assert [sample.sample_id for sample in pairing.gaps.missing] == ["b"]
    assert pairing.gaps.counts == {MISSING: 1, UNKNOWN: 1, UNREADABLE: 1}
    once, num_doubled = last_of_each(pairing.answered)
    assert ([answer.text for answer in once], num_doubled) == (["2"], 1)


def test_samples_that_share_an_id_are_refused() -> None:
    with pytest.raises(BenchmarkError, match="'a'"):
        pair_predictions([Sample(sample_id="a"), Sample(sample_id="a")], PredictionFile(predictions=()))


def test_bootstrap_means_have_the_binomial_spread() -> None:
    # 100 values, half of them 1: a resample's mean is Binomial(100, 1/2) / 100, so std 0.05.
    means = bootstrap_means(np.repeat([0.0, 1.0], 50), num_resamples=20_000)
    assert means.mean() == pytest.approx(0.5, abs=2e-3)
    assert means.std() == pytest.approx(0.05, abs=2e-3)


def test_the_same_values_give_the_same_interval_and_contain_the_mean() -> None:
    values = [0.0, 0.25, 1.0, 1.0, 0.5]
    summary = summarize_values(values)
    assert summary == summarize_values(values)
    assert summary.value == 0.55
    assert summary.low < 0.55 < summary.high
    # Constant values have no spread.
    constant = summarize_values([0.5] * 7)
    assert (constant.low, constant.high, constant.count) == (0.5, 0.5, 7)
    assert summarize_values([]).count == 0


def test_evisrag_prints_what_the_original_prints(parity: Callable[[str], list[dict[str, Any]]]) -> None:
    chosen = [candidate for candidate in parity("evisrag_em_acc_f1") if candidate["inputs"]["op"] == "aggregate"]
    for vector in chosen:
        rows = vector["inputs"]["rows"]
        result = find_benchmark("evisrag/docvqa").score(
            [
                answered(str(index), row["prediction"], row["answers"], row["is_sufficient"])
                for index, row in enumerate(rows)
            ],
            "official",
        )
        assert result.printed == pytest.approx(vector["expected"], abs=1e-9), vector["id"]
        assert result.main.value == pytest.approx(vector["expected"]["global_f1"], abs=1e-9)


def test_evisrag_counts_doubled_and_missing_predictions_by_the_modes_rules(tmp_path: Path) -> None:
    benchmark = find_benchmark("evisrag/chartqa")
    samples = [Sample(sample_id=name, answers=("Paris",)) for name in "abc"]
    rows = [
        {"qid": "a", "imgs": [], "pred": "<answer>Lyon</answer>"},
        {"qid": "a", "imgs": [], "pred": "<answer>Paris</answer>"},
        {"qid": "b", "imgs": [], "pred": "Paris"},
        {"qid": "z", "imgs": [], "pred": "Paris"},
    ]
    path = tmp_path / "preds.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"qid": "c", "pr')
    file = benchmark.read_predictions(path)
    pairing = pair_predictions(samples, file)
    assert len(file.problems) == 1 and "line 5" in file.problems[0]
    # Official: rows a, a, b are averaged; the untagged Paris counts in full.
    official = benchmark.score(pairing.answered, "official", pairing.gaps)
    assert official.metrics["accuracy"].value == pytest.approx(2 / 3)
    # Strict: a (its last row), b without an answer section, c missing.
    strict = benchmark.score(pairing.answered, "strict", pairing.gaps)
    assert strict.metrics["accuracy"].value == pytest.approx(1 / 3)
    for result in (official, strict):
        assert {kind: result.anomalies[kind] for kind in (DOUBLED, MISSING, UNKNOWN, UNREADABLE)} == {
            DOUBLED: 1,
            MISSING: 1,
            UNKNOWN: 1,
            UNREADABLE: 1,
        }


def test_evisrag_predictions_survive_writing_and_reading(tmp_path: Path) -> None:
    benchmark = find_benchmark("evisrag/chartqa")
    path = benchmark.write_predictions([answered("q1", "é\n<answer>x</answer>")], tmp_path, model="m")
    assert path == tmp_path / "ChartQA" / "m.jsonl"
    assert [(prediction.sample_id, prediction.text) for prediction in benchmark.read_predictions(path).predictions] == [
        ("q1", "é\n<answer>x</answer>")
    ]


def test_a_numeric_id_is_written_back_as_a_number(tmp_path: Path) -> None:
    (tmp_path / "top3_test.jsonl").write_text(
        "".join(json.dumps({"qid": qid, "query": "?", "answer": ["x"], "image": ["a.png"]}) + "\n" for qid in (7, "8"))
    )
    samples, _ = read_samples("evisrag", tmp_path / "top3_test.jsonl", options=ReaderOptions(check_media=False))
    benchmark = find_benchmark("evisrag/chartqa")
    path = benchmark.write_predictions([Answered(sample=sample, text="x") for sample in samples], tmp_path)
    assert [json.loads(line)["qid"] for line in path.read_text().splitlines()] == [7, "8"]
    assert not pair_predictions(samples, benchmark.read_predictions(path)).gaps.missing
