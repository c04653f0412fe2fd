"""Files and folders that are written whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rsgrpo.io.atomic_files import new_folder, read_json, replacing, write_json
from rsgrpo.io.jsonl import read_rows, write_rows


@pytest.mark.parametrize("is_cache", [False, True])
def test_a_block_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path, is_cache: bool) -> None:
    (tmp_path / "kept").write_bytes(b"old")
    with pytest.raises(KeyError), replacing(tmp_path / "kept", is_cache=is_cache) as file:
        file.write(b"new")
        raise KeyError
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("kept", b"old")]


def test_two_writers_of_a_cache_do_not_mix(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "entry"
    with replacing(target, is_cache=True) as first, replacing(target, is_cache=True) as second:
        first.write(b"1" * 10)
        second.write(b"2" * 10)
    assert target.read_bytes() == b"1" * 10  # the one that ended last
    assert list(target.parent.iterdir()) == [target]


def test_what_json_cannot_say_leaves_the_old_file(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"text": "\ud800ä"}, indent=2)
    assert read_json(tmp_path / "a.json") == {"text": "\ud800ä"}
    write_rows(tmp_path / "a.jsonl", [{"a": 1}, {"text": "\ud800ä\n"}])
    for write in (
        lambda: write_json(tmp_path / "a.json", {"value": float("nan")}),
        lambda: write_rows(tmp_path / "a.jsonl", [{"a": 2}, {"value": float("inf")}]),
    ):
        with pytest.raises(ValueError, match="JSON compliant"):
            write()
    assert json.loads((tmp_path / "a.json").read_bytes()) == {"text": "\ud800ä"}
    assert list(read_rows(tmp_path / "a.jsonl")) == [{"a": 1}, {"text": "\ud800ä\n"}]


def test_a_folder_appears_once_it_is_filled(tmp_path: Path) -> None:
    (tmp_path / "data.partial").mkdir()
    (tmp_path / "data.partial" / "of a run that died").touch()
    with pytest.raises(KeyError), new_folder(tmp_path / "data") as partial:
        (partial / "half").touch()
        raise KeyError
    assert not (tmp_path / "data").exists()
    with new_folder(tmp_path / "data") as partial:
        (partial / "whole").touch()
        assert not (tmp_path / "data").exists()
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["whole"]
