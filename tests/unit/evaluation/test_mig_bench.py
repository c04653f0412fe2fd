from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rsgrpo.evaluation.benchmarks import find_benchmark
from rsgrpo.evaluation.benchmarks.base import ORIGINAL_CRASHES, UNPARSABLE, Answered, pair_predictions
from rsgrpo.evaluation.benchmarks.mig_bench import (
    BAD_GOLD,
    SEVERAL_BOXES,
    TASKS,
    MigBenchmark,
    extract_boxes,
    image_index,
    official_iou,
    scale_y_for_migician,
    strict_boxes,
)
from rsgrpo.types import Box, Sample
from tests.oracles.lmms_choice import mmiu_contains

Parity = Callable[[str], list[dict[str, Any]]]


def vectors(parity: Parity, operation: str) -> list[dict[str, Any]]:
    chosen = [vector for vector in parity("migbench_iou") if vector["inputs"]["op"] == operation]
    assert chosen
    return chosen


def item(sample_id: str, task: str, gold: list[float]) -> Sample:
    left, top, right, bottom = gold
    box = Box(left=left, top=top, right=right, bottom=bottom)
    return Sample(sample_id=sample_id, question="Locate it.", task=f"mig_bench/{task}", boxes=(box,))


def test_boxes_are_read_as_the_original_reads_them(parity: Parity) -> None:
    for vector in vectors(parity, "extract_bbox"):
        assert extract_boxes(vector["inputs"]["text"]) == vector["expected"], vector["id"]


def test_iou_equals_the_original(parity: Parity) -> None:
    for vector in vectors(parity, "iou"):
        arguments = (vector["inputs"]["ground_truth"], vector["inputs"]["prediction"])
        if isinstance(vector["expected"], dict):
            with pytest.raises(ZeroDivisionError):
                official_iou(*arguments)
        else:
            assert official_iou(*arguments) == pytest.approx(vector["expected"], abs=1e-9), vector["id"]


def test_a_box_or_gold_of_fewer_numbers_overlaps_nothing() -> None:
    assert official_iou([0.1, 0.2], [0.1, 0.2, 0.3, 0.4]) == 0.0
    assert official_iou([0.1, 0.2, 0.3, 0.4], [0.1, 0.2]) == 0.0


def test_whole_runs_equal_the_original(parity: Parity) -> None:
    for vector in vectors(parity, "evaluate"):
        inputs, expected = vector["inputs"], vector["expected"]
        benchmark = MigBenchmark(
            name="mig_bench",
            tasks=(*TASKS, "x"),
            scales_y_for_migician=inputs["runner"] == "migician_y_scaling",
        )
        samples = [item(str(index), row["task"], row["answer"]) for index, row in enumerate(inputs["items"])]
        answered = [
            Answered(sample=sample, text=text) for sample, text in zip(samples, inputs["responses"], strict=True)
        ]
        result = benchmark.score(answered, "official")
        if "raises" in expected:
            assert result.anomalies[ORIGINAL_CRASHES] == 1, vector["id"]
            assert result.items[0].metrics["iou"] == 0.0
            continue
        ious = [row["iou"] for row in expected["per_item"]]
        assert [scored.metrics["iou"] for scored in result.items] == pytest.approx(ious, abs=1e-9), vector["id"]
        percent = {f"{task}/{name}": value for task, row in expected["percent"].items() for name, value in row.items()}
        assert result.printed == pytest.approx(percent, abs=1e-9), vector["id"]


def test_image_words_and_mmiu_equal_the_original(parity: Parity) -> None:
    for vector in vectors(parity, "image_index"):
        assert image_index(vector["inputs"]["text"]) == vector["expected"], vector["id"]
    for vector in vectors(parity, "mmiu_contains"):
        inputs = vector["inputs"]
        assert mmiu_contains(inputs["reference"], inputs["response"]) == bool(vector["expected"]), vector["id"]


def test_scaling_for_migician_leaves_several_boxes_alone() -> None:
    assert scale_y_for_migician([]) == []
    several = [[0.1, 0.2, 0.3, 0.4], [0.1, 0.2, 0.3, 0.4]]
    assert scale_y_for_migician(several) == several


@pytest.mark.parametrize(
    ("text", "box"),
    [
        ("(0.1, 0.2), (0.3, 0.4)", (0.1, 0.2, 0.3, 0.4)),
        ("(-5,10),(20,30)", (0.0, 0.01, 0.02, 0.03)),
        ("[0.0, 0.0, 1.0, 1.0]", (0.0, 0.0, 1.0, 1.0)),
        ("[0, 0, 1, 1]", (0.0, 0.0, 1.0, 1.0)),
        ("(20,30),(5,10)", (0.005, 0.01, 0.02, 0.03)),
        ("[[28, 586, 362, 793]]", (0.028, 0.586, 0.362, 0.793)),
        ("<box>28 586 362 1200</box>", (0.028, 0.586, 0.362, 1.0)),
        ("[0, 0, 500.5, 1000]", (0.0, 0.0, 0.5005, 1.0)),
    ],
)
def test_a_strict_reading_scales_boxes_as_wholes(text: str, box: tuple[float, ...]) -> None:
    assert strict_boxes(text) == [pytest.approx(box)]


@given(st.lists(st.integers(0, 1000), min_size=4, max_size=4))
def test_both_readings_agree_on_clean_boxes(values: list[int]) -> None:
    left, top, right, bottom = min(values[::2]), min(values[1::2]), max(values[::2]), max(values[1::2])
    text = f"<|box_start|>({left},{top}),({right},{bottom})<|box_end|>"
    if right > 1 or bottom > 1:
        assert strict_boxes(text) == [pytest.approx(tuple(extract_boxes(text)))]


def test_strict_turns_gold_round_and_official_leaves_it() -> None:
    sample = item("0", "diff", [0.4, 0.4, 0.1, 0.1])
    answered = [Answered(sample=sample, text="(100,100),(400,400)")]
    benchmark = find_benchmark("mig_bench/diff")
    for mode, iou in (("official", 0.0), ("strict", 1.0)):
        result = benchmark.score(answered, mode)  # type: ignore[arg-type]
        assert result.metrics["iou"].value == iou
        assert result.anomalies == {BAD_GOLD: 1}


def test_the_average_over_tasks_weighs_tasks_alike() -> None:
    # diff: 1 of 3 hits, region: 1 of 1; micro 2/4, macro (1/3 + 1) / 2 = 2/3.
    gold = [0.1, 0.1, 0.4, 0.4]
    texts = ["(100,100),(400,400)", "none", "(1,2),(3,4),(5,6),(7,8)"]
    answered = [Answered(sample=item(str(index), "diff", gold), text=text) for index, text in enumerate(texts)]
    answered.append(Answered(sample=item("3", "region", gold), text="(100,100),(400,400)"))
    result = find_benchmark("mig_bench").score(answered, "official")
    assert result.metrics["accuracy@0.5"].value == 0.5
    assert result.main_metric == "macro accuracy@0.5"
    assert result.main.value == pytest.approx(2 / 3)
    assert result.main.low < result.main.value < result.main.high
    assert result.anomalies == {UNPARSABLE: 1, SEVERAL_BOXES: 1}
    only = find_benchmark("mig_bench/region").score(answered, "official")
    assert (only.main.value, only.main.count) == (1.0, 1)


def test_an_answer_with_hundreds_of_digits_is_scored_and_written(tmp_path: Path) -> None:
    answered = [Answered(sample=item("7", "region", [0.1, 0.1, 0.4, 0.4]), text=f"(1,2),({'9' * 400},4)")]
    benchmark = find_benchmark("mig_bench")
    assert benchmark.score(answered, "official").metrics["iou"].value == 0.0
    rows = json.loads(benchmark.write_predictions(answered, tmp_path).read_text(), parse_constant=pytest.fail)
    assert rows[0]["filter_answer"][0] == 0.001


def test_the_originals_file_is_written_and_read_with_and_without_ids(tmp_path: Path) -> None:
    gold = [0.1, 0.1, 0.4, 0.4]
    samples = [item("7", "region", gold), item("8", "diff", gold), item("9", "diff", gold)]
    answered = [
        Answered(sample=sample, text=text)
        for sample, text in zip(samples, ["(100,100),(400,400)", "none", "(100,100),(400,400)"], strict=True)
    ]
    benchmark = find_benchmark("mig_bench")
    path = benchmark.write_predictions(answered, tmp_path)
    rows = json.loads(path.read_text())
    assert rows[-1]["diff"] == {"IOU@0.7": 1, "IOU@0.5": 1, "IOU@0.3": 1, "AVE_IOU": 1.0, "TOTAL": 2}
    assert rows[0]["filter_answer"] == [0.1, 0.1, 0.4, 0.4]
    stripped = [{key: value for key, value in row.items() if key != "sample_id"} for row in rows]
    (tmp_path / "foreign.json").write_text(json.dumps(stripped))
    for file in (path, tmp_path / "foreign.json"):
        pairing = pair_predictions(samples, benchmark.read_predictions(file))
        assert [(answer.sample.sample_id, answer.text) for answer in pairing.answered] == [
            (answer.sample.sample_id, answer.text) for answer in answered
        ]
        assert not pairing.gaps.missing and not pairing.gaps.problems
