"""Records as spreadsheets and scripts leave them: blank questions, lists that became texts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from rsgrpo.config import DataConfig
from rsgrpo.data.evisrag_files import load_samples
from rsgrpo.data.files import DataError
from rsgrpo.data.readers import ReaderOptions, read_samples
from rsgrpo.data.readers.fields import written_list


def load(folder: Path, **columns: Any) -> Any:
    for name in ("a.png", "b.png"):
        Image.new("RGB", (40, 40)).save(folder / name)
    record = {"qid": "1", "query": "How many?", "answer": ["3"], "image": ["a.png", "b.png"]} | columns
    (folder / "data.jsonl").write_text(json.dumps(record) + "\n")
    return load_samples(str(folder / "data.jsonl"), DataConfig(), is_training=False).samples[0]


@pytest.mark.parametrize(
    "columns",
    [
        {"query": ""},
        {"query": "  \n"},
        {"query": "\u00a0"},
        {"query": "How?", "prompt": "<image><image>"},
        {"query": "", "prompt": " <image>\n<image> "},
    ],
)
def test_a_blank_question_is_refused(columns: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"blank: nothing is asked|neither 'query' nor"):
        load(tmp_path, **columns)


def test_a_prompt_needs_no_question_beside_it(tmp_path: Path) -> None:
    assert load(tmp_path, query=" ", prompt="<image><image>How many?").prompt.endswith("How many?")


def conversation(folder: Path, **columns: object) -> tuple[int, dict[str, int]]:
    """How many samples came of one record, and why others did not."""
    turns = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "A"}]
    (folder / "d.json").write_text(json.dumps([{"id": "1", "conversations": turns} | columns]))
    options = ReaderOptions(on_bad_record="skip", check_media=False, max_skipped_frac=1.0)
    samples, report = read_samples("sharegpt", folder / "d.json", options=options)
    return len(samples), report.counts()


@pytest.mark.parametrize("question", ["", " \n", "\u3000"])
def test_a_conversation_that_begins_with_a_blank_question_is_refused(question: str, tmp_path: Path) -> None:
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": "A"}]
    assert conversation(tmp_path, conversations=turns) == (0, {"no question": 1})


def test_a_conversation_in_a_text_is_one(tmp_path: Path) -> None:
    turns = [{"from": "human", "value": "What's this?"}, {"from": "gpt", "value": "A"}]
    assert conversation(tmp_path, conversations=str(turns)) == (1, {})
    assert conversation(tmp_path, conversations=json.dumps(turns)) == (1, {})


@pytest.mark.parametrize(
    "written",
    [
        '["a.png", "b.png"]',
        "['a.png', 'b.png']",
        "['a.png' 'b.png']",
        "['a.png'\n 'b.png']",
        " ['a.png', \"b.png\",] ",
        "[{'path': 'a.png'}, {'path': 'b.png', 'bytes': None}]",
    ],
)
def test_a_list_in_a_text_is_a_list(written: str, tmp_path: Path) -> None:
    sample = load(tmp_path, image=written, posImgs="['b.png']")
    assert [Path(ref.file).name for ref in sample.images] == ["a.png", "b.png"]
    assert sample.positive_images == (1,)


@pytest.mark.parametrize(
    "text", ["a.png", "[a].png", "[", "[]x", "['a.png'", "[a, b]", "[__import__('os')]", "[" * 5000 + "]" * 5000, 3]
)
def test_what_is_no_list_stays_as_it_is(text: object) -> None:
    assert written_list(text) == text


def test_a_quote_inside_a_name_is_part_of_it() -> None:
    assert written_list(r"""["it's.png", 'say \'x\'.png', 'a, b.png']""") == ["it's.png", "say 'x'.png", "a, b.png"]
    assert written_list("[]") == []
