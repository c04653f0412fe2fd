"""Homes that cannot be written, closed streams, full disks: the command goes on, or says one sentence."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from rsgrpo.failures import explain
from rsgrpo.system.home import HomeError, choose_home
from tests.programs import REPOSITORY, TIMEOUT_SECONDS

FULL = os.strerror(errno.ENOSPC)


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USER", "x")
    return tmp_path


def refuse_writing(monkeypatch: pytest.MonkeyPatch, *folders: Path) -> None:
    """As for an ordinary user; whoever runs the tests may be root."""
    make = tempfile.TemporaryFile

    def refusing(*, dir: Path | str) -> object:
        if Path(dir) in folders:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(dir))
        return make(dir=dir)

    monkeypatch.setattr(tempfile, "TemporaryFile", refusing)


def test_a_home_that_can_be_written_stays(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_home() == ""
    assert os.environ["HOME"] == str(temporary)
    (temporary / ".cache").mkdir()
    refuse_writing(monkeypatch, temporary)  # but its caches can be
    assert choose_home() == ""


@pytest.mark.parametrize("place", ["", "relative", "/no/such/home", "FILE"])
def test_without_a_home_folder_caches_get_another_place(
    place: str, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (temporary / "file").touch()
    monkeypatch.setenv("HOME", place.replace("FILE", f"{temporary}/file"))
    monkeypatch.setattr(Path, "home", lambda: Path("/no/such/entry"))
    line = choose_home()
    assert "is no folder" in line
    assert os.environ["HOME"] == f"{temporary}/rsgrpo-home-{os.getuid()}"
    assert Path(os.environ["HOME"]).is_dir()
    assert choose_home() == ""


@pytest.mark.parametrize("locked", ["home", "cache"])
def test_a_home_that_cannot_be_written_is_replaced(
    locked: str, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = temporary / "given"
    (given / ".cache").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(given))
    if locked == "home":
        (given / ".cache").rmdir()
    refuse_writing(monkeypatch, given, given / ".cache")
    assert choose_home().startswith(f"HOME={given} cannot be written (Permission denied): ")
    assert os.environ["HOME"] == f"{temporary}/rsgrpo-home-{os.getuid()}"


def test_where_no_place_is_left_one_sentence_says_so(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/no/such/home")
    (temporary / f"rsgrpo-home-{os.getuid()}").symlink_to(temporary)  # somebody else's trap
    with pytest.raises(HomeError, match=r"HOME=/no/such/home is no folder, and .* is another user's; set HOME"):
        choose_home()
    monkeypatch.setattr(tempfile, "tempdir", "/no/such/folder")
    with pytest.raises(HomeError, match="cannot be made: No such file"):
        choose_home()


def shell(command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["sh", "-c", command.replace("PYTHON", sys.executable)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
        check=False,
    )


def test_closed_streams_neither_stop_a_command_nor_lend_their_numbers_to_files(tmp_path: Path) -> None:
    code = (
        "import os, sys; from rsgrpo.failures import run_command; "
        f"run_command(lambda: [print('x'), print('y', file=sys.stderr), os.write(1, b'z'), "
        f"open('{tmp_path}/fd', 'w').write(str(os.open('{tmp_path}/file', 64)))] and 0)"
    )
    ended = shell(f'PYTHON -c "{code}" <&- >&- 2>&-')
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")
    assert int((tmp_path / "fd").read_text()) > 2
    assert (tmp_path / "file").read_bytes() == b""
    assert shell("PYTHON train.py --cfg job <&- >&- 2>&-").returncode == 0
    assert shell(f"PYTHON train.py rl.max_step=3 run_dir={tmp_path}/run <&- >&- 2>&-").returncode == 1


def test_output_onto_a_full_disk_is_one_sentence() -> None:
    ended = shell("PYTHON train.py --cfg job > /dev/full")
    assert ended.returncode == 1
    assert ended.stderr.splitlines() == ["error: no space left on the disk; free some, then go on with resume=auto"]


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, FULL, "runs/a/x"),
        OSError(f"write failed: {FULL}"),
        RuntimeError(f"PytorchStreamWriter failed: {FULL}"),
        ValueError(f"I/O error: {FULL} (os error 28)"),
    ],
)
def test_a_full_disk_is_named_whoever_writes(error: Exception) -> None:
    failure = explain(error)
    assert failure.is_foreseen
    assert failure.sentence.startswith("no space left on the disk")
    assert failure.sentence.endswith("free some, then go on with resume=auto")


def test_safetensors_that_find_the_disk_full_do_not_call_the_file_damaged() -> None:
    from safetensors import SafetensorError

    sentence = explain(SafetensorError(f"I/O error: {FULL} (os error 28)")).sentence
    assert sentence.startswith("no space left on the disk (SafetensorError: ")
