"""Conversations with images in four formats, manifests, and what is wrong with them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from rsgrpo.config import DATA_FORMATS
from rsgrpo.data.files import DataError
from rsgrpo.data.readers import FORMATS, ReaderOptions, open_reader, read_samples
from rsgrpo.data.readers.indexed import IndexedSamples
from rsgrpo.types import Box, Sample, Turn

SKIP = ReaderOptions(on_bad_record="skip", check_media=False, max_skipped_frac=1.0)
Q, A = "user", "assistant"


def write(file: Path, content: Any) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix == ".jsonl":
        file.write_text("".join(json.dumps(row) + "\n" for row in content))
    else:
        file.write_text(json.dumps(content))
    return file


def said(*texts: str, **more: Any) -> dict[str, Any]:
    turns = [{"from": ("human", "gpt")[n % 2], "value": text} for n, text in enumerate(texts)]
    return {"conversations": turns, **more}


def read(tmp_path: Path, format: str, *records: Any) -> tuple[tuple[Sample, ...], dict[str, int], dict[str, int]]:
    samples, report = read_samples(format, write(tmp_path / "d.json", list(records)), options=SKIP)
    return samples, report.counts(), {remark.reason: remark.count for remark in report.remarks}


def turns(sample: Sample) -> list[tuple[str, str]]:
    return [(turn.role, turn.text) for turn in sample.turns]


def test_the_settings_know_all_formats():
    assert set(DATA_FORMATS) == set(FORMATS)


def test_llava_images_as_text_as_list_and_none(tmp_path: Path):
    samples, skipped, _ = read(
        tmp_path,
        "llava",
        said("<image>\nQ", "A", id="x", image="sub/a.jpg"),
        said("<image><image>\nQ", "A", "more?", "B", id=7, image=["a.jpg", "b.jpg"]),
        said("Q", "A", id="t"),
        said("What is in <image> here?", "A", id="m", image="a.jpg"),
        said("<image> or <image>?", "A", id="two", image=["a.jpg", "b.jpg"]),
    )
    assert not skipped
    assert [sample.sample_id for sample in samples] == ["x", "7", "t", "m", "two"]
    assert [len(sample.images) for sample in samples] == [1, 2, 0, 1, 2]
    assert samples[0].images[0].file == str(tmp_path / "sub/a.jpg")
    assert turns(samples[1]) == [(Q, "<image><image>\nQ"), (A, "A"), (Q, "more?"), (A, "B")]
    # a turn's only marker moves to its front, as in LLaVA-NeXT; two stay where they are
    assert turns(samples[3])[0] == (Q, "<image>\nWhat is in  here?")
    assert turns(samples[4])[0] == (Q, "<image> or <image>?")


def test_llava_defects_by_reason(tmp_path: Path):
    samples, skipped, remarks = read(
        tmp_path,
        "llava",
        said("<image>\nQ", "A", image=["a.jpg", "b.jpg"]),
        said("<image>\nQ", "A"),
        said("Q", "the <image>", image="a.jpg"),
        said("Q", ""),
        said("Q", "A", "and?"),
        {"conversations": [{"from": "human", "value": "Q"}, {"from": "narrator", "value": "A"}]},
        {"conversations": "Q"},
        said("<image>Q", "A", image=3),
        said("<video>Q", "A", video="v.mp4"),
        {"conversations": [{"from": "gpt", "value": "Hi"}, *said("Q", "A")["conversations"]], "id": "kept"},
        said("Q", "A", id="kept"),
    )
    assert skipped == {"markers": 3, "empty answer": 1, "turns": 1, "role": 1, "wrong type": 2, "video": 1}
    # an id that stands twice gets its record number, and nothing is lost
    assert [sample.sample_id for sample in samples] == ["kept", "kept#10"]
    assert remarks == {"first turn is an answer": 1, "id twice": 1}


def test_a_video_is_read_as_its_frames(tmp_path: Path):
    for number in range(5):
        write(tmp_path / "clips/v" / f"{number}.jpg", [])
    options = ReaderOptions(max_frames=3)
    file = write(tmp_path / "d.json", [said("<video>\nQ", "A", video="clips/v.mp4")])
    ((sample,), _) = read_samples("llava", file, options=options)
    # first, middle and last of five
    assert [image.path for image in sample.images] == [f"clips/v/{n}.jpg" for n in (0, 2, 4)]
    assert turns(sample)[0] == (Q, "<image><image><image>\nQ")


def test_sharegpt_in_both_layouts_with_a_system_turn(tmp_path: Path):
    messages = [{"role": "system", "content": "S"}, {"role": "user", "content": "<image>Q"}]
    messages.append({"role": "assistant", "content": "A"})
    samples, skipped, _ = read(
        tmp_path,
        "sharegpt",
        {"messages": messages, "images": ["a.jpg"]},
        said("<image>Q", "A", images=["a.jpg"], system="S"),
        said("<image>Q", "A", images=[]),
    )
    assert turns(samples[0]) == turns(samples[1]) == [("system", "S"), (Q, "<image>Q"), (A, "A")]
    assert skipped == {"markers": 1}


def test_mirage_puts_one_marker_an_image_in_front_and_keeps_the_labels(tmp_path: Path):
    samples, skipped, _ = read(
        tmp_path,
        "mirage",
        said("Is <image> it?", "yes", image=["a.jpg", "b.jpg"], relevant_images=[0, 1]),
        said("Q", "A", image="a.jpg"),
        said("Q", "A", image=["a.jpg", "b.jpg"], relevant_images=[1]),
        said("Q", "A", image=["a.jpg"], relevant_images=[2]),
        said("Q", "A", image=["a.jpg", "b.jpg"], relevant_images=[0, 0]),
    )
    assert turns(samples[0])[0] == (Q, "<image><image>\nIs  it?")
    assert [sample.positive_images for sample in samples] == [(1,), (0,)]
    assert skipped == {"relevance": 3}


def grounded(answer: str) -> dict[str, Any]:
    return said(
        "<image>\n<image>\nFind <|object_ref_start|>a cup<|object_ref_end|>.", answer, images=["a.jpg", "b.jpg"]
    )


def test_mgrounding_boxes_are_read_and_checked(tmp_path: Path):
    two = "<|box_start|>(1,2),(3,4)<|box_end|> and <|box_start|>(0,0),(1000,1000)<|box_end|>"
    samples, skipped, _ = read(
        tmp_path,
        "mgrounding",
        {**grounded("There: <|box_start|>(100,20),(300,400)<|box_end|>"), "id": "1_2", "type": "gg_train"},
        {**grounded(two), "id": "2"},
        grounded("<|box_start|>(300,20),(100,400)<|box_end|>"),
        grounded("<|box_start|>(100,20),(300,1400)<|box_end|>"),
        grounded("<|box_start|>100,20,300,400<|box_end|>"),
        grounded("<|box_start|>(100,20),(300,400)"),
    )
    assert (samples[0].sample_id, samples[0].task) == ("1_2", "gg_train")
    assert samples[0].boxes == (Box(left=0.1, top=0.02, right=0.3, bottom=0.4),)
    assert [box.right for box in samples[1].boxes] == [0.003, 1.0]
    assert skipped == {"box inverted": 1, "box out of range": 1, "box malformed": 2}


def numbered(count: int) -> list[dict[str, Any]]:
    return [said("Q", "A", id=str(n)) for n in range(count)]


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [("all", 7), ("first:3", [0, 1, 2]), ("end:2", [5, 6]), ("first:20%", [0, 1]), ("end:1%", [6]), ("first:99", 7)],
)
def test_sampling_by_hand(tmp_path: Path, sampling: str, expected: Any):
    # 20 % of 7 is 1.4 and 1 % is 0.07: shares are rounded up to 2 and 1
    file = write(tmp_path / "d.json", numbered(7))
    samples, report = read_samples("llava", file, options=ReaderOptions(sampling=sampling))
    wanted = list(range(expected)) if isinstance(expected, int) else expected
    assert [int(sample.sample_id) for sample in samples] == wanted
    assert report.num_records == len(wanted)


def test_random_sampling_goes_by_the_seed_and_keeps_the_order(tmp_path: Path):
    file = write(tmp_path / "d.jsonl", numbered(100))

    def drawn(seed: int, sampling: str) -> list[int]:
        options = ReaderOptions(sampling=sampling, seed=seed)
        return [int(sample.sample_id) for sample in open_reader("llava", file, options=options)]

    first = drawn(0, "random:10")
    assert (len(set(first)), first) == (10, sorted(first))
    assert drawn(0, "random:10%") == first != drawn(1, "random:10")


def test_a_manifest_and_braces_name_several_files(tmp_path: Path):
    for name, count in (("a.json", 4), ("b1.jsonl", 3), ("b2.jsonl", 2)):
        write(tmp_path / "sub" / name, numbered(count))
    manifest = tmp_path / "data.yaml"
    manifest.write_text(
        "datasets:\n- json_path: sub/a.json\n  sampling_strategy: end:50%\n- json_path: 'sub/b{1,2}.jsonl'\n"
    )
    ids = [sample.sample_id for sample in open_reader("llava", manifest)]
    # the files' ids collide: the second of a name gets its record number
    assert ids == ["2", "3", "0", "1", "2#2", "0#0", "1#1"]
    with pytest.raises(DataError, match="says itself how to sample"):
        open_reader("llava", manifest, options=ReaderOptions(sampling="first:1"))


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("datasets: []", "no list 'datasets'"),
        ("datasets: [{path: a}]", "entry 0 has no json_path"),
        ("datasets: [{json_path: a.json, sampling_strategy: 3}]", "must be text, got 3"),
        ("a: [", "cannot be read as a YAML manifest"),
    ],
)
def test_a_bad_manifest_is_refused(tmp_path: Path, text: str, match: str):
    (tmp_path / "m.yaml").write_text(text)
    with pytest.raises(DataError, match=match):
        open_reader("llava", tmp_path / "m.yaml")


@pytest.mark.parametrize("sampling", ["some", "first:", "random:101%", "first:-1"])
def test_an_unknown_sampling_is_refused(tmp_path: Path, sampling: str):
    with pytest.raises(DataError, match="choose all, first:N"):
        open_reader("llava", write(tmp_path / "d.json", []), options=ReaderOptions(sampling=sampling))


@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_any_record_can_be_read_by_number(tmp_path: Path, suffix: str):
    good = [said("<image>\nQ é " + "long " * 50, f"A{n}", id=n, image=f"{n}.jpg") for n in range(40)]
    bad = [said("Q"), 3, said("<image>", "A")]
    rows = [bad[1], good[0], bad[0], *good[1:20], bad[2], "x", *good[20:]]
    file = write(tmp_path / f"d{suffix}", rows)
    samples = IndexedSamples("llava", str(file), SKIP)
    assert len(samples) == 40
    assert samples.report.num_skipped == 4
    for index in reversed(range(40)):
        sample = samples.sample(index)
        assert (sample.sample_id, sample.turns[1]) == (str(index), Turn(role=A, text=f"A{index}"))
        assert rows[samples.number(index)]["id"] == index  # type: ignore[index]
    file.write_bytes(file.read_bytes()[: math.floor(file.stat().st_size / 2)])
    again = IndexedSamples("llava", str(file), SKIP)
    assert again.report.counts()["truncated JSON"] == 1
    with pytest.raises(DataError, match="was changed after it was read first"):
        samples.sample(39)


def test_benchmarks_can_be_read_by_number_too(tmp_path: Path):
    meta = {"task_instruction": ["I"], "question_type": "open-ended"}
    instance = {"context": "C", "images_path": ["a.jpg"]}
    data = [
        {"sample_id": n, "task_instruction_id": 0, "response": f"r{n}", "task_instance": instance} for n in range(5)
    ]
    file = write(tmp_path / "S" / "S.json", {"meta_data": meta, "data": data})
    samples = IndexedSamples("milebench", str(file), SKIP)
    assert [samples.sample(n).answers for n in (4, 0, 2)] == [("r4",), ("r0",), ("r2",)]
