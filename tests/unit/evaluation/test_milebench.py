from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rsgrpo.evaluation.benchmarks import BENCHMARKS, find_benchmark, find_benchmarks
from rsgrpo.evaluation.benchmarks.base import (
    DOUBLED,
    MISSING,
    ORIGINAL_CRASHES,
    UNPARSABLE,
    Answered,
    BenchmarkError,
    Gaps,
    pair_predictions,
)
from rsgrpo.evaluation.benchmarks.milebench import GOLD_NOT_A_CHOICE, GROUPS, SETS, image_level, rule_of
from rsgrpo.evaluation.benchmarks.milebench_strict import choose, holds_phrase, rouge_l_f1, words_of
from rsgrpo.types import Sample

Parity = Callable[[str], list[dict[str, Any]]]

TITLES = {"multi_choice": "ALFRED", "rouge_l": "ALFRED", "needle": "TextNeedleInAHaystack", "substring": "MMCoQA"}
QUESTION_TYPES = {"multi_choice": "multi-choice"}


def sample(
    sample_id: str, gold: str, num_images: int, choices: list[str] | None = None, kind: str = "open-ended"
) -> Sample:
    return Sample(
        sample_id=sample_id,
        answers=(gold,),
        choices=tuple(choices or ()),
        metadata={"question_type": kind, "num_images": str(num_images)},
    )


def test_all_sets_and_groups_are_registered() -> None:
    assert (len(SETS), [len(names) for names in GROUPS.values()]) == (29, [13, 13, 3])
    assert [benchmark.name for benchmark in find_benchmarks("milebench")] == [f"milebench/{name}" for name in SETS]
    assert len(find_benchmarks("milebench/diagnostic")) == 3
    assert all(f"milebench/{name}" in BENCHMARKS for name in SETS)


def test_variants_are_scored_like_their_set() -> None:
    assert find_benchmark("milebench/ALFRED_combined_1").sets == ("ALFRED",)
    assert find_benchmark("milebench/CLEVR-Change-adv").sets == ("CLEVR-Change",)
    with pytest.raises(BenchmarkError):
        find_benchmark("milebench/Nothing_combined_1")


def test_aggregates_equal_the_original(parity: Parity) -> None:
    for vector in parity("milebench_aggregate"):
        inputs, expected = vector["inputs"], vector["expected"]
        if inputs["op"] == "image_level":
            assert image_level(inputs["n_images"]) == expected, vector["id"]
        if inputs["op"] not in TITLES or "raises" in expected:
            continue
        kind = QUESTION_TYPES.get(inputs["op"], "open-ended")
        images = inputs["n_images_by_sample_id"]
        answered = [
            Answered(
                sample=sample(
                    str(row["sample_id"]), row["gt_response"], images[row["sample_id"]], inputs.get("choice_list"), kind
                ),
                text=row["pred_response"],
            )
            for row in inputs["predictions"]
        ]
        result = find_benchmark(f"milebench/{TITLES[inputs['op']]}").score(answered, "official")
        assert result.printed == pytest.approx(flat(expected["metrics"]), abs=1e-9), vector["id"]
        for item, row in zip(result.items, expected["eval_list"], strict=True):
            assert (item.sample_id, round(item.metrics["score"], 3)) == (row["id"], float(row["score"])), vector["id"]


def flat(metrics: dict[str, Any]) -> dict[str, float]:
    levels = metrics["image_quantity_level-Accuracy"]
    sums = metrics["image_quantity_level-Result"]
    title = next(name for name in metrics if not name.startswith("image"))
    return (
        {title: metrics[title]}
        | {f"image_quantity_level-Accuracy/{level}": value for level, value in levels.items()}
        | {f"image_quantity_level-Result/{level}/sum": value[0] for level, value in sums.items()}
        | {f"image_quantity_level-Result/{level}/n": value[1] for level, value in sums.items()}
    )


def test_dispatch_equals_the_original(parity: Parity) -> None:
    for vector in parity("milebench_aggregate"):
        inputs = vector["inputs"]
        if inputs["op"] != "dispatch":
            continue
        if "raises" in vector["expected"]:
            with pytest.raises(BenchmarkError):
                rule_of(inputs["dataset"], inputs["question_type"])
            continue
        answer = Answered(
            sample=sample(
                "0", inputs["gt_response"], inputs["n_images"], inputs["choice_list"], inputs["question_type"]
            ),
            text=inputs["pred_response"],
        )
        result = find_benchmark(f"milebench/{inputs['dataset']}").score([answer], "official")
        assert result.printed == pytest.approx(flat(vector["expected"]), abs=1e-9), vector["id"]


def test_what_stops_the_original_scores_zero_and_is_counted() -> None:
    benchmark = find_benchmark("milebench/ALFRED")
    known = sample("0", "red", 2, ["red", "blue"], "multi-choice")
    odd = sample("1", "green", 2, ["red", "blue"], "multi-choice")
    missing = sample("2", "red", 2, ["red", "blue"], "multi-choice")
    answered = [Answered(sample=known, text="blue"), Answered(sample=known, text="red"), Answered(sample=odd, text="A")]
    for mode, anomalies in (
        ("official", {DOUBLED: 1, MISSING: 1, ORIGINAL_CRASHES: 1}),
        ("strict", {DOUBLED: 1, MISSING: 1, GOLD_NOT_A_CHOICE: 1}),
    ):
        result = benchmark.score(answered, mode, Gaps(missing=(missing,)))  # type: ignore[arg-type]
        assert result.main.value == pytest.approx(1 / 3)
        assert result.anomalies == anomalies


def test_an_unknown_question_type_is_named() -> None:
    with pytest.raises(BenchmarkError, match="free-form"):
        rule_of("ALFRED", "free-form")


COLOURS = ["red", "light blue", "blue", "an apple"]


@pytest.mark.parametrize(
    ("text", "index"),
    [
        ("The answer is A", 0),
        ("The answer is (D).", 3),
        ("option b", 1),
        ("the answer is a dog", None),
        ("Option B", 1),
        ("d", 3),
        ("(C)", 2),
        ("C. blue", 2),
        ("C. red", None),
        ("B: light blue", 1),
        ("light blue", 1),
        ("It is light blue.", 1),
        ("red or blue", None),
        ("A person holds it", None),
        ("I choose C", 2),
        ("It is A", 0),
        ("", None),
        ("Z", None),
        ("A, not B", None),
        ("B! B.", 1),
        ("Both A and B", None),
    ],
)
def test_a_strict_reading_chooses_one_option_or_none(text: str, index: int | None) -> None:
    assert choose(text, COLOURS) == index


def test_strict_labels_go_beyond_z_and_characters_are_plain() -> None:
    many = [f"image {index}.jpg" for index in range(60)]
    assert choose("AE", many) == 30
    assert choose("image 30.jpg", many) == 30
    assert choose("it is 3.5", ["3", "3.5"]) == 1
    assert choose("$5", ["$6", "$5"]) == 1


def test_strict_words_keep_numbers_whole() -> None:
    assert words_of("It's 1,234.5, U.S.!") == ["it", "s", "1234.5", "u", "s"]
    assert holds_phrase("the blue whale swims", "Blue Whale")
    assert not holds_phrase("bluebird", "blue")
    assert not holds_phrase("anything", "")
    # LCS of "3.5" and "5.3" is empty; of "x y z" and "z y x" one word: 2 * 1 / 6.
    assert rouge_l_f1("3.5", "5.3") == 0.0
    assert rouge_l_f1("x y z", "z y x") == pytest.approx(1 / 3)
    assert rouge_l_f1("the cat sat", "the cat sat on the mat") == pytest.approx(2 / 3)


def test_strict_reads_the_answer_section() -> None:
    answer = Answered(
        sample=sample("0", "red", 2, ["red", "blue"], "multi-choice"),
        text="<observe>blue</observe>\n<evidence>[1]: blue</evidence>\n<think>blue</think>\n<answer>red</answer>",
    )
    assert find_benchmark("milebench/ALFRED").score([answer], "strict").main.value == 1.0
    silent = Answered(sample=answer.sample, text="")
    assert find_benchmark("milebench/ALFRED").score([silent], "strict").anomalies == {UNPARSABLE: 1}


def test_the_originals_file_is_written_and_read(tmp_path: Path) -> None:
    benchmark = find_benchmark("milebench/ALFRED_combined_2")
    samples = [sample("3", "open the door", 7)]
    path = benchmark.write_predictions([Answered(sample=samples[0], text="open it")], tmp_path, model="m")
    assert path == tmp_path / "m" / "ALFRED" / "pred.json"
    (row,) = json.loads(path.read_text())
    assert (row["sample_id"], row["gt_response"], row["pred_response"]) == (3, "open the door", "open it")
    pairing = pair_predictions(samples, benchmark.read_predictions(path.parent))
    assert [answer.text for answer in pairing.answered] == ["open it"]
    assert {group.name for group in benchmark.score(pairing.answered, "strict").groups} == {"Medium"}
    path.write_text(path.read_text()[:-20])
    with pytest.raises(BenchmarkError, match="character"):
        benchmark.read_predictions(path)
