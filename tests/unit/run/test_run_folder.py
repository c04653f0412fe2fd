"""Rules for beginning, holding and going on in a run folder."""

from __future__ import annotations

import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from rsgrpo.config import Config, ConfigError, OptimizerConfig, RlConfig, SftConfig
from rsgrpo.run.folder import RunFolderError, begin_run, open_run_folder


def _config(folder: Path, **settings: object) -> Config:
    return Config(stage="sft", run_dir=str(folder), **settings)  # type: ignore[arg-type]


def test_a_begun_run_is_resumed_only_on_request(tmp_path: Path) -> None:
    with open_run_folder(_config(tmp_path)) as folder:
        begin_run(folder, _config(tmp_path))
    with pytest.raises(RunFolderError, match="resume=auto"), open_run_folder(_config(tmp_path)):
        pass
    with open_run_folder(_config(tmp_path, resume="auto")) as folder:
        assert folder.root == tmp_path


def test_a_failed_preparation_leaves_the_folder_free_and_its_data_behind(tmp_path: Path) -> None:
    with pytest.raises(KeyError), open_run_folder(_config(tmp_path)) as folder:
        folder.data.mkdir()
        (folder.data / "old.jsonl").touch()
        raise KeyError("preparation failed")
    with open_run_folder(_config(tmp_path)) as folder:
        assert not folder.data.exists()


def test_other_settings_are_refused_by_name(tmp_path: Path) -> None:
    with open_run_folder(_config(tmp_path)) as folder:
        begin_run(folder, _config(tmp_path))
    other = _config(tmp_path, resume="auto", sft=SftConfig(optimizer=OptimizerConfig(learning_rate=1.0)))
    with pytest.raises(RunFolderError, match="other settings under sft;"), open_run_folder(other):
        pass


@pytest.mark.parametrize("decided", [0, 1])
def test_a_resumed_run_may_leave_open_what_was_decided_but_not_contradict_it(tmp_path: Path, decided: int) -> None:
    with open_run_folder(_config(tmp_path)) as folder:
        begin_run(folder, _config(tmp_path, rl=RlConfig(max_staleness_steps=decided)))
    with open_run_folder(_config(tmp_path, resume="auto", rl=RlConfig(max_staleness_steps=-1))):
        pass
    other = _config(tmp_path, resume="auto", rl=RlConfig(max_staleness_steps=1 - decided))
    with pytest.raises(RunFolderError, match="other settings under rl;"), open_run_folder(other):
        pass


def test_two_processes_cannot_hold_one_folder(tmp_path: Path) -> None:
    with (
        open_run_folder(_config(tmp_path)),
        pytest.raises(RunFolderError, match="another process"),
        open_run_folder(_config(tmp_path)),
    ):
        pass


def test_a_full_disk_is_told_before_anything_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(total=1 << 40, used=(1 << 40) - 5, free=5))
    with pytest.raises(RunFolderError, match="0 MiB are free"), open_run_folder(_config(tmp_path)):
        pass


@pytest.mark.parametrize("address", ["s3://bucket/x", "hdfs:/runs/a", "gs://bucket"])
def test_an_address_is_no_run_folder(address: str) -> None:
    # As a path it would be a folder named "s3:" in the current one, and the run would seem to go to the cloud.
    with pytest.raises(ConfigError, match="is an address"):
        Config(stage="sft", run_dir=address)
