"""A run folder after a full disk, a lost node or a stray hand: a result, or one sentence, and never anything else."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.lab.__main__ import main as lab
from rewards.lab.replay import replay
from rewards.lab.settings import run_settings
from rewards.plugins import load_rewards
from rewards.scorer import Scorer
from rsgrpo.algorithm.advantages import credit_groups
from rsgrpo.config import Config, RewardConfig, ScopeConfig, resolved_yaml
from rsgrpo.errors import RsgrpoError
from rsgrpo.io.atomic_files import FileError
from rsgrpo.io.timers import StageClock
from rsgrpo.run.folder import open_run_folder
from rsgrpo.run.logger import read_metrics
from rsgrpo.run.recorder import read_groups, record_groups, truncate_after
from rsgrpo.run.report import build_report
from rsgrpo.run.report.__main__ import main as report_main
from rsgrpo.types import ChatPrompt, Group
from tests.examples import examples
from tests.unit.report_run import make_rollout, make_run, make_sample, response

MAX_CHARACTERS = 500
REWARDS = {
    "accuracy": RewardConfig(
        function="rewards.functions.accuracy:accuracy", scope=ScopeConfig(start="<think>", stop="end")
    ),
    "format": RewardConfig(function="rewards.functions.format:format", scope=ScopeConfig(start="begin", stop="end")),
}
CONFIG = Config(name="made", stage="rl", rewards=REWARDS)
OTHER_JSON = [
    "null",
    "3",
    "[]",
    "[[1]]",
    "{}",
    '"text"',
    '{"stage": 1}',
    '{"stage": "rl", "step": "x"}',
    "NaN",
]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small run of two steps, with settings and rollouts that belong together."""
    folder = make_run(tmp_path_factory.mktemp("runs") / "whole", num_steps=2)
    shutil.rmtree(folder / "data")
    (folder / "config.yaml").write_text(resolved_yaml(CONFIG))
    (folder / "stage_seconds.json").write_text('{"sft": 3.5, "rl": 10.0}')
    sample = make_sample()
    rollouts = tuple(make_rollout(response(answer, well_read=True), n) for n, answer in enumerate(("7", "4")))
    group = Group(
        sample=sample,
        prompt=ChatPrompt(sample_id="q0", text=sample.question),
        prompt_token_ids=rollouts[0].token_ids,
        rollouts=rollouts,
    )
    credited = credit_groups(
        Scorer(load_rewards(REWARDS, folder)).score([group]), dict.fromkeys(REWARDS, 1.0), CONFIG.rl.credit
    )
    for step in (1, 2):
        record_groups(folder / "rollouts.jsonl", "rl", step, credited)
    return folder


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(whole, tmp_path / "run"))


def _replay(folder: Path) -> None:
    settings = run_settings(folder)
    replay(folder, settings, settings)


def _resume(folder: Path) -> None:
    with open_run_folder(Config(name="made", stage="rl", rewards=REWARDS, run_dir=str(folder), resume="auto")):
        truncate_after(folder / "rollouts.jsonl", "rl", 1)


def _score_again(folder: Path) -> None:
    replay(folder, CONFIG, CONFIG)


def _truncate(folder: Path) -> None:
    truncate_after(folder / "rollouts.jsonl", "rl", 1)


READERS: dict[str, dict[str, Callable[[Path], object]]] = {
    "config.yaml": {"replay": _replay, "resume": _resume, "report": build_report},
    "metrics.jsonl": {"metrics": lambda folder: read_metrics(folder / "metrics.jsonl"), "report": build_report},
    "rollouts.jsonl": {"replay": _score_again, "resume": _truncate, "report": build_report},
    "summary.json": {"report": build_report},
    "stage_seconds.json": {"clock": lambda folder: StageClock(folder / "stage_seconds.json").problem},
}
"""Who reads which file."""
FILES = list(READERS)


def _problem(read: Callable[[Path], object], folder: Path) -> str:
    """The one sentence; empty: there is a result. Anything else fails the test."""
    try:
        read(folder)
    except RsgrpoError as error:
        assert len(str(error)) < MAX_CHARACTERS, error
        assert "\n" not in str(error)
        return str(error)
    return ""


def _read_all(folder: Path, name: str) -> dict[str, str]:
    problems = {reader: _problem(read, folder) for reader, read in READERS[name].items()}
    assert problems.get("report", "") == ""  # what is left is shown
    return problems


def test_an_undamaged_run_has_no_problem(run: Path) -> None:
    notes: list[str] = []
    build_report(run, notes.append)
    assert notes == []
    assert not any(problem for name in FILES for problem in _read_all(run, name).values())


@examples(80)
@given(
    name=st.sampled_from(FILES),
    place=st.floats(0, 1),
    damage=st.one_of(
        st.none(), st.binary(max_size=6), st.sampled_from([b"\n", b"\0" * 9, b"9", b'"', b"e999", b"-", b"{}\n"])
    ),
    size=st.integers(0, 6),
)
def test_a_file_cut_or_altered_anywhere_is_read_or_named(
    whole: Path, tmp_path_factory: pytest.TempPathFactory, name: str, place: float, damage: bytes | None, size: int
) -> None:
    folder = tmp_path_factory.mktemp("damaged")
    content = (whole / name).read_bytes()
    position = int(place * len(content))
    rest = b"" if damage is None else damage + content[position + size :]
    (folder / name).write_bytes(content[:position] + rest)
    _read_all(folder, name)
    shutil.rmtree(folder)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    "content", [b"", b"\n", b"\0" * 5000, b"\xff\xfe\x01", b"PK\3\4", *map(str.encode, OTHER_JSON)]
)
def test_a_file_of_something_else_is_read_or_named(run: Path, name: str, content: bytes) -> None:
    (run / name).write_bytes(content + b"\n" if content else b"")
    _read_all(run, name)


@pytest.mark.parametrize("name", [name for name in FILES if name != "config.yaml"])  # YAML takes its time over it
def test_brackets_that_never_close_are_named(run: Path, name: str) -> None:
    (run / name).write_text("[" * 100_000 + "\n")
    _read_all(run, name)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_or_a_folder_in_its_place_is_read_or_named(run: Path, name: str) -> None:
    (run / name).unlink()
    _read_all(run, name)
    (run / name).mkdir()
    problems = _read_all(run, name)
    wanted = {"config.yaml": "resume", "metrics.jsonl": "metrics", "rollouts.jsonl": "replay"}
    if name in wanted:
        assert name in problems[wanted[name]] and "Is a directory" in problems[wanted[name]]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
@pytest.mark.parametrize("name", FILES)
def test_a_file_without_permission_is_named(run: Path, name: str) -> None:
    (run / name).chmod(0)
    assert any("ermission denied" in problem for problem in _read_all(run, name).values()) or name == "summary.json"


def test_a_cut_last_line_is_dropped_and_counted(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = run / "rollouts.jsonl"
    num_whole = len(read_groups(file))
    with file.open("ab") as end:
        end.write(file.read_bytes()[:100])
    assert len(read_groups(file)) == num_whole
    assert report_main_of(run) == 0
    assert "dropped 1 cut line of rollouts.jsonl (its last 100 bytes)" in capsys.readouterr().err
    assert lab(["replay", str(run)]) == 0
    assert "dropped 1 cut line of rollouts.jsonl" in capsys.readouterr().err


def report_main_of(run: Path) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["report", str(run)])
        return report_main()


def test_foreign_lines_are_named_or_left_out_and_counted(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = run / "rollouts.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    foreign = json.dumps({"stage": "sft", "step": 3, "policy/loss": 0.5}).encode() + b"\n"
    file.write_bytes(b"".join([lines[0], foreign, b"\0\0\0\n", *lines[1:]]))
    with pytest.raises(
        FileError, match=r"rollouts\.jsonl, line 2: no record of sample None .*; remove the line \(sed -i 2d"
    ):
        read_groups(file)
    assert lab(["replay", str(run)]) == 2
    assert "rollouts.jsonl, line 2" in capsys.readouterr().err
    assert report_main_of(run) == 0
    assert "left out 2 of the lines of rollouts.jsonl; the first: " in capsys.readouterr().err
    assert "left out 2 of the lines of rollouts.jsonl" in (run / "report.html").read_text()


def test_a_line_of_metrics_among_rollouts_stops_a_resumed_run_before_it_trains(run: Path) -> None:
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"stage": "rl", "step": 3, "policy/loss": "high"}\n')
    with pytest.raises(FileError, match=r"'policy/loss' is 'high', expected a finite number or null"):
        read_metrics(run / "metrics.jsonl")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda rollout: rollout.update(token_char_starts=[5, 3, *rollout["token_char_starts"][2:]]),
            "do not follow its text",
        ),
        (lambda rollout: rollout["positive_weights"].append(0.5), "values of positive_weights for"),
        (lambda rollout: rollout["rewards"].pop(), "different rewards"),
        (lambda rollout: rollout["rewards"][0].update(spans=[[0, 10**9]]), "a span lies outside"),
        (
            lambda rollout: rollout["rewards"][0].update(value="good"),
            r"rewards\[0\]\.value: got 'good', expected a number",
        ),
    ],
)
def test_numbers_that_do_not_go_together_are_named(
    run: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    file = run / "rollouts.jsonl"
    group = next(row for row in map(json.loads, file.read_text().splitlines()) if row["stage"] == "rl")
    change(group["rollouts"][0])
    file.write_text(json.dumps(group) + "\n")
    with pytest.raises(FileError, match=f"line 1: no record of sample 'q0' .*{message}"):
        read_groups(file)


def test_lost_stage_seconds_are_named_and_counted_from_now(run: Path) -> None:
    for content in ("", '{"rl": "long"}', '{"rl": -1}', "[1]", '{"rl": 1e999}'):
        (run / "stage_seconds.json").write_text(content)
        clock = StageClock(run / "stage_seconds.json")
        assert "stage_seconds.json" in clock.problem and clock.seconds == {}
        with clock.stage("rl"):
            pass
        assert StageClock(run / "stage_seconds.json").problem == ""


@pytest.mark.parametrize("content", ["", "\0" * 100, "name: [", "text", "3", "- 1", "rewards: 3\nseed: {}"])
def test_a_damaged_config_is_named_with_the_way_out(run: Path, content: str) -> None:
    (run / "config.yaml").write_text(content)
    assert "put it back, or move it away" in _problem(_resume, run)
    assert "config.yaml" in _problem(_replay, run)


def test_a_config_cut_between_two_settings_does_not_pass_for_other_settings(run: Path) -> None:
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text[: text.index("\nrl:") + 1])
    assert "was cut (rl is missing)" in _problem(_resume, run)


def test_a_run_whose_config_is_gone_is_not_begun_anew_over_its_checkpoints(run: Path) -> None:
    (run / "config.yaml").unlink()
    (run / "checkpoints" / "rl-000002").mkdir(parents=True)
    (run / "base_model").mkdir()
    never = Config(name="made", stage="rl", rewards=REWARDS, run_dir=str(run))
    with pytest.raises(RsgrpoError, match="already holds a run"), open_run_folder(never):
        pass
    again = Config(name="made", stage="rl", rewards=REWARDS, run_dir=str(run), resume="auto")
    with open_run_folder(again) as folder:
        assert "config.yaml is missing" in folder.note
    assert (run / "base_model").exists()
