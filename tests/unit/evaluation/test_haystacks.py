from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rsgrpo.evaluation.benchmarks import find_benchmark
from rsgrpo.evaluation.benchmarks.base import (
    DOUBLED,
    MISSING,
    ORIGINAL_CRASHES,
    UNPARSABLE,
    Answered,
    BenchmarkError,
    BenchmarkResult,
    Gaps,
    pair_predictions,
)
from rsgrpo.evaluation.benchmarks.haystack_bootstrap import Reply, printed_numbers
from rsgrpo.evaluation.benchmarks.haystack_files import needle_positions, read_folder
from rsgrpo.evaluation.benchmarks.haystack_text import holds_token, is_compliant, strict_answer
from rsgrpo.types import ImageRef, Sample

Parity = Callable[[str], list[dict[str, Any]]]


def vectors(parity: Parity, operation: str) -> list[dict[str, Any]]:
    chosen = [vector for vector in parity("vhs") if vector["inputs"]["op"] == operation]
    assert chosen
    return chosen


def haystack_sample(
    sample_id: str = "000", gold: str = "yes", num_needles: int = 1, num_distractors: int = 3
) -> Sample:
    names = [f"p{index}.jpg" for index in range(num_needles)] + [f"n{index}.jpg" for index in range(num_distractors)]
    return Sample(
        sample_id=sample_id,
        question="For the image with a truck, is there a dog?",
        images=tuple(ImageRef(path=name) for name in names),
        answers=(gold,),
        positive_images=tuple(range(num_needles)),
    )


def reply_of(row: dict[str, Any], text: str) -> Reply:
    return Reply(
        is_correct=holds_token(text, row["ground_truth"]),
        is_compliant=is_compliant(text),
        retrieved=tuple(row.get("retrieval_output", ())),
        relevant=tuple(row.get("retrieval_ground_truth", ())),
    )


def test_single_replies_score_as_in_the_original(parity: Parity) -> None:
    for vector in vectors(parity, "sample"):
        response, gold = vector["inputs"]["response"], vector["inputs"]["ground_truth"]
        found = (int(holds_token(response, gold)), int(is_compliant(response)))
        assert found == (vector["expected"]["correct"], vector["expected"]["compliant"]), vector["id"]


@pytest.mark.parametrize(
    "text",
    ["‘Yes’", "’yes’", "''yes''", "yes's", "yes're.", "yesn't", "yes'", "yes'x", ":yes", ":,:yes", "--yes", "----yes"],
)
def test_a_word_is_cut_off_where_nltk_cuts(text: str) -> None:
    assert holds_token(text, "yes")


@pytest.mark.parametrize("text", ["'yes", "yes't", "yes'stop", ",:yes", "-yes", "---yes", "yes:3", "yes.no", "yesn'ts"])
def test_a_word_is_not_cut_off_where_nltk_does_not(text: str) -> None:
    assert not holds_token(text, "yes")


def test_bootstraps_equal_the_original(parity: Parity) -> None:
    for vector in vectors(parity, "bootstrap"):
        records = [[reply_of(row, row["response"])] for row in vector["inputs"]["rows"]]
        printed = printed_numbers(records, vector["inputs"]["numpy_legacy_seed"]).numbers
        for name, value in printed.items():
            assert value == pytest.approx(vector["expected"][name], abs=1e-9), vector["id"]


def test_positional_bootstraps_equal_the_original(parity: Parity) -> None:
    for vector in vectors(parity, "positional_bootstrap"):
        records = [[reply_of(row, text) for text in row["responses"]] for row in vector["inputs"]["rows"]]
        printed = printed_numbers(records, vector["inputs"]["numpy_legacy_seed"]).numbers
        expected = dict(vector["expected"])
        for title in ("correct", "compliant", "total"):
            counts = expected.pop(f"per_position_{title}")
            for position, count in enumerate(counts if len(counts) > 1 else []):
                assert printed[f"position_{position}_{title}"] == count, vector["id"]
        for name, value in expected.items():
            assert printed[name] == pytest.approx(value, abs=1e-9), vector["id"]


def test_mirages_numbers_equal_the_original_as_printed(parity: Parity) -> None:
    for vector in vectors(parity, "mirage_eval"):
        records = [[reply_of(row, row["response"])] for row in vector["inputs"]["rows"]]
        printed = printed_numbers(records, vector["inputs"]["numpy_legacy_seed"])
        if "raises" in vector["expected"]:
            assert printed.num_undefined > 0, vector["id"]
            continue
        assert printed.num_undefined == 0
        numbers = {name: value for name, value in vector["expected"].items() if name != "rounding"}
        assert printed.numbers == pytest.approx(numbers, abs=6e-5), vector["id"]


def test_a_doubled_positional_reply_is_no_further_position() -> None:
    sample = haystack_sample()
    answered = [
        Answered(sample=sample, text=text, needle_position=at) for at, text in ((0, "no"), (1, "yes"), (0, "yes"))
    ]
    result = find_benchmark("vhs/positional").score(answered, "official")
    assert {name for name in result.printed if name.endswith("_total")} == {"position_0_total", "position_1_total"}
    assert (result.main.value, result.anomalies[DOUBLED]) == (1.0, 1)


def test_an_undefined_ratio_counts_as_zero_and_is_counted() -> None:
    # Nothing was retrieved: precision is 0/0 in every one of the 100 resamples; recall is 0/1.
    printed = printed_numbers([[Reply(is_correct=True, is_compliant=True, retrieved=(0, 0), relevant=(1, 0))]])
    assert printed.num_undefined == 100
    assert (printed.numbers["precision_mean"], printed.numbers["recall_mean"]) == (0.0, 0.0)


def test_a_strict_reading_takes_no_both_ways() -> None:
    assert [strict_answer(text) for text in ("Yes and no", "yes/no", "Yes-no", "maybe", "know", "")] == [""] * 6
    assert [strict_answer(text) for text in ("Yes, there is no cat.", "**Yes**", "'yes'")] == ["yes"] * 3
    assert [strict_answer(text) for text in ("There is no dog", "no—definitely", "No. Yes was wrong.")] == ["no"] * 3


def test_strict_scores_fix_gold_and_count_missing_and_doubled_predictions() -> None:
    benchmark = find_benchmark("vhs/single")
    samples = [haystack_sample("000", "Yes"), haystack_sample("001", "no"), haystack_sample("002")]
    answered = [
        Answered(sample=samples[0], text="Yes"),
        Answered(sample=samples[1], text="Yes and no"),
        Answered(sample=samples[1], text="<answer>no</answer>"),
    ]
    gaps = Gaps(missing=(samples[2],))
    official = benchmark.score(answered, "official", gaps)
    # Official: "Yes" as gold is in no lower-cased text; both-ways counts for no; rows 1, 2, 3.
    assert official.main.value == pytest.approx(2 / 3)
    strict = benchmark.score(answered, "strict", gaps)
    # Strict: question 0 and 1 (last row) right, question 2 missing.
    assert strict.main.value == pytest.approx(2 / 3)
    for result in (official, strict):
        assert (result.anomalies[DOUBLED], result.anomalies[MISSING]) == (1, 1)
    assert UNPARSABLE not in strict.anomalies


def rescored(name: str, samples: list[Sample], path: Path) -> BenchmarkResult:
    benchmark = find_benchmark(name)
    pairing = pair_predictions(samples, benchmark.read_predictions(path))
    return benchmark.score(pairing.answered, "official", pairing.gaps)


def test_the_originals_files_are_written_and_read(tmp_path: Path) -> None:
    samples = [haystack_sample("000"), haystack_sample("001", "no")]
    answered = [Answered(sample=sample, text="Yes") for sample in samples]
    path = find_benchmark("vhs/single").write_predictions(answered, tmp_path, model="m")
    assert sorted(file.name for file in path.iterdir()) == ["000.json", "001.json"]
    record = json.loads((path / "001.json").read_text())
    assert record["conversations"][1]["value"] == "no"
    assert record["result"]["response"] == "Yes"
    assert (record["pos_image"], record["neg_image"][0]) == (["p0.jpg"], "n0.jpg")
    assert rescored("vhs/single", samples, path).main.value == 0.5
    (path / "002.json").write_text('{"result"')
    assert rescored("vhs/single", samples, path.parent).anomalies["unreadable_row"] == 1


def test_positional_replies_of_a_question_lie_in_one_file(tmp_path: Path) -> None:
    sample = haystack_sample()
    texts = ["Yes", "No", "", "Yes"]
    answered = [
        Answered(sample=sample, text=text, needle_position=position)
        for position, text in zip(needle_positions(4), texts, strict=True)
    ]
    path = find_benchmark("vhs/positional").write_predictions(answered, tmp_path)
    record = json.loads((path / "000.json").read_text())
    assert record["response"] == texts
    del record["needle_positions"]  # as the original writes it
    (path / "000.json").write_text(json.dumps(record))
    result = rescored("vhs/positional", [sample], path)
    assert result.main.value == 0.5
    assert [(group.name, group.metrics["accuracy"].value) for group in result.groups if "needle" in group.kind] == [
        ("0", 1.0),
        ("1", 0.0),
        ("2", 0.0),
        ("3", 1.0),
    ]
    # One question: every resample is that question, once.
    assert result.printed["accuracy_mean"] == 0.5
    assert result.printed["position_3_correct"] == 100


def test_mirages_files_carry_retrieval_flags(tmp_path: Path) -> None:
    (tmp_path / "0.json").write_text(
        json.dumps(
            {
                "conversations": [{"value": "q"}, {"value": "yes"}],
                "result": {"response": "yes", "retrieval_output": [1, 1], "retrieval_ground_truth": [0, 1]},
            }
        )
    )
    printed = rescored("vhs/single", [haystack_sample("000")], tmp_path).printed
    assert (printed["recall_mean"], printed["precision_mean"]) == (1.0, 0.5)


def test_a_folder_of_several_sizes_is_refused(tmp_path: Path) -> None:
    for size in ("2_images", "3_images"):
        (tmp_path / size).mkdir()
    with pytest.raises(BenchmarkError, match="one size"):
        find_benchmark("vhs/single").read_predictions(tmp_path)


def test_an_undefined_ratio_shows_among_the_anomalies() -> None:
    answered = [Answered(sample=haystack_sample(), text="yes", retrieved=(0,), relevant=(0,))]
    assert find_benchmark("vhs/single").score(answered, "official").anomalies[ORIGINAL_CRASHES] == 200


def test_hidden_copies_in_a_folder_of_answers_are_no_answers(tmp_path: Path):
    (tmp_path / "000.json").write_text('{"result": {"response": "Yes"}}')
    (tmp_path / "._000.json").write_bytes(b"\0\5\x16\7\0\2\0\0Mac OS X")
    found = read_folder(tmp_path)
    assert [prediction.sample_id for prediction in found.predictions] == ["000"]
    assert not found.problems
