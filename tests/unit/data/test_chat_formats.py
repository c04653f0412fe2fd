"""Chat formats of OpenAI, the hub and ShareGPT: roles, content in parts, nulls, functions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rsgrpo.data.readers import ReaderOptions, read_samples
from rsgrpo.types import Sample

OPTIONS = ReaderOptions(check_media=False)
ANSWER = {"role": "assistant", "content": "A"}


def read(tmp_path: Path, *records: dict[str, Any], format: str = "sharegpt") -> tuple[Sample, ...]:
    file = tmp_path / "d.json"
    file.write_text(json.dumps(records))
    return read_samples(format, file, options=OPTIONS)[0]


def refused(tmp_path: Path, record: dict[str, Any], format: str = "sharegpt") -> str:
    with pytest.raises(ValueError, match="0 of 1 records") as caught:
        read(tmp_path, record, format=format)
    assert len(str(caught.value)) < 500 + len(str(tmp_path))
    return str(caught.value)


def user(*parts: Any) -> dict[str, Any]:
    return {"role": "user", "content": list(parts)}


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image", "image": "a.png"},
        {"type": "image", "path": "a.png"},
        {"type": "image", "url": "a.png", "text": None},
        {"type": "image_url", "image_url": {"url": "a.png", "detail": "high"}},
        {"type": "input_image", "image_url": "a.png"},
        {"image": "a.png"},
    ],
)
def test_an_image_part_is_a_marker_where_it_stands_and_brings_its_image(tmp_path: Path, part: dict[str, Any]):
    (sample,) = read(tmp_path, {"messages": [user({"type": "text", "text": "Is "}, part, {"text": " it?"}), ANSWER]})
    assert sample.turns[0].text == "Is <image> it?"
    assert [image.path for image in sample.images] == ["a.png"]


def test_parts_without_a_reference_take_the_images_of_the_record_in_order_or_by_index(tmp_path: Path):
    plain, text = {"type": "image"}, {"type": "text", "text": "Q"}
    by_index = [{"type": "image", "index": 1, "text": None}, {"type": "image", "index": 0, "text": None}]
    samples = read(
        tmp_path,
        {"id": "a", "messages": [user(plain, plain, text), ANSWER], "images": ["a.png", "b.png"]},
        {"id": "b", "messages": [user(*by_index, text), ANSWER], "images": ["a.png", "b.png"]},
        {"id": "c", "messages": [{"role": "user", "content": "<image>Q"}, ANSWER], "images": ["a.png"]},
    )
    assert [[image.path for image in sample.images] for sample in samples] == [
        ["a.png", "b.png"],
        ["b.png", "a.png"],
        ["a.png"],
    ]


def test_null_is_absent(tmp_path: Path):
    talk = [{"from": "human", "value": "Q", "role": None}, {"from": "gpt", "value": "A", "content": None}]
    empty = {"messages": None, "id": None, "images": None, "system": None, "tools": None}
    samples = read(tmp_path, {**empty, "conversations": talk}, {"messages": [], "conversations": talk})
    assert [(sample.sample_id, sample.images, sample.turns[1].text) for sample in samples] == [
        ("0", (), "A"),
        ("1", (), "A"),
    ]


@pytest.mark.parametrize(
    ("roles", "expected"),
    [
        (("human", "chatgpt"), ["user", "assistant"]),
        (("developer", "user", "model"), ["system", "user", "assistant"]),
        (("System", "USER", "bing"), ["system", "user", "assistant"]),
        (("user", "bard"), ["user", "assistant"]),
    ],
)
def test_roles_of_chat_formats(tmp_path: Path, roles: tuple[str, ...], expected: list[str]):
    (sample,) = read(tmp_path, {"conversations": [{"role": role, "content": "x"} for role in roles]})
    assert [turn.role for turn in sample.turns] == expected


CALL = '<tool_call>\n{"name": "find", "arguments": {"x": 1}}\n</tool_call>'


def test_function_calls_become_what_qwen_writes_for_them(tmp_path: Path):
    call = {"name": "find", "arguments": {"x": 1}}
    result = [{"from": "observation", "value": "7"}, {"from": "gpt", "value": "A"}]
    sharegpt = [{"from": "human", "value": "Q"}, {"from": "function_call", "value": json.dumps(call)}, *result]
    calls = [{"id": "1", "type": "function", "function": {"name": "find", "arguments": '{"x": 1}'}}]
    openai = [
        {"role": "user", "content": "Q"},
        {"role": "assistant", "content": None, "tool_calls": calls * 2},
        {"role": "tool", "content": "7", "tool_call_id": "1"},
        {"role": "tool", "content": "8", "tool_call_id": "2"},
        ANSWER,
    ]
    first, second = read(tmp_path, {"conversations": sharegpt, "tools": json.dumps([call])}, {"messages": openai})
    assert [turn.text for turn in first.turns[1:]] == ["Q", CALL, "<tool_response>\n7\n</tool_response>", "A"]
    assert first.turns[0].text.startswith("You are a helpful assistant.\n\n# Tools")
    assert '<tools>\n{"type": "function", "function": {"name": "find"' in first.turns[0].text
    responses = "<tool_response>\n7\n</tool_response>\n<tool_response>\n8\n</tool_response>"
    assert [turn.text for turn in second.turns] == ["Q", f"{CALL}\n{CALL}", responses, "A"]


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({"messages": [{"role": "narrator", "content": "x"}, ANSWER]}, "role='narrator' is not known; expected one of"),
        ({"messages": [user({"type": "file", "file": "x"}), ANSWER]}, "a part of type 'file' is not known"),
        ({"messages": [user({"type": "input_image", "file_id": "f"}), ANSWER]}, "file_id"),
        ({"messages": [user({"type": "input_audio", "input_audio": {"data": "AA"}}), ANSWER]}, "cannot hear"),
        ({"messages": [user({"type": "text", "text": "Q"})]}, "the last question has no answer"),
        ({"messages": [user({"type": "text", "text": "Q"})], "chosen": "A", "rejected": "B"}, "preference pairs"),
        ({"messages": [user({"image": "a.png"}), ANSWER], "images": ["b.png"]}, "not the same"),
        ({"messages": [user({"image": "a.png"}, {"text": "<image>"}), ANSWER]}, "beside parts that are images"),
        ({"messages": [{"role": "user", "content": None}, ANSWER]}, "a turn must hold the text"),
        ({"messages": "Q" * 100000}, "must be a list of turns"),
        ({"instruction": "Q", "input": "", "output": "A"}, "Alpaca"),
        ({"query": "Q", "answer": ["A"], "image": "a.png"}, "looks like data.format=evisrag"),
        (
            {"conversations": [{"from": "human", "value": "Q"}, {"from": "function_call", "value": "no"}]},
            "must be JSON",
        ),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, record: dict[str, Any], words: str):
    assert words in refused(tmp_path, record)


def test_conversations_given_as_questions_name_their_format(tmp_path: Path):
    assert "looks like data.format=sharegpt" in refused(tmp_path, {"messages": [ANSWER]}, format="evisrag")
    assert "looks like data.format=llava" in refused(tmp_path, {"conversations": [ANSWER]}, format="evisrag")


@pytest.mark.parametrize(("key", "value"), [("weight", 0), ("loss", False), ("train", False)])
def test_an_answer_that_is_not_to_be_learned_is_named_not_learned(tmp_path: Path, key: str, value: object):
    question = {"role": "user", "content": "Q", key: value}  # of a question nothing is learned anyway
    assert len(read(tmp_path, {"messages": [question, {**ANSWER, key: 1}]})) == 1
    message = refused(tmp_path, {"messages": [question, {**ANSWER, key: value}, question, ANSWER]})
    assert f"{key}={value!r}" in message


@pytest.mark.parametrize("format", ["sharegpt", "llava"])
def test_an_image_that_is_named_in_the_text_is_not_lost(tmp_path: Path, format: str):
    record = {"messages": [{"role": "user", "content": "Picture 1: <img>a.png</img> Q"}, ANSWER]}
    assert "<img>a.png</img>" in refused(tmp_path, record, format=format)
    assert read(tmp_path, {"messages": [{"role": "user", "content": "What is <img src=x>?"}, ANSWER]})


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning"])
def test_reasoning_beside_an_answer_is_left_out_and_said(tmp_path: Path, key: str) -> None:
    file = tmp_path / "d.json"
    turns = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A", key: "because"}]
    file.write_text(json.dumps([{"messages": turns}]))
    (sample,), report = read_samples("sharegpt", file, options=OPTIONS)
    assert [turn.text for turn in sample.turns] == ["Q", "A"]
    assert [(finding.reason, finding.count) for finding in report.remarks] == [("reasoning left out", 1)]
