"""The examples as a user runs them: a process of their own, somewhere else, and what they print is true."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from recipes.doctor.check import Check, Subject
from recipes.doctor.data_checks import data_checks, image_checks
from recipes.doctor.reward_checks import reward_checks
from recipes.doctor.settings import read_settings
from rewards.plugins import load_rewards
from tests.unit.command_line import REPOSITORY, is_one_sentence

EXAMPLES = REPOSITORY / "examples"


def example(script: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, EXAMPLES / script, *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def printed(script: str, *arguments: str, cwd: Path) -> str:
    ended = example(script, *arguments, cwd=cwd)
    assert (ended.returncode, ended.stderr) == (0, "")
    return ended.stdout


def commands_in(text: str) -> Iterator[list[str]]:
    """What is printed to be typed next, as a shell reads it."""
    for line in text.splitlines():
        if line.strip().startswith("uv run rsgrpo "):
            yield shlex.split(line)[3:]


def checks_of(overrides: list[str], scratch: Path) -> list[Check]:
    """What the doctor says of data and rewards; the model is not here."""
    scratch.mkdir()
    subject = Subject(config=read_settings(overrides), scratch=scratch)
    return [check for step in (data_checks, image_checks, reward_checks) for check in step(subject)]


@pytest.fixture(scope="module")
def own_data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder in which own_data.py made up "my data", and what it printed."""
    folder = tmp_path_factory.mktemp("own_data")
    return folder, printed("own_data.py", "my data", cwd=folder)


@pytest.fixture(scope="module")
def own_reward(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What try_it.py prints; it writes nothing."""
    folder = tmp_path_factory.mktemp("own_reward")
    text = printed("own_reward/try_it.py", cwd=folder)
    assert list(folder.iterdir()) == []
    return text


def test_every_example_is_run_here() -> None:
    scripts = {str(path.relative_to(EXAMPLES)) for path in EXAMPLES.rglob("*.py") if "__main__" in path.read_text()}
    assert scripts == {"own_data.py", "own_reward/try_it.py", "own_algorithm/show_credit.py"}


def test_made_up_pages_become_a_data_set_that_the_printed_commands_train_on(
    own_data: tuple[Path, str], tmp_path: Path
) -> None:
    folder, text = own_data
    # of five questions the fourth is held out
    assert "train.jsonl: 4 questions, 3 pages (3 PNG RGB)" in text
    assert "test.jsonl: 1 questions, 2 pages (2 PNG RGB)" in text
    assert "the answer stands on ['imgs/invoice.png']" in text
    assert "chat.json: 4 of 4 records can be used" in text
    (held_out,) = (folder / "my data" / "test.jsonl").read_text().splitlines()
    assert json.loads(held_out) == {
        "qid": "mine-4",
        "query": "How many visitors came in 2024?",
        "answer": ["19,700"],
        "image": ["imgs/table.png", "imgs/invoice.png"],
        "posImgs": ["imgs/table.png"],
        "is_sufficient": True,
    }
    doctor, train, supervised = commands_in(text)
    assert [doctor[0], train[0], supervised[0]] == ["doctor", "train", "train"]
    assert doctor[1:] == train[1:]
    place = str(folder / "my data")
    for number, (call, found) in enumerate(
        # 3 + 3 + 2 + 2 pages
        [(train, "4 samples with 10 images"), (supervised, "chat.json: 4 of 4 records can be used")]
    ):
        overrides = [override.replace("my data", place) for override in call[1:]]
        checks = checks_of(overrides, tmp_path / str(number))
        assert [check for check in checks if check.status == "problem"] == []
        assert found in " ".join(check.found for check in checks)


def test_ones_own_pages_are_read_and_a_missing_one_is_named(own_data: tuple[Path, str], tmp_path: Path) -> None:
    pages = own_data[0] / "my data" / "made-up"
    (tmp_path / "questions.csv").write_text(
        "\ufeffquestion,answer,pages,gold_pages\n"
        'Total?,"310 euros",invoice.png,invoice.png\nSent?,14 March,letter.png; table.png,\n'
        "Most?,2023,table.png,table.png\nInk?,190,invoice.png,invoice.png\n",
        encoding="utf-8",
    )
    text = printed("own_data.py", "out", "--pages", str(pages), "--questions", "questions.csv", cwd=tmp_path)
    assert "train.jsonl: 3 questions, 3 pages" in text
    assert "assistant: '310 euros'" in text
    with (tmp_path / "questions.csv").open("a") as file:
        file.write("Who?,Lind,nowhere.png,\n")
    ended = example("own_data.py", "out", "--pages", str(pages), "--questions", "questions.csv", cwd=tmp_path)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert is_one_sentence(ended.stderr)
    assert "line 4" in ended.stderr and "nowhere.png" in ended.stderr


def test_a_table_without_a_column_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "questions.csv").write_text("question,answer,images\na,b,c\n")
    ended = example("own_data.py", "out", "--pages", ".", "--questions", "questions.csv", cwd=tmp_path)
    assert ended.returncode == 1
    assert "questions.csv has no column pages, gold_pages" in ended.stderr
    ended = example("own_data.py", "out", "--pages", ".", cwd=tmp_path)
    assert ended.returncode == 2
    assert is_one_sentence(ended.stderr)


def test_the_reward_example_shows_value_credit_and_tricks(own_reward: str) -> None:
    rows = re.findall(r"^  (\w+, \w+) +value (\d)  advantage (\S+)  on '<think>", own_reward, re.MULTILINE)
    # Values 1, 0, 1: mean 2/3, unbiased std sqrt(1/3) = 0.577, so A = 0.577, -1.155, 0.577; of 1, 0, 0 likewise.
    assert rows == [
        ("short, right", "1", "+0.577"),
        ("long, right", "0", "-1.155"),
        ("short, wrong", "1", "+0.577"),
        ("short, right", "1", "+1.155"),
        ("long, right", "0", "-0.577"),
        ("short, wrong", "0", "-0.577"),
    ]
    assert own_reward.count("on '<think>Page 1 gives the total.</think>'\n") == 2
    verdicts = [
        line for line in own_reward.splitlines() if line.endswith("tricks pay as much as an honest response, or more")
    ]
    paying = [int(line.split()[0]) for line in verdicts]
    assert len(paying) == 2
    assert paying[0] > 0 == paying[1]


def test_the_printed_reward_setting_is_one_that_a_run_takes(own_reward: str, tmp_path: Path) -> None:
    (call,) = commands_in(own_reward)
    assert call[0] == "train"
    rewards = read_settings(call[1:]).scored_rewards
    assert (rewards["brief"].scope.section, rewards["brief"].weight) == ("think", 0.5)
    assert {"accuracy", "evidence"} < set(rewards)
    brief = load_rewards({"brief": rewards["brief"]}, tmp_path)[0]
    assert brief.gold_sections == ("answer",)


def test_the_algorithm_example_shows_the_credit_of_every_token(tmp_path: Path) -> None:
    text = printed("own_algorithm/show_credit.py", cwd=tmp_path)
    rows = {
        (name, response): (row[0].split(), row[1].split())
        for name, block in re.findall(r"^(\w+): \w+, .*\n((?:  .*\n)+)", text, re.MULTILINE)
        for response, row in enumerate(re.findall(r"advantages (.*?)   tokens (.*)$", block, re.MULTILINE))
    }
    assert [key for key in rows if key[1] == 0] == [("grpo", 0), ("rs_grpo", 0), ("scoped_rloo", 0)]
    # The well-read, wrong answer. grpo: sums 2, 1, 0, of which 1 is the mean.
    assert rows["grpo", 1] == (["+0.000"] * 2, ["+0.0000"] * 4)
    # rs_grpo: evidence 1, 1, 0: A = (1 - 2/3) / 0.5774 = 0.577; 6 tokens of its scope, W = 2: 0.577 / 12 = 0.0481.
    assert rows["rs_grpo", 1] == (["+0.577", "-0.577"], ["+0.0481", "+0.0481", "-0.0481", "-0.0481"])
    # scoped_rloo: 1 - (1 + 0) / 2 = 0.5 and 0 - (1 + 0) / 2 = -0.5; 12 tokens in the step, W = 2: 0.5 / 24 = 0.0208.
    assert rows["scoped_rloo", 1] == (["+0.500", "-0.500"], ["+0.0208", "+0.0208", "-0.0208", "-0.0208"])
    assert list(tmp_path.iterdir()) == []


def test_the_printed_algorithm_command_composes(tmp_path: Path) -> None:
    (call,) = commands_in(printed("own_algorithm/show_credit.py", "scoped_rloo", cwd=tmp_path))
    ended = subprocess.run(
        [Path(sys.executable).parent / "rsgrpo", *call, "--cfg", "job", "--package", "rl.credit"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "baseline: leave_one_out\n" in ended.stdout


def test_an_algorithm_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    ended = example("own_algorithm/show_credit.py", "scoped_rlo", cwd=tmp_path)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert is_one_sentence(ended.stderr)
    assert "scoped_rloo" in ended.stderr


@pytest.mark.parametrize("script", ["own_data.py", "own_algorithm/show_credit.py"])
def test_examples_explain_themselves(script: str, tmp_path: Path) -> None:
    assert f"uv run python examples/{script}" in printed(script, "--help", cwd=tmp_path)
