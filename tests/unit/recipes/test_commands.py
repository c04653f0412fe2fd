"""The command ``rsgrpo``: what it lists, what it refuses, how light it is, and that its own examples are right."""

from __future__ import annotations

import importlib
import os
import shlex
import signal
import subprocess
import sys
import time
import tomllib
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest

from recipes.commands.program import main, overview, run
from recipes.commands.table import COMMANDS
from recipes.commands.train import help_parser
from recipes.doctor.settings import read_settings
from recipes.indexing.settings import split_settings
from rsgrpo import __version__
from rsgrpo.failures import run_command
from tests.programs import TIMEOUT_SECONDS, heed_interrupts
from tests.unit.command_line import REPOSITORY, is_one_sentence

PROGRAM = Path(sys.executable).parent / "rsgrpo"
HEAVY = ("torch", "transformers", "ray", "vllm", "deepspeed", "datasets", "sklearn", "scipy", "matplotlib", "hydra")
SETTINGS_COMMANDS = ("train", "plan", "doctor")  # whose arguments are settings


def program(*arguments: str, cwd: Path = REPOSITORY, **environment: str) -> tuple[int, str, str]:
    ended = subprocess.run(
        [PROGRAM, *arguments],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return ended.returncode, ended.stdout, ended.stderr


def help_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    try:
        status = run([*arguments, "--help"])
    except SystemExit as end:
        status = int(end.code or 0)
    shown = capsys.readouterr()
    assert (status, shown.err) == (0, "")
    return shown.out


def examples_in(text: str) -> list[list[str]]:
    """The arguments behind ``uv run rsgrpo`` of every example, read as a shell reads them."""
    lines = text.replace("\\\n", " ").splitlines()
    calls = [line.strip() for line in lines if line.strip().startswith("uv run rsgrpo ")]
    return [shlex.split(part, comments=True)[3:] for call in calls for part in call.split("&&")]


def test_the_overview_names_every_command_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    lines = help_of(capsys).splitlines()
    listed = [line.split()[0] for line in lines if line.startswith("  ") and line.split()[0] in COMMANDS]
    assert listed == list(COMMANDS)
    assert all(len(line) <= 120 for line in lines)
    width = max(map(len, COMMANDS))
    for name, command in COMMANDS.items():
        assert f"  {name.ljust(width)}  {command.summary}" in lines


def test_the_console_script_is_this_program() -> None:
    (script,) = entry_points(group="console_scripts", name="rsgrpo")
    assert script.load() is main


def test_everything_that_the_program_needs_is_in_the_wheel() -> None:
    settings = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    packages = settings["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    entries = {command.entry.partition(".")[0] for command in COMMANDS.values()}
    assert entries | {"rollout", "configs"} <= set(packages)
    assert settings["project"]["version"] == __version__


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself_with_examples_of_its_own(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = help_of(capsys, name)
    assert text.startswith(f"usage: rsgrpo {name} ")
    own = [call for call in examples_in(text) if call[:1] == [name]]
    assert own


@pytest.mark.parametrize("name", [name for name in COMMANDS if name not in SETTINGS_COMMANDS])
def test_examples_of_a_command_are_calls_that_it_takes(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    parser = importlib.import_module(COMMANDS[name].entry.partition(":")[0]).command_parser()
    calls = [call for call in examples_in(help_of(capsys, name)) if call[0] == name]
    assert calls
    for call in calls:
        words = (
            split_settings(call[1:])[0] if name in ("index", "search", "mine-negatives", "tune-search") else call[1:]
        )
        words = [word for word in words if not word.startswith("filter.")]
        parser.parse_args(words)  # raises UsageError for an option that is not there


@pytest.mark.parametrize("text", [*SETTINGS_COMMANDS, "make-data", ""])
def test_examples_with_settings_name_settings_that_there_are(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    calls = [call for call in examples_in(help_of(capsys, *filter(None, [text]))) if call[0] in SETTINGS_COMMANDS]
    assert calls
    for name, *rest in calls:
        overrides = [word for word in rest if "=" in word]
        options = [word for word in rest if "=" not in word]
        assert not options or options[0] in ("--cfg", "--json"), name
        read_settings(overrides)


def test_help_of_train_lists_what_the_folder_of_settings_holds() -> None:
    text = " ".join(help_parser("rsgrpo train").format_help().split())
    for group in ("recipe", "algorithm", "machine"):
        for file in (REPOSITORY / "configs" / group).glob("*.yaml"):
            assert file.stem in text


@pytest.mark.parametrize("arguments", [[], *([name] for name in COMMANDS), ["lab", "replay"], ["lab", "lint"]], ids=str)
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys\n"
        "from recipes.commands.program import run\n"
        f"try: run({[*arguments, '--help']!r})\n"
        "except SystemExit: pass\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY, check=True)
    assert ended.stdout.startswith("usage: rsgrpo")
    assert ended.stderr.strip() == "[]"


def test_the_overview_imports_only_what_prints_it() -> None:
    code = "import sys, recipes.commands.program"
    code += "; print(len([name for name in sys.modules if name.startswith('rewards')]))"
    code += "; print([name for name in ('numpy', 'omegaconf', 'PIL', 'rich', 'jinja2') if name in sys.modules])"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY, check=True)
    assert ended.stdout.splitlines() == ["0", "[]"]


MISTAKES = [
    # what is typed, and what the sentence must hold
    (["trian"], "'trian' is no command of rsgrpo; the nearest is train"),
    (["raport"], "the nearest is report"),
    (["make_data"], "the nearest is make-data"),
    (["rescores", "--out", "x"], "the nearest is rescore"),
    (["zzz"], f"the commands are {', '.join(COMMANDS)}"),
    (["recipe=quickstart"], "write `rsgrpo train recipe=quickstart`"),
    (["--nosuch"], "'--nosuch' is no command"),
    ([""], "'' is no command"),
    (["t" * 5000], "ttt"),
    (["a\nb"], "'a b' is no command"),
    (["train", "--nosuch"], "unrecognized arguments: --nosuch; rsgrpo train --help shows"),
    (["train", "--cfg", "jobs"], "rsgrpo train --help shows"),
    (["plan", "--nosuch"], "rsgrpo plan --help shows"),
    (["doctor", "--nosuch"], "rsgrpo doctor --help shows"),
    (["report"], "run_folder; rsgrpo report --help shows"),
    (["report", "a", "--nosuch"], "rsgrpo report --help shows"),
    (["lab", "repaly"], "'repaly'"),
    (["rescore"], "--benchmark"),
    (["tasks"], "rsgrpo tasks --help shows"),
    (["make-data", "shapes", "x"], "'grounding', 'haystack', 'choice'"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "named"), MISTAKES, ids=[" ".join(arguments)[:30] for arguments, _ in MISTAKES])
def test_a_mistake_in_the_call_gets_one_sentence_and_status_2(
    arguments: list[str], named: str, capfd: pytest.CaptureFixture[str]
) -> None:
    def called() -> int:
        try:
            return run(arguments)
        except SystemExit as end:  # `train` ends its process itself
            return int(end.code or 0)

    assert run_command(called) == 2
    shown = capfd.readouterr()
    assert shown.out == ""
    assert is_one_sentence(shown.err)
    assert named in shown.err


def test_a_call_without_a_command_shows_the_overview_and_fails(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([]) == 2
    shown = capsys.readouterr()
    assert (shown.out, shown.err.rstrip("\n")) == ("", overview())


def test_the_installed_script_ends_as_the_others_do() -> None:
    assert program("--version") == (0, f"rsgrpo {__version__}\n", "")
    status, printed, told = program("dcotor")
    assert (status, printed) == (2, "")
    assert told == "error: 'dcotor' is no command of rsgrpo; the nearest is doctor\n"


def test_train_composes_its_settings_wherever_it_is_started(tmp_path: Path) -> None:
    asked = ("recipe=rl_grounding", "algorithm=dapo", "rl.max_steps=7", "--cfg", "job")
    status, printed, told = program("train", *asked, cwd=tmp_path)
    assert (status, told) == (0, "")
    assert "name: rl_grounding\n" in printed
    assert "  algorithm: dapo\n" in printed
    assert "  max_steps: 7\n" in printed
    assert list(tmp_path.iterdir()) == []
    # train.py is the same under another name
    ended = subprocess.run(
        [sys.executable, REPOSITORY / "train.py", *asked], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert ended.stdout == printed


def test_plan_is_train_with_plan_true(monkeypatch: pytest.MonkeyPatch, call: Any, tmp_path: Path) -> None:
    import recipes.commands.plan

    given: list[tuple[list[str], str]] = []
    monkeypatch.setattr(recipes.commands.plan, "train", lambda arguments, program: given.append((arguments, program)))
    assert run(["plan", "recipe=quickstart", "plan=false", "plan_for.gpu=H100"]) == 0
    ((arguments, name),) = given
    assert name == "rsgrpo plan"
    status, told, begun = call(*arguments, f"run_dir={tmp_path / 'run'}")
    assert (status, told) == (0, "")
    assert [(config.plan, config.plan_for.gpu) for config in begun] == [(True, "H100")]
    assert list(tmp_path.iterdir()) == []


def test_a_reader_that_leaves_early_ends_a_command_quietly(tmp_path: Path) -> None:
    ended = subprocess.run(
        f"{shlex.quote(str(PROGRAM))} train --cfg job | head -1",
        shell=True,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ended.stdout, ended.stderr) == ("name: quickstart\n", "")


MODULES = {
    "report": "rsgrpo.run.report",
    "rescore": "rsgrpo.evaluation.rescore",
    "lab": "rewards.lab",
    "make-data": "rsgrpo.data.synthetic",
    "doctor": "recipes.doctor",
    "tasks": "recipes.evaluation.lmms_tasks",
}


@pytest.mark.parametrize("name", MODULES)
def test_a_module_called_by_its_name_is_the_same_command(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", MODULES[name], "--help"], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert ended.stdout == help_of(capsys, name)


def test_ctrl_c_ends_a_command_with_one_line_and_status_130(tmp_path: Path) -> None:
    running = subprocess.Popen(
        [PROGRAM, "make-data", "choice", str(tmp_path / "data"), "--train", "1000000"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=heed_interrupts,
    )
    while _caught(running.pid) & (1 << signal.SIGTERM - 1) == 0:
        assert running.poll() is None
        time.sleep(0.01)
    time.sleep(1.0)  # into the drawing, which takes minutes
    running.send_signal(signal.SIGINT)
    printed, told = running.communicate(timeout=TIMEOUT_SECONDS)
    assert (running.returncode, printed) == (130, "")
    assert is_one_sentence(told)
    assert told == "interrupted; call it again\n"  # it has nothing to resume


def _caught(pid: int) -> int:
    """The signals that a process has handlers for, one bit each; SIGTERM is one once Ctrl-C is heeded."""
    (line,) = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("SigCgt")]
    return int(line.split()[1], 16)


def test_a_reward_file_is_looked_for_where_the_run_is_started(
    call: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    setting = 'rewards.mine={function: "mine.py:reward", scope: {section: think}}'
    status, told, _ = call(setting, "run_dir=run")
    assert status == 1
    assert f"there is no file {tmp_path}/mine.py" in told
    (tmp_path / "mine.py").write_text("def reward(call):\n    return 1.0\n")
    status, told, begun = call(setting, "run_dir=run")
    assert (status, told) == (0, "")
    assert [config.rewards["mine"].function for config in begun] == ["mine.py:reward"]
