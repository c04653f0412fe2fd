"""Benchmark data as samples: what the scorers need is there, and defects are counted, not dropped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rsgrpo.data.files import DataError
from rsgrpo.data.readers import ReaderOptions, ReaderState, open_reader, read_samples
from rsgrpo.types import Box, ImageRef

SKIP = ReaderOptions(on_bad_record="skip", check_media=False, max_skipped_frac=1.0)


def write(file: Path, content: Any) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content))
    return file


def touch(folder: Path, *paths: str) -> None:
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(b"")


def mile(**changes: Any) -> dict[str, Any]:
    record: dict[str, Any] = {
        "sample_id": 3,
        "task_instruction_id": 1,
        "image_quantity_level": "Few",
        "response": "open the door",
        "task_instance": {
            "context": "{image#1}{image#2} What next?",
            "images_path": ["a.jpg", "b.jpg"],
            "choice_list": ["open the door", "sit"],
            "combined_1_images": ["3-0.jpg"],
        },
    }
    return {**record, **changes}


def mile_file(folder: Path, *records: Any, question_type: str = "multi-choice", meta_first: bool = True) -> Path:
    meta = {"task_instruction": ["First.", "Choose."], "question_type": question_type, "num_sample": len(records)}
    parts = {"meta_data": meta, "data": list(records)}
    if not meta_first:
        parts = dict(reversed(parts.items()))
    return write(folder / "ActionSequence" / "ActionSequence.json", parts)


@pytest.mark.parametrize("meta_first", [True, False])
def test_milebench(tmp_path: Path, meta_first: bool):
    file = mile_file(tmp_path, mile(), meta_first=meta_first)
    touch(file.parent, "images/a.jpg", "images/b.jpg")
    ((sample,), report) = read_samples("milebench", file)
    assert (sample.sample_id, sample.task, sample.answers) == ("3", "milebench/ActionSequence", ("open the door",))
    assert sample.question == "{image#1}{image#2} What next?"
    assert sample.choices == ("open the door", "sit")
    assert [ref.file for ref in sample.images] == [str(file.parent / "images" / name) for name in ("a.jpg", "b.jpg")]
    assert dict(sample.metadata) == {
        "dataset": "ActionSequence",
        "task_instruction": "Choose.",
        "task_instruction_id": "1",
        "question_type": "multi-choice",
        "image_quantity_level": "Few",
        "num_images": "2",
        "images_path": '["a.jpg", "b.jpg"]',
    }
    assert (report.num_records, report.num_samples, report.skipped, report.remarks) == (1, 1, (), ())


def test_milebench_gold_may_be_a_number(tmp_path: Path):
    file = mile_file(tmp_path, mile(response=8432), question_type="open-ended")
    ((sample,), _) = read_samples("milebench", file, options=ReaderOptions(check_media=False))
    assert sample.answers == ("8432",)


def test_milebench_combined_shows_the_canvases_and_counts_the_originals(tmp_path: Path):
    file = mile_file(tmp_path, mile())
    options = ReaderOptions(combined_images=1, check_media=False)
    ((sample,), _) = read_samples("milebench", file, options=options)
    assert sample.images == (ImageRef(path="3-0.jpg", file=str(file.parent / "combined_1_images" / "3-0.jpg")),)
    assert sample.metadata["num_images"] == "2"


def test_milebench_defects_are_counted_by_reason(tmp_path: Path):
    records = [
        mile(),
        mile(),
        mile(sample_id=4, task_instruction_id=2),
        mile(sample_id=5, task_instruction_id="1"),
        mile(sample_id=6, task_instance=None),
        mile(sample_id=7, response="run"),
        {"sample_id": 8, "task_instruction_id": 0, "task_instance": {}},
        3,
    ]
    file = mile_file(tmp_path, *records)
    samples, report = read_samples("milebench", file, options=SKIP)
    assert [sample.sample_id for sample in samples] == ["3", "7"]
    # wrong types: record 3 (an id that is text), 4 (no instance) and 7 (a number instead of a record)
    assert report.counts() == {"id twice": 1, "unknown id": 1, "wrong type": 3, "missing field": 1}
    assert [(remark.reason, remark.count) for remark in report.remarks] == [("gold is no option", 1)]
    with pytest.raises(DataError, match=r"3 × wrong type(.|\n)*record 3 \(from byte(.|\n)*on_bad_record=skip"):
        read_samples("milebench", file, options=ReaderOptions(check_media=False))


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ({"data": []}, "no object meta_data"),
        (
            {"meta_data": {"task_instruction": "x", "question_type": "open-ended"}, "data": []},
            "must be a list of texts",
        ),
        ({"meta_data": {"task_instruction": ["x"], "question_type": "essay"}, "data": []}, "'essay' is not known"),
    ],
)
def test_milebench_without_its_header_is_refused(tmp_path: Path, content: Any, match: str):
    with pytest.raises(DataError, match=match):
        read_samples("milebench", write(tmp_path / "d.json", content))


def haystack(**changes: Any) -> dict[str, Any]:
    conversations = [
        {"from": "human", "value": "For the image with a truck, is there a dog?"},
        {"from": "gpt", "value": "yes"},
    ]
    record = {"conversations": conversations, "pos_image": ["val2017/1.jpg"], "neg_image": ["val2017/2.jpg"]}
    return {**record, **changes}


def test_visual_haystacks(tmp_path: Path):
    touch(tmp_path / "coco", "val2017/1.jpg", "val2017/2.jpg", "val2017/3.jpg")
    two = haystack(pos_image=["val2017/3.jpg", "val2017/1.jpg"])
    file = write(tmp_path / "visual_haystack_2.json", [haystack(), two])
    options = ReaderOptions(media_root=str(tmp_path / "coco"))
    (first, second), report = read_samples("vhs", file, options=options)
    assert (first.sample_id, second.sample_id) == ("000", "001")
    assert first.question == "For the image with a truck, is there a dog?"
    assert (first.answers, first.positive_images, second.positive_images) == (("yes",), (0,), (0, 1))
    assert [ref.path for ref in second.images] == ["val2017/3.jpg", "val2017/1.jpg", "val2017/2.jpg"]
    assert (first.metadata["file"], report.num_skipped) == ("visual_haystack_2", 0)
    with pytest.raises(DataError, match=r"missing media(.|\n)*'val2017/1.jpg' does not exist at"):
        read_samples("vhs", file)


def test_visual_haystacks_defects(tmp_path: Path):
    capital = haystack(conversations=[{"value": "?"}, {"value": "Yes"}])
    records = [capital, haystack(pos_image=[]), haystack(neg_image=[1]), haystack(conversations=[{"value": "?"}])]
    samples, report = read_samples("vhs", write(tmp_path / "v.json", records), options=SKIP)
    assert [(sample.sample_id, sample.answers) for sample in samples] == [("000", ("Yes",))]
    assert report.counts() == {"no needle": 1, "wrong type": 2}
    assert "counts it as missed" in report.remarks[0].examples[0]


def mig(**changes: Any) -> dict[str, Any]:
    record = {
        "task": "diff",
        "images": ["./MIG-Bench/images/x/a.png", "./MIG-Bench/images/x/b.png"],
        "question": "Find the change. ",
        "answer": [0.1, 0.2, 0.4, 0.5],
        "additional_info": "",
        "need_format": True,
    }
    return {**record, **changes}


@pytest.mark.parametrize("place", ["MIG_data.json", "MIG-Bench/MIG_data.json"])
def test_mig_bench_wherever_its_file_lies(tmp_path: Path, place: str):
    touch(tmp_path, "MIG-Bench/images/x/a.png", "MIG-Bench/images/x/b.png")
    file = write(tmp_path / place, [mig(), mig(task="reasoning", additional_info="red", need_format=False)])
    (first, second), report = read_samples("mig_bench", file)
    assert (first.sample_id, first.task, first.question) == ("0", "mig_bench/diff", "Find the change. ")
    assert first.boxes == (Box(left=0.1, top=0.2, right=0.4, bottom=0.5),)
    assert [ref.file for ref in first.images] == [str(tmp_path / "MIG-Bench/images/x" / n) for n in ("a.png", "b.png")]
    assert dict(second.metadata) == {"additional_info": "red", "need_format": "false"}
    assert report.num_skipped == 0


def test_mig_bench_keeps_boxes_that_the_official_score_counts_and_says_so(tmp_path: Path):
    answers = [[0.5, 0.2, 0.4, 0.6], [0.1, 0.2, 1.2, 0.5], [0.1, 0.2, 0.3], ["0.1", 0.2, 0.3, 0.4], None]
    file = write(tmp_path / "m.json", [mig(answer=answer) for answer in answers])
    samples, report = read_samples("mig_bench", file, options=SKIP)
    assert [sample.boxes[0].right for sample in samples] == [0.4, 1.2]
    assert report.counts() == {"wrong type": 3}
    assert {remark.reason: remark.count for remark in report.remarks} == {"box inverted": 1, "box out of range": 1}


def test_evisrag_reads_as_the_trainer_reads_it(tmp_path: Path):
    touch(tmp_path, "imgs/1.png")
    row = {"qid": "q7", "query": "Which?", "answer": ["Q3"], "image": ["imgs/1.png"], "is_sufficient": False}
    (tmp_path / "top3_test.jsonl").write_text(json.dumps(row) + "\n" + json.dumps({**row, "qid": 8}) + "\n")
    (first, second), _ = read_samples("evisrag", tmp_path)
    assert (first.sample_id, second.sample_id, first.answers, first.is_sufficient) == ("q7", "8", ("Q3",), False)
    assert first.images == (ImageRef(path="imgs/1.png", file=str(tmp_path / "imgs/1.png")),)


def test_a_reader_goes_on_from_any_state(tmp_path: Path):
    file = write(tmp_path / "v.json", [haystack(pos_image=[f"{n}.jpg"]) for n in range(9)])
    reader = open_reader("vhs", file, options=SKIP)
    states = [ReaderState()]
    for _ in reader:
        states.append(reader.state)
    for index, state in enumerate(states):
        rest = open_reader("vhs", file, options=SKIP, state=state)
        assert [(sample.sample_id, sample.images[0].path) for sample in rest] == [
            (f"{n:03d}", f"{n}.jpg") for n in range(index, 9)
        ]


def test_a_folder_of_files_is_one_data_set(tmp_path: Path):
    write(tmp_path / "a.json", [mig(), mig()])
    # ids of MIG-Bench are record numbers: a second file's 0 stands twice
    write(tmp_path / "b.json", [mig()])
    samples, report = read_samples("mig_bench", tmp_path, options=SKIP)
    assert (len(samples), report.counts()) == (2, {"id twice": 1})
    assert "b.json record 0 (from byte 1)" in report.skipped[0].examples[0]


def test_a_truncated_file_gives_what_is_whole_and_is_counted(tmp_path: Path):
    file = write(tmp_path / "v.json", [haystack(), haystack()])
    file.write_text(file.read_text()[:-10])
    samples, report = read_samples("vhs", file, options=SKIP)
    assert (len(samples), report.counts()) == (1, {"truncated JSON": 1})
    reader = open_reader("vhs", file, options=ReaderOptions(check_media=False))
    with pytest.raises(DataError, match=r"breaks off at byte \d+ .*last whole record ends at byte \d+"):
        list(reader)
    # where it stopped is where it goes on once the file is whole
    write(file, [haystack(), haystack()])
    rest = open_reader("vhs", file, options=SKIP, state=reader.state)
    assert len(list(rest)) == 1


def test_an_unknown_format_names_the_known_ones(tmp_path: Path):
    with pytest.raises(ValueError, match=r"data.format='voc' is not known; choose one of evisrag, llava"):
        open_reader("voc", tmp_path)


def test_going_on_behind_records_that_are_no_objects_keeps_the_numbers(tmp_path: Path):
    nested = haystack(pos_image=["p.jpg"])
    file = write(tmp_path / "v.json", [3, nested, "x", 4, nested, "y"])
    reader = open_reader("vhs", file, options=SKIP)
    first = next(iter(reader))
    assert (first.sample_id, reader.state.record_index) == ("001", 2)
    rest = open_reader("vhs", file, options=SKIP, state=reader.state)
    assert [sample.sample_id for sample in rest] == ["004"]
    assert rest.report.counts() == {"wrong type": 3}


IMAGES = ["imgs/12.png", "s/2.png", "2.png"]


@pytest.mark.parametrize(
    ("positive", "expected"),
    [
        (["imgs/12.png"], (0,)),
        ("imgs/12.png", (0,)),
        ("12.png", ()),
        ("2.png", (2,)),
        (["./imgs/12.png", "s//2.png"], (0, 1)),
        ([" imgs\\12.png"], (0,)),
        (["imgs/99.png", "2.png"], (2,)),
        ([], ()),
        (None, ()),
    ],
)
def test_gold_pages_are_those_of_equal_paths(tmp_path: Path, positive: object, expected: tuple[int, ...]) -> None:
    row = {"qid": 1, "query": "q", "answer": ["a"], "image": IMAGES, "posImgs": positive}
    (sample,), report = read_samples("evisrag", write(tmp_path / "top3_test.jsonl", row), options=SKIP)
    assert sample.positive_images == expected
    # A gold page that is not among those shown is normal, unless the pages are said to hold the answer.
    assert [remark.reason for remark in report.remarks] == (
        ["gold page not shown"] if positive and not expected else []
    )


@pytest.mark.parametrize("positive", [12, True, 0, {"imgs/12.png": 1}, [["imgs/12.png"]], [12], ["imgs/12.png", None]])
def test_gold_pages_of_another_type_are_named(tmp_path: Path, positive: object) -> None:
    row = {"qid": 1, "query": "q", "answer": ["a"], "image": IMAGES, "posImgs": positive}
    samples, report = read_samples("evisrag", write(tmp_path / "top3_test.jsonl", row), options=SKIP)
    assert samples == () and report.counts() == {"wrong type": 1}
    assert "posImgs must be a list of paths" in report.text()


def test_one_id_in_two_ways_of_writing_it_stands_there_twice(tmp_path: Path) -> None:
    row = {"query": "q", "answer": ["a"], "image": ["a.png"]}
    file = tmp_path / "top3_test.jsonl"
    ids = [4, " 4", 4.0, "4.0", 4.5, True]
    file.write_text("".join(json.dumps(row | {"qid": qid}) + "\n" for qid in ids))
    samples, report = read_samples("evisrag", file, options=SKIP)
    assert [sample.sample_id for sample in samples if "#" not in sample.sample_id] == ["4", "4.0"]
    # 4.5 and true are none; " 4" and 4.0 are 4 again.
    assert report.counts()["wrong type"] == 2
    assert sum(report.counts().values()) + len(samples) == len(ids)
