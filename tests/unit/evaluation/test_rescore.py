from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from rsgrpo.evaluation.benchmarks import find_benchmark
from rsgrpo.evaluation.benchmarks.base import Answered, BenchmarkResult
from rsgrpo.evaluation.rescore.__main__ import main
from rsgrpo.evaluation.rescore.comparison import compare
from rsgrpo.evaluation.rescore.locate import predictions_place
from rsgrpo.types import Box, Sample

PNG = b"\x89PNG"


def lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def evisrag_data(folder: Path, num: int = 4) -> Path:
    return lines(
        folder / "EVisRAG-Test-ChartQA" / "top3_test.jsonl",
        [
            {"qid": f"q{index}", "query": "?", "answer": ["Paris"], "image": ["a.png"], "is_sufficient": index != 3}
            for index in range(num)
        ],
    ).parent


def test_one_set_is_scored_printed_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = evisrag_data(tmp_path)
    predictions = lines(
        tmp_path / "first.jsonl",
        [
            {"qid": "q0", "imgs": [], "pred": "<answer>Paris</answer>"},
            {"qid": "q1", "imgs": [], "pred": "It is Paris"},
            {"qid": "q2", "imgs": [], "pred": "<answer>Lyon</answer>"},
            {"qid": "zz", "imgs": [], "pred": "<answer>Lyon</answer>"},
        ],
    )
    out = tmp_path / "out"
    arguments = ["--benchmark", "evisrag/chartqa", "--data", str(data), "--predictions", str(predictions)]
    assert main([*arguments, "--out", str(out)]) == 0
    content = json.loads((out / "scores.json").read_text())
    modes = content["runs"][0]["modes"]
    # Official: 2 of 3 rows. Strict: only q0 of 4 questions, as q1 has no answer section and q3 is missing.
    assert modes["official"]["metrics"]["accuracy"]["value"] == pytest.approx(2 / 3)
    assert modes["strict"]["metrics"]["accuracy"]["value"] == pytest.approx(1 / 4)
    assert modes["official"]["printed"]["global_acc"] == pytest.approx(2 / 3)
    assert (content["runs"][0]["missing"], content["runs"][0]["unknown_ids"]) == (["q3"], ["zz"])
    assert (out / "scores.png").read_bytes().startswith(PNG)
    items = list(csv.DictReader((out / "items.csv").open()))
    assert {(row["mode"], row["sample_id"]) for row in items} == {
        *(("official", name) for name in ("q0", "q1", "q2")),
        *(("strict", name) for name in ("q0", "q1", "q2", "q3")),
    }
    metrics = list(csv.DictReader((out / "metrics.csv").open()))
    assert {row["group"] for row in metrics} == {"", "pages=answerable", "pages=unanswerable"}
    printed = capsys.readouterr().out
    assert "missing_prediction" in printed and "global_f1" in printed


def test_ids_without_with_too_many_and_with_unknown_predictions_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = evisrag_data(tmp_path, num=12)
    rows = [{"qid": name, "pred": "<answer>Paris</answer>"} for name in ("q0", "zz", "q0", "q0")]
    arguments = ["--benchmark", "evisrag/chartqa", "--data", str(data), "--out", str(tmp_path / "out")]
    assert main([*arguments, "--predictions", str(lines(tmp_path / "run.jsonl", rows))]) == 0
    printed = capsys.readouterr().out.splitlines()
    # Ten of the eleven missing ids are named.
    assert (
        f"run: no prediction for {', '.join(f'q{index}' for index in range(1, 11))} and 1 more (scores.json)" in printed
    )
    assert "run: unknown ids zz" in printed
    assert "run: more than one prediction for q0" in printed
    content = json.loads((tmp_path / "out" / "scores.json").read_text())["runs"][0]
    assert (len(content["missing"]), content["doubled_ids"]) == (11, ["q0", "q0"])


def test_two_runs_are_compared_sample_by_sample(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = evisrag_data(tmp_path, num=12)
    for name, right in (("first", range(2)), ("second", range(1, 10))):
        lines(
            tmp_path / f"{name}.jsonl",
            [
                {"qid": f"q{index}", "pred": f"<answer>{'Paris' if index in right else 'Lyon'}</answer>"}
                for index in range(11)
            ],
        )
    arguments = ["--benchmark", "evisrag/chartqa", "--data", str(data), "--out", str(tmp_path / "out")]
    runs = ["--predictions", str(tmp_path / "first.jsonl"), "--compare", str(tmp_path / "second.jsonl")]
    assert main([*arguments, *runs]) == 0
    content = json.loads((tmp_path / "out" / "scores.json").read_text())
    comparison = content["comparison"]["official"]
    (em,) = [test for test in comparison["tests"] if test["metric"] == "em"]
    # q3 is unanswerable: Paris and Lyon are both wrong there. Better: q2, q4 … q9; worse: q0.
    assert (em["num_better"], em["num_worse"], comparison["num_pairs"]) == (7, 1, 11)
    # McNemar: 2 * P(Binomial(8, 1/2) <= 1) = 2 * 9 / 256
    assert em["p_value"] == pytest.approx(18 / 256)
    assert em["difference"]["value"] == pytest.approx(6 / 11)
    rows = [row for row in csv.DictReader((tmp_path / "out" / "comparison.csv").open()) if row["metric"] == "em"]
    assert [row["sample_id"] for row in rows if row["mode"] == "official" and float(row["difference"]) < 0] == ["q0"]
    assert "McNemar" in capsys.readouterr().out


def result_of(ious: dict[str, float]) -> BenchmarkResult:
    answered = [
        Answered(
            sample=Sample(sample_id=name, task="mig_bench/diff", boxes=(Box(left=0, top=0, right=1, bottom=1),)),
            text=f"(0,0),(1000,{round(1000 * iou)})",
        )
        for name, iou in ious.items()
    ]
    return find_benchmark("mig_bench/diff").score(answered, "official")


def test_a_graded_metric_is_tested_by_ranks() -> None:
    first = result_of({"a": 0.1, "b": 0.2, "c": 0.3, "d": 0.4, "only": 0.5})
    second = result_of({"a": 0.2, "b": 0.4, "c": 0.6, "d": 0.8})
    comparison = compare(first, second)
    assert (comparison.num_only_first, comparison.num_only_second) == (1, 0)
    (iou,) = [test for test in comparison.tests if test.metric == "iou"]
    # Four positive differences of four: the exact signed-rank p is 2 / 2^4.
    assert iou.test == "Wilcoxon signed-rank"
    assert iou.p_value == pytest.approx(1 / 8)
    assert iou.difference.value == pytest.approx(0.25)


def test_equal_runs_do_not_differ() -> None:
    result = result_of({"a": 0.1, "b": 0.9})
    assert [test.p_value for test in compare(result, result).tests] == [1.0] * 4
    assert compare(result, result_of({"z": 0.5})).tests == ()


def milebench_set(root: Path, name: str, question_type: str, **instance: Any) -> None:
    lines(root / name / f"{name}.json", [])
    content = {
        "meta_data": {"task_instruction": ["Do."], "question_type": question_type, "num_sample": 2},
        "data": [
            {
                "sample_id": index,
                "task_instruction_id": 0,
                "image_quantity_level": "Few",
                "response": "red",
                "task_instance": {"context": "{image#1}?", "images_path": ["a.jpg"], **instance},
            }
            for index in range(2)
        ],
    }
    (root / name / f"{name}.json").write_text(json.dumps(content))


def test_a_family_is_scored_set_by_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, runs = tmp_path / "MileBench", tmp_path / "outputs" / "model"
    milebench_set(data, "ALFRED", "open-ended")
    milebench_set(data, "ActionSequence", "multi-choice", choice_list=["blue", "red"])
    for name, texts in (("ALFRED", ["red", "nothing"]), ("ActionSequence", ["The answer is B", "A"])):
        rows = [{"sample_id": index, "pred_response": text, "gt_response": "red"} for index, text in enumerate(texts)]
        (runs / name).mkdir(parents=True)
        (runs / name / "pred.json").write_text(json.dumps(rows))
    arguments = ["--benchmark", "milebench", "--data", str(data), "--predictions", str(runs)]
    assert main([*arguments, "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "milebench/DocVQA: no data, left out" in printed
    assert "mean of realistic_temporal (1)" in printed
    modes = json.loads((tmp_path / "out" / "ActionSequence" / "scores.json").read_text())["runs"][0]["modes"]
    # Official reads "The answer is B" as AB.
    assert modes["official"]["metrics"]["score"]["value"] == 0.0
    assert modes["strict"]["metrics"]["score"]["value"] == 0.5


def test_haystacks_and_boxes_are_rescored_from_the_originals_files(tmp_path: Path) -> None:
    record = {
        "conversations": [{"from": "human", "value": "a dog?"}, {"from": "gpt", "value": "yes"}],
        "pos_image": ["a.jpg"],
        "neg_image": ["b.jpg"],
    }
    haystack = tmp_path / "visual_haystack_2.json"
    haystack.write_text(json.dumps([record, record]))
    (tmp_path / "2_images").mkdir()
    for index, text in enumerate(("Yes.", "No.")):
        result = {"image_paths": ["b.jpg", "a.jpg"], "response": text, "log": None}
        (tmp_path / "2_images" / f"{index:03d}.json").write_text(json.dumps(record | {"result": result}))
    boxes = tmp_path / "MIG_data.json"
    item = {"task": "diff", "images": ["a.jpg", "b.jpg"], "question": "?", "additional_info": "", "need_format": True}
    boxes.write_text(json.dumps([item | {"answer": [0.1, 0.1, 0.4, 0.4]}]))
    answers = tmp_path / "qwen2_vl_diff_1.json"
    answers.write_text(json.dumps([{"task": "diff", "answer": "(100,100),(400,400)"}, {"diff": {"TOTAL": 1}}]))
    for name, data, predictions in (("vhs/single", haystack, tmp_path / "2_images"), ("mig_bench", boxes, answers)):
        out = tmp_path / name
        arguments = ["--benchmark", name, "--data", str(data), "--predictions", str(predictions), "--out", str(out)]
        assert main(arguments) == 0
        content = json.loads((out / "scores.json").read_text())
        official = content["runs"][0]["modes"]["official"]
        expected = {"vhs/single": 0.5, "mig_bench": 1.0}[name]
        assert official["metrics"][official["main_metric"]]["value"] == expected
        assert official["anomalies"] == {}


def test_what_is_wrong_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = evisrag_data(tmp_path)
    arguments = ["--data", str(data), "--predictions", str(tmp_path / "none.jsonl"), "--out", str(tmp_path)]
    assert main(["--benchmark", "evisrag/chartqa", *arguments]) == 1
    assert "none.jsonl" in capsys.readouterr().err
    assert main(["--benchmark", "evisrag/chart", *arguments]) == 1
    assert "evisrag/chartqa" in capsys.readouterr().err


def test_hidden_copies_beside_predictions_do_not_make_them_several(tmp_path: Path):
    for name in ("base.jsonl", "._base.jsonl", "m_ocr.json"):
        (tmp_path / name).write_text("{}")
    assert predictions_place(find_benchmark("evisrag/chartqa"), tmp_path) == tmp_path / "base.jsonl"


def test_the_section_with_the_answer_can_be_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = evisrag_data(tmp_path)
    rows = [{"qid": f"q{index}", "pred": "<plan>Lyon</plan><final>Paris</final>"} for index in range(3)]
    predictions = lines(tmp_path / "run.jsonl", rows)
    arguments = ["--benchmark", "evisrag/chartqa", "--data", str(data), "--predictions", str(predictions)]
    arguments += ["--out", str(tmp_path / "out")]
    values = []
    for more in ([], ["--answer-section", "final"]):
        assert main([*arguments, *more]) == 0
        modes = json.loads((tmp_path / "out" / "scores.json").read_text())["runs"][0]["modes"]
        values.append([modes[mode]["metrics"]["em"]["value"] for mode in ("official", "strict")])
    # three right answers of four questions; official leaves the missing one out. The public tag finds none of them.
    assert values == [[0.0, 0.0], [1.0, 0.75]]
    assert main([*arguments, "--answer-section", "<final>"]) != 0
    assert "--answer-section='<final>' is no name of a tag" in capsys.readouterr().err
