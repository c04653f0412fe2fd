"""Paths of data sets, files that are none, encodings, and how much may be left out."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rsgrpo.config import DataConfig
from rsgrpo.data.evisrag_files import load_samples
from rsgrpo.data.file_bytes import DataError, open_utf8
from rsgrpo.data.files import data_files
from rsgrpo.data.hub import hub_problem
from rsgrpo.data.readers import ReaderOptions, open_reader, read_samples
from rsgrpo.data.readers.indexed import IndexedSamples
from rsgrpo.data.readers.skipping import max_skipped

OPTIONS = ReaderOptions(check_media=False)


def talk(number: int, **more: Any) -> dict[str, Any]:
    turns = [{"from": "human", "value": "Q"}, {"from": "gpt", "value": f"A{number}"}]
    return {"id": number, "conversations": turns, **more}


def write(file: Path, count: int = 2) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(talk(n)) + "\n" for n in range(count)))
    return file


def test_a_path_may_be_written_in_many_ways(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = write(tmp_path / "data" / "a b.jsonl")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HOME", str(tmp_path))
    for path in ("../data", "~/data/a b.jsonl", f"file://{tmp_path}/data/a%20b.jsonl", "$HOME/data", "../data/*.jsonl"):
        assert [found.resolve() for found in data_files(path)] == [file], path


def test_the_files_of_the_only_folder_with_data_are_found(tmp_path: Path):
    for number in (1, 2, 10):
        write(tmp_path / "set" / "data" / f"train-{number}.jsonl")
    (tmp_path / "set" / "README.md").write_text("card")
    assert [file.name for file in data_files(str(tmp_path / "set"))] == [f"train-{n}.jsonl" for n in (1, 2, 10)]
    write(tmp_path / "set" / "more" / "x.jsonl")
    with pytest.raises(DataError, match="its folders data, more do; name one"):
        data_files(str(tmp_path / "set"))


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("s3://bucket/x.jsonl", r"is an address \(s3://\)"),
        ("gs://bucket/x.jsonl", r"is an address \(gs://\)"),
        ("https://example.org/x.jsonl", r"is an address \(https://\)"),
        ("https://huggingface.co/datasets/team/pages", "name the hub's data set as 'team/pages'"),
        ("", "is empty"),
        ("nowhere.jsonl", "there is no file, folder or hub data set 'nowhere.jsonl'"),
        ("../nowhere", "there is no file, folder or hub data set"),
        ("x" * 5000, "too long|there is no file"),
        ("a\0b.jsonl", "there is no file"),
    ],
)
def test_what_is_no_path_here_is_told_in_its_own_words(path: str, words: str):
    with pytest.raises(DataError, match=words) as caught:
        data_files(path)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.jsonl", b"", "is empty"),
        ("a.parquet", b"", "is empty"),
        ("a.parquet", b"id,text\n", "no parquet file"),
        ("a.parquet", b"PAR1 and then nothing", "cannot be read as a table"),
        ("a.jsonl", b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "git lfs pull"),
        ("a.parquet", b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "git lfs pull"),
        ("a.jsonl", gzip.compress(b"{}", mtime=0), "compressed with gzip"),
        ("a.json", b"PK\x03\x04", "zip"),
        ("a.json", b"PAR1", "rename it to .parquet"),
        ("a.json", b"<!DOCTYPE html><html>", "web page"),
        ("a.json", '[{"a": 1}]'.encode("utf-16-le"), "UTF-16 without a byte order mark"),
        ("a.jsonl.gz", gzip.compress(b"{}", mtime=0), "gunzip"),
        ("a.csv", b"a,b", r"a\.csv is no .*pandas"),
        ("a.xlsx", b"PK", "read_excel"),
        ("a.txt", b"x", r"a\.txt is no"),
    ],
)
def test_a_file_that_is_no_data_is_named_with_the_way_out(tmp_path: Path, name: str, content: bytes, words: str):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=words) as caught:
        list(open_reader("llava", tmp_path / name))
    assert len(str(caught.value)) < 500


def test_a_broken_link_and_a_pipe_are_named(tmp_path: Path):
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "gone.jsonl")
    with pytest.raises(DataError, match=r"is a link to .*which does not exist"):
        data_files(str(tmp_path / "link.jsonl"))
    os.mkfifo(tmp_path / "pipe.jsonl")
    with pytest.raises(DataError, match="is a pipe; name a data file"):
        data_files(str(tmp_path / "pipe.jsonl"))


def test_a_file_that_may_not_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = write(tmp_path / "a.jsonl")

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", str(file))

    monkeypatch.setattr("rsgrpo.data.file_bytes.open_regular", refuse)
    with pytest.raises(DataError, match=r"a\.jsonl cannot be read: Permission denied"):
        data_files(str(file))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_encodings_with_a_mark_are_read(tmp_path: Path, encoding: str, suffix: str):
    rows = [talk(n, note="é—😀") for n in range(3)]
    text = json.dumps(rows, ensure_ascii=False) if suffix == ".json" else "\r\n".join(map(json.dumps, rows))
    file = tmp_path / f"d{suffix}"
    file.write_bytes(text.encode(encoding))
    samples = IndexedSamples("llava", str(file), OPTIONS)
    assert [samples.sample(index).turns[1].text for index in (2, 0, 1)] == ["A2", "A0", "A1"]


def test_latin_1_is_refused_with_the_byte(tmp_path: Path):
    (tmp_path / "d.jsonl").write_bytes(json.dumps(talk(0, x="é"), ensure_ascii=False).encode("latin-1"))
    with pytest.raises(DataError, match=r"line 1(.|\n)*byte 0xe9 at place \d+ is not UTF-8 \(Latin-1\?"):
        read_samples("llava", tmp_path / "d.jsonl", options=OPTIONS)


def test_a_byte_order_mark_that_does_not_fit_the_bytes_is_named(tmp_path: Path):
    (tmp_path / "d.json").write_bytes(b"\xff\xfe[")
    with pytest.raises(DataError, match="says that it is utf-16, but its byte"):
        open_utf8(tmp_path / "d.json")


def test_lone_surrogates_are_replaced_and_counted_everywhere(tmp_path: Path):
    row = '{"qid": "a\\udc00", "query": "What \\ud83d?", "answer": ["3 \\ud83d\\ude00"], "\\ud83d": "\\udfff", '
    row += '"image": ["x.png"]}'
    (tmp_path / "t.jsonl").write_text(row)
    ((sample,), report) = read_samples("evisrag", tmp_path / "t.jsonl", options=OPTIONS)
    assert (sample.sample_id, sample.question, sample.answers) == ("a\ufffd", "What \ufffd?", ("3 😀",))
    assert sample.metadata["\ufffd"] == "\ufffd"
    # four halves without a partner: id, question, key, value
    assert "4 lone surrogates" in report.remarks[0].examples[0]
    for suffix, text in ((".json", "[{}]"), (".jsonl", "{}")):
        file = tmp_path / f"talk{suffix}"
        file.write_text(text.replace("{}", json.dumps(talk(0)).replace("A0", "a \\ud83d")))
        samples = IndexedSamples("llava", str(file), OPTIONS)
        assert samples.sample(0).turns[1].text == "a \ufffd"
        assert samples.report.remarks[0].reason == "half a character"


def test_the_share_that_may_be_left_out():
    assert [max_skipped(n, 0.01) for n in (1, 99, 100, 199, 200, 1000)] == [1, 1, 1, 1, 2, 10]
    assert (max_skipped(50, 1.0), max_skipped(50, 0.0), max_skipped(100, 0.07)) == (50, 1, 7)


@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_skip_stops_where_more_than_its_share_is_lost(tmp_path: Path, suffix: str):
    def put(num_bad: int) -> Path:
        rows: list[Any] = [talk(n) if n >= num_bad else {"conversations": "x"} for n in range(200)]
        file = tmp_path / f"d{suffix}"
        file.write_text(json.dumps(rows) if suffix == ".json" else "\n".join(map(json.dumps, rows)))
        return file

    skip = ReaderOptions(check_media=False, on_bad_record="skip")
    assert len(read_samples("llava", put(2), options=skip)[0]) == 198
    with pytest.raises(DataError, match="3 of 200 records would be left out, more than the 2 that max_skipped_frac"):
        read_samples("llava", put(3), options=skip)
    with pytest.raises(DataError, match="3 of 200 records would be left out"):
        IndexedSamples("llava", str(put(3)), skip)
    wider = ReaderOptions(check_media=False, on_bad_record="skip", max_skipped_frac=0.05)
    assert len(read_samples("llava", put(3), options=wider)[0]) == 197


def test_a_list_that_breaks_does_not_pass_as_one_record(tmp_path: Path):
    text = json.dumps([talk(n) for n in range(1000)])
    broken = text[:300] + "}]]" + text[300:].replace("{", "(")
    (tmp_path / "d.json").write_text(broken)
    skip = ReaderOptions(check_media=False, on_bad_record="skip")
    with pytest.raises(DataError, match=r"cannot be read(.|\n)*max_skipped_frac") as caught:
        read_samples("llava", tmp_path / "d.json", options=skip)
    assert len(str(caught.value)) < 500


def test_one_nan_costs_nothing(tmp_path: Path):
    for odd in ("NaN", "-Infinity", "1e999", "1" * 25, "-1E-999"):
        rows = [json.dumps(talk(n, score=0)).replace("0}", f"{odd if n == 3 else 1.5}}}") for n in range(1000)]
        (tmp_path / "d.json").write_text("[" + ",\n".join(rows) + "]")
        samples = IndexedSamples("llava", str(tmp_path / "d.json"), OPTIONS)
        assert len(samples) == 1000, odd
        assert samples.sample(999).turns[1].text == "A999"


def test_values_that_are_no_numbers_are_named_where_they_are_used(tmp_path: Path):
    def message(format: str, record: dict[str, Any]) -> str:
        (tmp_path / "d.json").write_text(json.dumps([record]))
        with pytest.raises(DataError) as caught:
            read_samples(format, tmp_path / "d.json", options=OPTIONS)
        return str(caught.value)

    nan = float("nan")
    mig = {"task": "t", "images": ["a"], "question": "q", "answer": [nan, 0, 1, 1]}
    assert "four finite numbers" in message("mig_bench", mig)
    assert "four finite numbers" in message("mig_bench", mig | {"answer": [0, 0, 1, 10**400]})
    asked = {"query": "q", "answer": ["a"], "image": ["a"], "boxes": [{"box": [nan, 0, 1, 1]}]}
    assert "no rectangle" in message("evisrag", asked)
    assert "four numbers" in message("evisrag", asked | {"boxes": [{"box": [0, 0, 10**400, 1]}]})
    assert "qid must be" in message("evisrag", {**asked, "boxes": None, "qid": nan})
    assert "relevant_images must be" in message("mirage", talk(0, image=["a"], relevant_images=[nan]))


def test_places_are_rows_lines_or_records(tmp_path: Path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [talk(0), {"id": 1, "conversations": []}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "d.parquet")
    (tmp_path / "d.jsonl").write_text("\n" + "\n".join(map(json.dumps, rows)))
    (tmp_path / "d.json").write_text(json.dumps(rows))
    for name, place in (
        ("d.parquet", "d.parquet row 1:"),
        ("d.jsonl", "d.jsonl line 3:"),
        ("d.json", "record 1 (from"),
    ):
        with pytest.raises(DataError) as caught:
            read_samples("llava", tmp_path / name, options=OPTIONS)
        assert place in str(caught.value)


def test_a_record_that_was_changed_since_is_named_and_one_appended_is_no_change(tmp_path: Path):
    file = write(tmp_path / "d.jsonl", 3)
    samples = IndexedSamples("llava", str(file), OPTIONS)
    with file.open("a") as stream:
        stream.write(json.dumps(talk(3)) + "\n")
    assert samples.sample(2).turns[1].text == "A2"
    text = file.read_text().replace("A1", "B1")
    with file.open("r+") as stream:
        stream.write(text)
    assert samples.sample(2).turns[1].text == "A2"
    with pytest.raises(DataError, match="was changed after it was read first: record 1 "):
        samples.sample(1)


def test_each_cause_of_the_hub_has_its_own_words():
    from huggingface_hub import errors

    response: Any = SimpleNamespace(status_code=404, headers={}, request=None)
    words = {
        errors.RepositoryNotFoundError("x", response=response): "has no data set of this name",
        errors.GatedRepoError("x", response=response): "gated",
        errors.HFValidationError("x"): "no name",
        errors.OfflineModeIsEnabled("x"): "HF_HUB_OFFLINE",
        ConnectionError("x"): "cannot be reached",
        OSError(28, "No space left on device"): "No space left",
    }
    for error, expected in words.items():
        assert expected in hub_problem(error, "data set")


def test_questions_are_checked_by_the_same_limit(tmp_path: Path):
    rows = [{"qid": n, "query": "q", "answer": ["a"], "image": ["gone.png"]} for n in range(3)]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(DataError, match="3 of 3 items cannot be used"):
        load_samples(str(tmp_path / "t.jsonl"), DataConfig(on_bad_sample="skip"), is_training=True)
