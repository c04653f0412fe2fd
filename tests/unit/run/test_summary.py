"""summary.json: what is written is read, what does not fit is named."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest

from rsgrpo.run.logger import MetricRow
from rsgrpo.run.summary import (
    RlSummary,
    RunSummary,
    SummaryError,
    collect_versions,
    read_summary,
    summarise_rl,
    summarise_sft,
    write_summary,
)
from tests.unit.report_run import evaluation


def _summary() -> RunSummary:
    return RunSummary(
        name="r",
        stage="all",
        recipe="quickstart",
        seed=3,
        stage_seconds={"sft": 12.5},
        evaluations={"after_sft": evaluation(0.5)},
        rl=RlSummary(num_steps=4, phase_seconds={"generate": 1.5}),
    )


def test_a_summary_reads_back_equal(tmp_path: Path) -> None:
    write_summary(tmp_path / "summary.json", _summary())
    assert read_summary(tmp_path / "summary.json") == _summary()
    assert [file.name for file in tmp_path.iterdir()] == ["summary.json"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": "3"}, "seed"),
        ({"seed": True}, "seed"),
        ({"extra": 1}, "extra"),
        ({"schema_version": 99}, "schema_version 99"),
        ({"rl": {"num_steps": 1, "phase_seconds": {"generate": "long"}}}, r"rl\.phase_seconds\.generate"),
        ({"evaluations": {"after_sft": {"em": 1.0}}}, r"evaluations\.after_sft"),
        ({"stage_seconds": []}, "stage_seconds"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, change: dict[str, object], message: str) -> None:
    file = tmp_path / "summary.json"
    file.write_text(json.dumps(dataclasses.asdict(_summary()) | change))
    with pytest.raises(SummaryError, match=message):
        read_summary(file)


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    plain = dataclasses.asdict(_summary())
    del plain["recipe"]
    (tmp_path / "summary.json").write_text(json.dumps(plain))
    with pytest.raises(SummaryError, match="recipe"):
        read_summary(tmp_path / "summary.json")


def test_a_number_that_is_not_finite_is_refused_and_the_old_file_stays(tmp_path: Path) -> None:
    write_summary(tmp_path / "summary.json", _summary())
    broken = dataclasses.replace(_summary(), stage_seconds={"sft": math.nan})
    with pytest.raises(SummaryError, match=r"stage_seconds\.sft"):
        write_summary(tmp_path / "summary.json", broken)
    assert read_summary(tmp_path / "summary.json") == _summary()


def test_rl_numbers_are_means_over_the_steps() -> None:
    def row(step: int, generate: float, gap: float, kept: float) -> MetricRow:
        values = {
            "time/generate": generate,
            "time/score": 0.06,
            "time/credit": 0.02,
            "time/update": 1.0,
            "time/step": 4.0,
            "engine/sampled_tokens": 100.0,
            "engine/logprob_gap_mean": gap,
            "engine/logprob_gap_max": gap * 10,
            "policy/num_response_tokens": 50.0,
            "selection/sampled_groups": 32.0,
            "selection/kept_frac": kept,
        }
        return MetricRow(stage="rl", step=step, values=values)

    summary = summarise_rl([row(1, 1.0, 1e-6, 1.0), row(2, 3.0, 3e-6, 0.75)])
    assert summary is not None
    assert summary.num_steps == 2
    assert summary.step_seconds == 4.0
    assert summary.phase_seconds == pytest.approx({"generate": 2.0, "score": 0.06, "credit": 0.02, "update": 1.0})
    assert summary.credit_time_frac == pytest.approx(0.02)  # (0.06 + 0.02) / 4
    assert summary.sampled_tokens_per_second == pytest.approx(50.0)  # 200 tokens in 1 + 3 s
    assert summary.trained_tokens_per_second == pytest.approx(50.0)  # 100 tokens in 1 + 1 s
    assert summary.logprob_gap_mean == pytest.approx(2e-6)
    assert summary.logprob_gap_max == pytest.approx(3e-5)
    assert (summary.sampled_groups, summary.filtered_groups) == (64, 8)  # 32 * 0 + 32 * 0.25


def test_stages_that_did_not_run_are_none() -> None:
    rows = [MetricRow(stage="sft", step=5, values={"policy/loss": 0.5, "time/update": math.nan})]
    assert summarise_rl(rows) is None
    sft = summarise_sft(rows)
    assert sft is not None
    assert (sft.num_steps, sft.final_loss, sft.trained_tokens_per_second) == (5, 0.5, None)


def test_versions_name_the_packages_without_importing_them(tmp_path: Path) -> None:
    versions = collect_versions(tmp_path)
    assert versions["python"].startswith("3.")
    assert versions["torch"]
    assert versions["git_commit"] == ""  # no repository there
