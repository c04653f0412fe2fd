"""Data sets in EVisRAG's two layouts, and every defect that must be named before a worker starts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from rsgrpo.config import DataConfig, ResponseFormat, SectionRule
from rsgrpo.config.image_rules import ImageRules
from rsgrpo.data.evisrag_files import load_samples, split_markers, write_evisrag
from rsgrpo.data.files import DataError
from rsgrpo.data.images.loading import load_image
from rsgrpo.data.readers.findings import BadRecordError
from rsgrpo.types import ImageRef, Sample

GOLD = (
    "<observe>a bar chart</observe>\n<evidence>\n[1]: Team A won 3-1\n[2]: no relevant information\n</evidence>\n"
    "<think>A has more</think>\n<answer>Team A</answer>"
)


def write_lines(file: Path, rows: list[dict[str, Any]]) -> str:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def write_image(folder: Path, path: str) -> None:
    (folder / path).parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (32, 28)).save(folder / path)


def train_row(**changes: Any) -> dict[str, Any]:
    row = {"prompt": "<image><image>\nWho won?\n", "answer": GOLD, "image": ["imgs/1.png", "imgs/2.png"]}
    return {**row, **changes}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in (1, 2, 3):
        write_image(tmp_path, f"imgs/{number}.png")
    return tmp_path


def load(path: str, *, is_training: bool = True, **settings: Any) -> tuple[Sample, ...]:
    return load_samples(path, DataConfig(**settings), is_training=is_training).samples


def test_train_layout(folder: Path):
    path = write_lines(folder / "train.jsonl", [train_row(), train_row(qid=7, source="chart", level=[1, 2])])
    first, second = load(path)
    assert first.sample_id == "train-1"
    assert first.prompt == "<image><image>\nWho won?\n"
    assert (first.question, first.gold_response, first.answers) == ("", GOLD, ("Team A",))
    assert first.is_sufficient
    assert first.images == tuple(ImageRef(path=f"imgs/{n}.png", file=str(folder / f"imgs/{n}.png")) for n in (1, 2))
    assert (second.sample_id, dict(second.metadata)) == (
        "7",
        {"source": "chart", "level": "[1, 2]", "id_is_number": "true"},
    )


def test_gold_that_refuses_makes_a_question_unanswerable(folder: Path):
    refusal = GOLD.replace("Team A</answer>", "Insufficient to answer.</answer>")
    (sample,) = load(write_lines(folder / "train.jsonl", [train_row(answer=refusal)]))
    assert not sample.is_sufficient


def test_test_layout(folder: Path):
    row: dict[str, Any] = {"qid": "q7", "query": "Which quarter?", "answer": ["Q3", "third"]}
    row |= {"image": ["imgs/3.png", "imgs/1.png"], "posImgs": ["imgs/1.png"], "is_sufficient": False}
    write_lines(folder / "top3_test.jsonl", [row])
    write_lines(folder / "aaa.jsonl", [row, row])  # the folder's test file wins over any other
    (sample,) = load(str(folder), is_training=False)
    assert (sample.sample_id, sample.question, sample.answers) == ("q7", "Which quarter?", ("Q3", "third"))
    assert (sample.is_sufficient, sample.positive_images, sample.gold_response) == (False, (1,), "")


def test_an_answer_that_is_text_is_one_answer_not_its_letters(folder: Path):
    row = {"qid": "q", "query": "?", "answer": "yes", "image": "imgs/1.png"}
    (sample,) = load(write_lines(folder / "t.jsonl", [row]))
    assert (sample.answers, len(sample.images)) == (("yes",), 1)


def test_pages_come_from_the_table_where_files_are_absent(tmp_path: Path):
    images = {f"imgs/{n}.png": Image.new("RGB", (30, 28), (n, 0, 0)) for n in (1, 2)}
    samples = [Sample(sample_id="a", question="?", images=tuple(ImageRef(path=p) for p in images), gold_response=GOLD)]
    write_evisrag(tmp_path / "d.jsonl", samples, images, layout="train", as_table=True)
    Image.new("RGB", (30, 28), (9, 0, 0)).save(tmp_path / "1.png")
    (tmp_path / "imgs").mkdir()
    (tmp_path / "1.png").rename(tmp_path / "imgs/1.png")
    (sample,) = load(str(tmp_path / "d.jsonl"))
    file, row = sample.images
    assert file.file.endswith("imgs/1.png")
    assert (row.parquet_file, row.parquet_row) == (str(tmp_path / "images.parquet"), 1)
    reds = [np.asarray(load_image(ref, ImageRules()))[0, 0, 0] for ref in sample.images]
    assert reds == [9, 2]


def test_image_root_and_column_names_are_settings(folder: Path):
    row = {"id": "x", "q": "?", "gold": ["1"], "pages": ["1.png"]}
    path = write_lines(folder / "elsewhere" / "t.jsonl", [row])
    (sample,) = load(
        path,
        image_root=str(folder / "imgs"),
        id_column="id",
        question_column="q",
        answer_column="gold",
        image_column="pages",
    )
    assert sample.images[0].file == str(folder / "imgs/1.png")


@pytest.mark.parametrize("layout", ["train", "test"])
@pytest.mark.parametrize("as_table", [True, False])
def test_what_is_written_is_what_is_read(tmp_path: Path, layout: str, as_table: bool):
    images = {f"imgs/{n}.png": Image.new("RGB", (30, 28), (n, 5, 5)) for n in range(3)}
    refs = tuple(ImageRef(path=path) for path in images)
    written = [
        Sample(
            sample_id=f"s{n}",
            question=f"Who — {n}?",
            images=refs[: 2 + n],
            answers=("Team A",),
            gold_response=GOLD,
            positive_images=(0,),
            metadata={"kind": "read"},
        )
        for n in range(2)
    ]
    file = tmp_path / ("top3_test.jsonl" if layout == "test" else "train.jsonl")
    write_evisrag(file, written, images, layout=layout, as_table=as_table)
    for before, after in zip(written, load(str(file)), strict=True):
        for name in ("sample_id", "question", "answers", "gold_response", "is_sufficient", "metadata"):
            assert getattr(after, name) == getattr(before, name), name
        assert [ref.path for ref in after.images] == [ref.path for ref in before.images]
        assert after.positive_images == (before.positive_images if layout == "test" else ())
        for ref in after.images:
            assert np.array_equal(np.asarray(load_image(ref, ImageRules())), np.asarray(images[ref.path]))


def test_json_list_parquet_and_folder_hold_the_same_items(folder: Path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [train_row(qid=f"q{n}") for n in range(3)]
    (folder / "train.json").write_text(json.dumps(rows))
    pq.write_table(pa.Table.from_pylist(rows), folder / "table.parquet")
    (folder / "many").mkdir()
    write_lines(folder / "many" / "part-train-1.jsonl", rows[:1])
    write_lines(folder / "many" / "part-train-2.jsonl", rows[1:])
    write_lines(folder / "many" / "part-test.jsonl", rows[:2])
    (folder / "many" / "imgs").symlink_to(folder / "imgs")
    for path in ("train.json", "table.parquet", "many", "many@train"):
        assert [sample.sample_id for sample in load(str(folder / path))] == ["q0", "q1", "q2"], path
    assert len(load(str(folder / "many@test"))) == 2
    with pytest.raises(DataError, match="no file for the split 'dev'"):
        load(str(folder / "many@dev"))


def bad(folder: Path, rows: list[dict[str, Any]], *words: str, **settings: Any) -> str:
    """The rows are refused, and with ``skip`` the good row behind them is all that is left."""
    path = write_lines(folder / "bad.jsonl", [*rows, train_row(qid="good")])
    with pytest.raises(DataError) as caught:
        load(path, **settings)
    for word in (path, "data.on_bad_sample=skip", *words):
        assert word in str(caught.value)
    settings |= {"on_bad_sample": "skip", "max_skipped_frac": 1.0}
    kept = load_samples(path, DataConfig(**settings), is_training=True)
    assert [sample.sample_id for sample in kept.samples][-1] == "good"
    assert sum(kept.skipped.values()) == len(rows) + 1 - len(kept.samples)
    return str(caught.value)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (train_row(image=["imgs/1.png"]), ("line 1", "2 <image> markers", "1 images")),
        (train_row(prompt="Who won?"), ("0 <image> markers",)),
        (train_row(image=["imgs/1.png", "imgs/gone.png"]), ("line 1", "imgs/gone.png", "does not exist")),
        (train_row(image=[]), ("no images",)),
        (train_row(image=[1, 2]), ("image must be a list of texts", "[1, 2]")),
        (train_row(image={"bytes": "x"}, prompt="<image>"), ("image 0", "not base64")),
        (train_row(answer=3), ("answer must be a list of texts", "int 3")),
        (train_row(answer=[3]), ("answer must be a list of texts",)),
        (train_row(prompt=["<image>"]), ("prompt must be text, got list",)),
        (train_row(qid=1.5), ("qid must be", "1.5")),
        (train_row(is_sufficient="yes"), ("is_sufficient must be true or false, got 'yes'",)),
        ({"answer": GOLD, "image": ["imgs/1.png"]}, ("neither 'query' nor 'prompt'", "answer, image")),
        ({"query": "?", "answer": GOLD, "images": ["imgs/1.png"]}, ("no 'image'", "data.image_column")),
        ({"query": "?", "image": ["imgs/1.png"]}, ("no 'answer'", "data.answer_column")),
    ],
)
def test_a_defect_is_named_with_its_line(folder: Path, row: dict[str, Any], words: tuple[str, ...]):
    bad(folder, [row], *words)


def test_a_broken_page_is_reported_for_every_question_that_shows_it(folder: Path):
    data = (folder / "imgs/1.png").read_bytes()
    (folder / "imgs/half.png").write_bytes(data[: len(data) // 2])
    (folder / "imgs/text.png").write_text("no image")
    rows = [train_row(image=["imgs/half.png", "imgs/2.png"]), train_row(image=["imgs/2.png", "imgs/text.png"])]
    bad(folder, [*rows, rows[0]], "3 of 4 items", "3 × image", "truncated", "line 1", "and 2 more")


def test_too_many_images_are_a_defect_in_training_and_cut_in_evaluation(folder: Path):
    row = train_row(prompt="<image>a<image>b<image>c", image=[f"imgs/{n}.png" for n in (1, 2, 3)])
    bad(folder, [row], "3 images", "data.max_images=2", max_images=2)
    sample = load(str(folder / "bad.jsonl"), is_training=False, max_images=2)[0]
    assert [ref.path for ref in sample.images] == ["imgs/1.png", "imgs/2.png"]
    assert sample.prompt == "<image>a<image>bc"


def test_an_id_may_stand_once(folder: Path):
    message = bad(folder, [train_row(qid="a"), train_row(qid="b"), train_row(qid="a")], "line 3", "'a'", "1 × id twice")
    assert "line 1" not in message


def test_what_the_caller_finds_is_a_defect(folder: Path):
    path = write_lines(folder / "d.jsonl", [train_row(qid="a"), train_row(qid="b", answer=["Team A"])])

    def needs_gold(sample: Sample) -> None:
        if not sample.gold_response:
            raise BadRecordError("gold", "it has no gold response")

    with pytest.raises(DataError, match="line 2: it has no gold response"):
        load_samples(path, DataConfig(), is_training=True, check=needs_gold)
    loaded = load_samples(path, DataConfig(on_bad_sample="skip"), is_training=True, check=needs_gold)
    assert (len(loaded.samples), dict(loaded.skipped)) == (1, {"gold": 1})


def test_a_truncated_line_is_named_by_number(folder: Path):
    path = folder / "cut.jsonl"
    path.write_text(json.dumps(train_row()) + "\n\n" + json.dumps(train_row())[:-5] + "\n[1]\n")
    with pytest.raises(DataError, match=r"2 of 3 items.*\n.*line 3: the line is not JSON.*\n.*line 4: expected a JSON"):
        load(str(path))


def test_many_defects_show_the_first_few_and_the_number(folder: Path):
    rows = [train_row(image=["imgs/1.png"]) for _ in range(7)]
    # a message has at most 500 characters: not every example fits
    message = bad(folder, rows, "7 of 8 items cannot be used (7 × markers)", "line 1", " more\n")
    assert len(message) - len(str(folder)) < 500
    assert "line 6" not in message


def test_nothing_to_read_is_refused(folder: Path):
    empty = write_lines(folder / "empty.jsonl", [])
    with pytest.raises(DataError, match="holds no items"):
        load(empty)
    only_bad = write_lines(folder / "bad.jsonl", [train_row(image=[])])
    with pytest.raises(DataError, match="1 of 1 items"):
        load(only_bad, on_bad_sample="skip")
    with pytest.raises(DataError, match="no file, folder or hub data set"):
        load(str(folder / "gone.jsonl"))
    with pytest.raises(DataError, match=r"holds no \.jsonl"):
        load(str(folder / "imgs"))
    (folder / "object.json").write_text("{}")
    with pytest.raises(DataError, match="expected a list"):
        load(str(folder / "object.json"))
    (folder / "data.csv").write_text("a,b")
    with pytest.raises(DataError, match=r"data\.csv is no"):
        load(str(folder / "data.csv"))


def test_markers_split_as_the_original_does(parity: Callable[[str], list[dict[str, Any]]]):
    vectors = [
        vector
        for vector in parity("evisrag_dataset")
        if vector["inputs"]["op"] == "messages"
        and vector["inputs"]["format_prompt"] is None
        and "image" in vector["inputs"]["example"]
    ]
    assert len(vectors) >= 5
    for vector in vectors:
        (turn,) = vector["expected"]
        expected = tuple(None if part["type"] == "image" else part["text"] for part in turn["content"])
        assert split_markers(vector["inputs"]["example"]["prompt"]) == expected, vector["id"]


@given(st.lists(st.one_of(st.none(), st.text(alphabet="ab <>\n", min_size=1)), max_size=8))
def test_splitting_loses_nothing(parts: list[str | None]):
    prompt = "".join("<image>" if part is None else part for part in parts)
    split = split_markers(prompt)
    assert "".join("<image>" if part is None else part for part in split) == prompt
    assert split.count(None) == prompt.count("<image>")


def test_a_page_that_is_not_there_cannot_be_written(tmp_path: Path):
    sample = Sample(sample_id="a", question="?", images=(ImageRef(path="imgs/1.png"),))
    with pytest.raises(ValueError, match=r"imgs/1\.png"):
        write_evisrag(tmp_path / "d.jsonl", [sample], {}, layout="train", as_table=True)
    with pytest.raises(ValueError, match="layout='rl'"):
        write_evisrag(tmp_path / "d.jsonl", [], {}, layout="rl", as_table=True)


def test_an_answer_in_the_declared_sections_is_gold(folder: Path):
    planned = ResponseFormat(
        sections=(SectionRule(name="plan", order=0), SectionRule(name="final", order=1)), answer_section="final"
    )
    tagged = "<plan>p</plan><final>Team A</final>"
    rows = [train_row(answer=tagged), train_row(answer="<plan> is no tag of ours"), train_row(answer="Team A")]
    path = write_lines(folder / "train.jsonl", rows)
    by_format = load_samples(path, DataConfig(), is_training=True, response_format=planned).samples
    # a tagged text is gold, and its answer section the accepted answer
    assert [(sample.gold_response, sample.answers) for sample in by_format] == [
        (tagged, ("Team A",)), ("", ("<plan> is no tag of ours",)), ("", ("Team A",)),
    ]  # fmt: skip
    # read by EVisRAG's sections it is plain text
    assert load(path)[0].answers == (tagged,)
