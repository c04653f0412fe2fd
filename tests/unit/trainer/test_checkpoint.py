"""Folders that are complete or not there."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest

from rsgrpo.io.manifest import FileDigest, digest, write_manifest
from rsgrpo.trainer.checkpoint import (
    CheckpointError,
    FoundCheckpoint,
    PolicyMeta,
    checkpoint_folders,
    find_checkpoint,
    read_policy_meta,
    remove_old_checkpoints,
    write_folder,
    write_policy_meta,
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
    assert checkpoint_folders(tmp_path, "rl") == [tmp_path / "rl-000001"]
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
    assert checkpoint_folders(tmp_path, "sft") == [tmp_path / "sft-000900"]
    assert checkpoint_folders(tmp_path, "eval") == []
    assert checkpoint_folders(tmp_path / "missing", "rl") == []


def test_old_ones_and_leftovers_go_and_other_stages_stay(tmp_path):
    for step in range(5):
        write_folder(tmp_path / f"rl-{step:06d}", _write(str(step)))
    write_folder(tmp_path / "sft-000001", _write("sft"))
    (tmp_path / ".partial-rl-000005").mkdir()
    remove_old_checkpoints(tmp_path, "rl", keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rl-000003", "rl-000004", "sft-000001"]


def test_what_a_resumed_run_passed_over_goes_and_does_not_count_as_kept(tmp_path):
    for step in (1, 2, 9):
        write_folder(tmp_path / f"rl-{step:06d}", _write(str(step)))
    remove_old_checkpoints(tmp_path, "rl", keep=2, newest=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rl-000001", "rl-000002"]


def _complete(folder: Path, text: str = "some content") -> Path:
    """A checkpoint with a folder below it that has a manifest of its own, as a policy's has."""

    def write(partial: Path) -> None:
        (partial / "driver.json").write_text(text)
        (partial / "policy").mkdir()
        (partial / "policy" / "rank").write_bytes(text.encode() * 1000)
        write_manifest(partial / "policy")
        write_manifest(partial)

    write_folder(folder, write)
    return folder


def _emptied(path: Path) -> None:
    path.write_bytes(b"")


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _with_an_altered_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def _replaced_by_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGES = [Path.unlink, _emptied, _cut, _with_an_altered_byte, _replaced_by_a_folder]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("name", ["driver.json", "manifest.json", "policy/rank", "policy/manifest.json"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_is_found(tmp_path, name, damage):
    before = _complete(tmp_path / "rl-000001")
    damage(_complete(tmp_path / "rl-000002") / name)
    found = find_checkpoint(tmp_path, "rl")
    assert found.folder == before
    (problem,) = found.damaged
    assert problem.startswith("rl-000002: ") and len(problem) < 500
    # an altered digest accuses the file that it stands for
    assert Path(name).name in problem or (Path(name).name == "manifest.json" and "other bytes" in problem)


def test_a_whole_checkpoint_is_found_without_complaint(tmp_path):
    newest = [_complete(tmp_path / f"rl-{step:06d}") for step in (1, 2)][-1]
    assert find_checkpoint(tmp_path, "rl", ["driver.json"]) == FoundCheckpoint(folder=newest)
    assert find_checkpoint(tmp_path, "sft") == FoundCheckpoint(folder=None)
    assert find_checkpoint(tmp_path / "missing", "rl") == FoundCheckpoint(folder=None)


def test_no_usable_checkpoint_is_one_sentence(tmp_path):
    for step in (1, 2, 3):
        _emptied(_complete(tmp_path / f"rl-{step:06d}") / "driver.json")
    with pytest.raises(
        CheckpointError, match=r"no checkpoint of the stage 'rl'.*rl-000003: driver\.json is empty"
    ) as all_bad:
        find_checkpoint(tmp_path, "rl")
    assert "and 1 more" in str(all_bad.value) and len(str(all_bad.value)) < 500


def test_files_that_a_reader_needs_must_be_vouched_for(tmp_path):
    # a file laid into a whole checkpoint was not there when it was completed
    folder = _complete(tmp_path / "rl-000001")
    (folder / "extra").write_text("foreign")
    with pytest.raises(CheckpointError, match=r"manifest\.json does not list extra"):
        find_checkpoint(tmp_path, "rl", ["extra"])


def test_a_checkpoint_of_version_1_is_refused_by_version_and_not_opened(tmp_path):
    folder = tmp_path / "rl-000001"
    folder.mkdir()
    (folder / "driver.pkl").write_bytes(b"\x80\x04not even a pickle")
    with pytest.raises(CheckpointError, match=r"it is of version 1; this release reads version 3: start a new run"):
        find_checkpoint(tmp_path, "rl")


def test_a_manifest_of_a_later_version_or_with_paths_outside_is_refused(tmp_path):
    manifest = _complete(tmp_path / "rl-000001") / "manifest.json"
    document = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(document | {"version": 4}))
    with pytest.raises(CheckpointError, match="of version 4"):
        find_checkpoint(tmp_path, "rl")
    document["files"][0]["name"] = "../../secret"
    manifest.write_text(json.dumps(document))
    with pytest.raises(CheckpointError, match="outside the folder"):
        find_checkpoint(tmp_path, "rl")


def test_digests_are_those_of_sha256sum(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    # FIPS 180-2, appendix B.1
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert digest(tmp_path, "a") == FileDigest(name="a", num_bytes=3, sha256=expected)


def test_what_is_no_policy_meta_is_one_sentence(tmp_path):
    write_policy_meta(tmp_path, PolicyMeta(version=3, shape={"trainer.num_ranks": 2}, base_checksum="x"))
    assert read_policy_meta(tmp_path, shape={"trainer.num_ranks": 2}, base_checksum="x").version == 3
    with pytest.raises(CheckpointError, match=r"written with trainer\.num_ranks=2, now it is 4"):
        read_policy_meta(tmp_path, shape={"trainer.num_ranks": 4}, base_checksum="")
    with pytest.raises(CheckpointError, match=r"model\.lora\.rank=None, now it is 4"):
        read_policy_meta(tmp_path, shape={"model.lora.rank": 4}, base_checksum="")
    for content, message in (("[]", "object is expected"), ("{", "no JSON"), ("", "empty"), ("{}", "of version 1")):
        (tmp_path / "policy.json").write_text(content)
        with pytest.raises(CheckpointError, match=message):
            read_policy_meta(tmp_path, shape={}, base_checksum="")
    (tmp_path / "policy.json").write_text('{"checkpoint_version": 3, "version": "3", "shape": {}, "base_checksum": ""}')
    with pytest.raises(CheckpointError, match="version: got '3', expected a whole number"):
        read_policy_meta(tmp_path, shape={}, base_checksum="")
