"""How commands end, in this process or one of their own: other commands, strange environments, what nobody foresaw."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import recipes.evaluation.lmms_tasks
import rewards.lab.__main__
import rsgrpo.data.synthetic.__main__
import rsgrpo.evaluation.rescore.__main__
import rsgrpo.run.report.__main__
from rsgrpo.errors import RsgrpoError
from rsgrpo.failures import MAX_SENTENCE, explain, run_command
from tests.unit.command_line import REPOSITORY, is_one_sentence

MODULES: list[tuple[Any, list[str], str]] = [
    (rsgrpo.run.report.__main__, [], "run_folder"),
    (rsgrpo.run.report.__main__, ["/no/such"], "/no/such"),
    (rsgrpo.run.report.__main__, ["FILE"], "FILE"),
    (rsgrpo.evaluation.rescore.__main__, [], "--benchmark"),
    (rsgrpo.evaluation.rescore.__main__, ["--benchmark", "x", "--data", "x", "--predictions", "x", "--out", "x"], "x"),
    (
        rsgrpo.evaluation.rescore.__main__,
        ["--benchmark", "evisrag/chartqa", "--data", "/no", "--predictions", "/no", "--out", "OUT"],
        "/no",
    ),
    (
        rsgrpo.evaluation.rescore.__main__,
        ["--benchmark", "evisrag/chartqa", "--data", "FILE", "--predictions", "FILE", "--out", "OUT"],
        "FILE",
    ),
    (rsgrpo.data.synthetic.__main__, ["nosuch", "OUT"], "nosuch"),
    (rsgrpo.data.synthetic.__main__, ["choice", "FILE/x"], "FILE"),
    (rsgrpo.data.synthetic.__main__, ["choice", "OUT", "--train", "-1"], "--train"),
    (rsgrpo.data.synthetic.__main__, ["choice", "OUT", "--pages", "99"], "--pages"),
    (rsgrpo.data.synthetic.__main__, ["choice", "OUT", "--pixels", "x"], "--pixels"),
    (rsgrpo.data.synthetic.__main__, ["tickets", "OUT", "--pixels", "57"], "multiple of 28"),
    (rsgrpo.data.synthetic.__main__, ["tickets", "OUT", "--test", "4"], "between 5 and 1500"),
    (rsgrpo.data.synthetic.__main__, ["tickets", "OUT", "--pages", "2"], "--pages"),
    (rsgrpo.data.synthetic.__main__, ["tickets", "EMPTY"], "EMPTY"),
    (rewards.lab.__main__, [], "command"),
    (rewards.lab.__main__, ["replay", "/no/such"], "/no/such"),
    (rewards.lab.__main__, ["replay", "EMPTY"], "EMPTY"),
    (rewards.lab.__main__, ["lint", "nosuch:x"], "nosuch"),
    (rewards.lab.__main__, ["lint", "FILE:x"], "FILE"),
    (rewards.lab.__main__, ["lint", "x"], "x"),
    (rewards.lab.__main__, ["lint", "rewards.functions.format:sections", "names="], "names= has no value"),
    (rewards.lab.__main__, ["lint", "rewards.functions.accuracy:acc"], "rewards.acc.function="),
    (rewards.lab.__main__, ["lint", "--config", "FILE"], "FILE"),
    (rewards.lab.__main__, ["lint", "rewards.functions.format:format", "--json", "FILE/x"], "FILE"),
    (recipes.evaluation.lmms_tasks, [], "--tasks"),
    (recipes.evaluation.lmms_tasks, ["--tasks", "nosuch", "--data-root", "/no", "--out", "OUT"], "nosuch"),
    (recipes.evaluation.lmms_tasks, ["--tasks", "evisrag/chartqa", "--data-root", "/no", "--out", "OUT"], "/no"),
    (
        recipes.evaluation.lmms_tasks,
        ["--tasks", "evisrag/chartqa", "--data-root", "EMPTY", "--out", "OUT", "--max-samples", "-1"],
        "max_samples",
    ),
]


@pytest.mark.parametrize(
    ("module", "arguments", "named"),
    MODULES,
    ids=[f"{module.__name__} {' '.join(arguments)[:30]}" for module, arguments, _ in MODULES],
)
def test_the_other_commands_keep_the_same_manners(
    module: Any, arguments: list[str], named: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    places = {"EMPTY": tmp_path / "empty", "FILE": tmp_path / "file", "OUT": tmp_path / "out"}
    places["EMPTY"].mkdir()
    places["FILE"].write_bytes(b"\x89PNG\0\xff")

    def placed(text: str) -> str:
        return re.sub("EMPTY|FILE|OUT", lambda found: str(places[found[0]]), text)

    status = module.main([placed(argument) for argument in arguments])
    told = capfd.readouterr().err
    assert status in (1, 2)
    assert is_one_sentence(told)
    assert "internal error" not in told
    assert placed(named) in told


ENVIRONMENTS: list[tuple[dict[str, str], str]] = [
    ({"TMPDIR": "/no/such/folder"}, "TMPDIR=/no/such/folder"),
    ({"TMPDIR": "relative"}, "TMPDIR=relative"),
    ({"TMPDIR": "/proc", "RAY_TMPDIR": ""}, "TMPDIR=/proc"),
    ({"RAY_TMPDIR": "/no/such/folder"}, "RAY_TMPDIR=/no/such/folder"),
]


HARMLESS: list[dict[str, str]] = [
    {"RAY_ADDRESS": "10.255.255.1:6379"},
    {"HYDRA_FULL_ERROR": "1"},
    {"PYTHONIOENCODING": "ascii"},
    {"LC_ALL": "nosuch"},
    {"OMP_NUM_THREADS": "many"},
    {"HOME": "/no/such/home"},
]


@pytest.mark.parametrize(("environment", "named"), ENVIRONMENTS, ids=str)
def test_an_environment_that_cannot_work_is_refused_at_once(
    call: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], named: str
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    status, told, begun = call(f"run_dir={tmp_path / 'run'}")
    assert (status, begun) == (1, [])
    assert is_one_sentence(told)
    assert named in told


def test_a_long_temporary_folder_gives_way_to_a_short_one(
    call: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 107 bytes for a socket's path, of which Ray's session takes 75: TMPDIR may have 31
    long = tmp_path / ("t" * 60)
    long.mkdir()
    monkeypatch.setenv("TMPDIR", str(long))
    monkeypatch.setenv("RAY_TMPDIR", "")
    status, told, begun = call(f"run_dir={tmp_path / 'run'}")
    assert (status, len(begun)) == (0, 1)
    assert is_one_sentence(told)
    assert str(long) in told
    assert len(os.environ["TMPDIR"]) <= 31
    assert Path(os.environ["TMPDIR"]).is_dir()


def process(*arguments: str, environment: dict[str, str] | None = None, stdin: Any = None) -> tuple[int, str, str]:
    ended = subprocess.run(
        [sys.executable, "train.py", *arguments],
        cwd=REPOSITORY,
        env={**os.environ, **(environment or {})},
        capture_output=True,
        text=True,
        errors="replace",
        stdin=stdin,
        timeout=300,
        check=False,
    )
    return ended.returncode, ended.stdout, ended.stderr


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["rl.max_step=3"], "rl.max_steps"),
        (["recipe=quickstrt", "--cfg", "job"], "quickstart"),
        (["stage=rl", "data.rl_path=/no/such.jsonl", "data.test_path=/no/such.jsonl"], "/no/such.jsonl"),
        (["run_dir=/dev/null/x"], "/dev/null/x"),
        (["cluster.address=127.0.0.1:1"], "127.0.0.1:1"),
    ],
)
def test_a_process_of_its_own_says_the_same(arguments: list[str], named: str, tmp_path: Path) -> None:
    status, printed, told = process(f"run_dir={tmp_path / 'run'}", *arguments)
    assert (status, printed) == (1, "")
    assert is_one_sentence(told)
    assert named in told


@pytest.mark.parametrize("environment", HARMLESS, ids=str)
def test_a_strange_environment_changes_nothing(environment: dict[str, str], tmp_path: Path) -> None:
    # the last of the first checks, which the environment must let the command reach
    (tmp_path / "run").write_text("a file")
    status, _, told = process(f"run_dir={tmp_path / 'run'}", environment=environment)
    assert status == 1
    assert is_one_sentence(told.splitlines()[-1])
    assert f"{tmp_path}/run" in told
    assert "Traceback" not in told


def test_the_engines_are_not_imported_for_the_first_checks(tmp_path: Path) -> None:
    heavy = ("torch", "ray", "vllm", "transformers")
    code = f"import sys, recipes.setup.first_checks, train; print([name for name in {heavy} if name in sys.modules])"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY, check=True)
    assert ended.stdout.strip() == "[]"


def test_what_nobody_foresaw_is_kept_in_a_file_that_the_sentence_names(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> None:
        raise ZeroDivisionError("of our own making")

    assert run_command(broken, log_folder=lambda: tmp_path) == 1
    told = capfd.readouterr().err
    assert is_one_sentence(told)
    assert f"{tmp_path}/error.log" in told
    assert "ZeroDivisionError: of our own making" in told
    assert 'raise ZeroDivisionError("of our own making")' in (tmp_path / "error.log").read_text()
    monkeypatch.setenv("RSGRPO_TRACEBACK", "1")
    assert run_command(broken, log_folder=lambda: tmp_path) == 1
    assert "Traceback" in capfd.readouterr().err


@pytest.mark.parametrize("number", [28, 13, 24, 36, 30, 2, 12, 5, 999])
def test_what_the_system_refuses_is_named(number: int) -> None:
    failure = explain(OSError(number, os.strerror(number), "/data/x.jsonl"))
    assert failure.is_foreseen
    assert "/data/x.jsonl" in failure.sentence
    assert len(failure.sentence) <= MAX_SENTENCE


def test_a_message_of_several_lines_keeps_them_apart_in_one() -> None:
    listed = RsgrpoError(
        "a.parquet: 3 items cannot be used:\n  row 0: no image\n  row 1: no image\n  … and 1 more\nfix them"
    )
    assert explain(listed).sentence == (
        "a.parquet: 3 items cannot be used: row 0: no image; row 1: no image; … and 1 more; fix them"
    )
