"""Folders that are complete or not there."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from rsgrpo.checkpoint import (
    CheckpointError,
    checkpoint_folders,
    latest_checkpoint,
    remove_old_checkpoints,
    write_folder,
)


def _write(text: str):
    def write(folder: Path) -> None:
        (folder / "inner").mkdir()
        (folder / "inner" / "data").write_text(text)

    return write


def _read(folder: Path) -> str:
    return (folder / "inner" / "data").read_text()


def test_written_folder_replaces_the_older_one(tmp_path):
    write_folder(tmp_path / "runs" / "rl-000001", _write("one"))
    write_folder(tmp_path / "runs" / "rl-000001", _write("two"))
    assert _read(tmp_path / "runs" / "rl-000001") == "two"
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["rl-000001"]


@pytest.mark.parametrize("kind", ["killed", "disk full", "torch's disk full"])
def test_an_interrupted_write_leaves_the_older_checkpoint(tmp_path, kind):
    write_folder(tmp_path / "rl-000001", _write("good"))

    def interrupted(folder: Path) -> None:
        _write("half")(folder)
        if kind == "killed":
            raise KeyboardInterrupt
        if kind == "disk full":
            raise OSError(errno.ENOSPC, "No space left on device")
        raise RuntimeError("[enforce fail] . No space left on device")

    expected = KeyboardInterrupt if kind == "killed" else CheckpointError
    for name in ("rl-000001", "rl-000002"):
        with pytest.raises(expected) as caught:
            write_folder(tmp_path / name, interrupted)
        if kind != "killed":
            assert "no space left for" in str(caught.value) and name in str(caught.value)
    assert latest_checkpoint(tmp_path, "rl") == tmp_path / "rl-000001"
    assert _read(tmp_path / "rl-000001") == "good"
    # a later write is not disturbed by what the killed one left
    write_folder(tmp_path / "rl-000002", _write("next"))
    assert _read(tmp_path / "rl-000002") == "next"


def test_another_error_is_not_called_a_full_disk(tmp_path):
    def forbidden(folder: Path) -> None:
        raise PermissionError(errno.EACCES, "denied")

    with pytest.raises(PermissionError):
        write_folder(tmp_path / "rl-000001", forbidden)
    assert list(tmp_path.iterdir()) == []


def test_newest_goes_by_number_and_stage(tmp_path):
    for name in ("sft-000900", "rl-000002", "rl-000010", "rl-9", "other"):
        write_folder(tmp_path / name, _write(name))
    assert [path.name for path in checkpoint_folders(tmp_path, "rl")] == ["rl-000002", "rl-9", "rl-000010"]
    assert latest_checkpoint(tmp_path, "sft") == tmp_path / "sft-000900"
    assert latest_checkpoint(tmp_path, "eval") is None
    assert latest_checkpoint(tmp_path / "missing", "rl") is None


def test_old_ones_and_leftovers_go_and_other_stages_stay(tmp_path):
    for step in range(5):
        write_folder(tmp_path / f"rl-{step:06d}", _write(str(step)))
    write_folder(tmp_path / "sft-000001", _write("sft"))
    (tmp_path / ".partial-rl-000005").mkdir()
    remove_old_checkpoints(tmp_path, "rl", keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rl-000003", "rl-000004", "sft-000001"]
