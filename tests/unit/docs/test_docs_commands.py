"""Every command in README and docs parses, or says why no test runs it."""

from __future__ import annotations

from pathlib import Path

import pytest

from recipes.commands import table
from tests.unit.docs.command_checks import CommandError, check
from tests.unit.docs.shell_blocks import (
    DOCUMENTS,
    MARKERS,
    REPOSITORY,
    Command,
    block_commands,
    commands,
    inline_code,
    split_page,
)

COMMANDS = commands()


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.place)
def test_a_command_that_the_docs_show_parses(command: Command) -> None:
    try:
        check(command)
    except CommandError as error:
        pytest.fail(f"{command.place}: {command.text}\n{error}", pytrace=False)


@pytest.mark.parametrize("file", DOCUMENTS, ids=lambda file: file.name)
def test_blocks_name_their_language_and_a_known_marker(file: Path) -> None:
    # a block without a language would hide its commands from the test above
    for block in split_page(file)[0]:
        assert block.language, f"{file.name}:{block.line} names no language; text is one"
        assert block.language not in ("sh", "shell", "zsh"), f"{file.name}:{block.line}: write bash or console"
        if block.language in ("bash", "console") and block.title:
            assert block.title in MARKERS, f"{file.name}:{block.line}"


def test_the_docs_show_the_two_commands_and_every_command_of_rsgrpo() -> None:
    shown = {command.text.partition("  #")[0].strip() for command in COMMANDS if command.file.name == "README.md"}
    assert {"uv run train.py", "uv run pytest -n 2"} <= shown
    words = [command.words for command in COMMANDS]
    used = {call[call.index("rsgrpo") + 1] for call in words if "rsgrpo" in call[:-1]}
    assert used >= table.COMMANDS.keys()


def _command(text: str, marker: str = "") -> Command:
    return Command(file=REPOSITORY / "README.md", line=1, text=text, marker=marker)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("uv run train.py rl.max_step=50", "max_step"),
        ("uv run train.py stage=evaluation", "stage"),
        ("uv run train.py recipe=quickstrat", "quickstrat"),
        ("uv run train.py --confg job", "--confg"),
        ("uv run train.py recipe=evisrag_7b", "ask for GPUs"),
        ("uv run --no-group cpu --extra gpus train.py", "gpus"),
        ("uv run --no-group cpu --extra gpu train.py", "ask for GPUs"),
        ("uv run rsgrpo reports runs/quickstart", "no command 'reports'"),
        ("uv run rsgrpo report", "does not take"),
        ("uv run rsgrpo rescore --bench evisrag/chartqa --data a --out b", "does not take"),
        ("uv run rsgrpo make-data shapes data/shapes", "does not take"),
        ("uv run rsgrpo lab replay runs/quickstart rewards.accuracy.wieght=2", "wieght"),
        ("uv run rsgrpo lab replay runs/quickstart rewards.accurracy.weight=2", "accurracy"),
        ("uv run rsgrpo doctor recipes=quickstart", "recipes"),
        ("uv run python -m rsgrpo.reports runs/quickstart", "no module"),
        ("uv run python benchmarks/update_step.py --repeat 3", "--repeat"),
        ("uv run python benchmarks/update_steps.py", "there is no"),
        ("uv run python examples/own_date.py", "there is no"),
        ("uv run train.py --config-dir examples/own_algorithm algorithm=scoped_rlo", "scoped_rlo"),
        ("uv run train.py --config-dir examples/own_algorithm recipe=evisrag_7b", "ask for GPUs"),
        ("uv run pytest -m 'not engines'", "engines"),
        ("uv run pytest -n two", "number of processes"),
        ("make checks", "checks"),
        ("lmms-eval eval --model rsgrpo --model_args checkpoints=PATH", "checkpoints"),
        ("apt-get install chromium", "not marked"),
    ],
)  # fmt: skip
def test_a_command_that_is_wrong_is_found(text: str, reason: str) -> None:
    with pytest.raises(CommandError, match=reason.replace("(", r"\(")):
        check(_command(text))


def test_commands_that_need_a_gpu_or_a_network_pass_with_their_marker() -> None:
    check(_command("uv run --no-group cpu --extra gpu train.py recipe=evisrag_7b", marker="needs a GPU"))
    check(_command("python3 -m pip install uv", marker="needs a network"))


def test_commands_are_cut_out_of_their_blocks(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "```bash title=\"needs a GPU\"\n# a comment\nA=b uv run train.py \\\n    seed=1  # why\n```\n"
        "Then `uv run\npytest` or\n```console\n$ uv run pytest\n3 passed\n```\n"
    )  # fmt: skip
    (first, second), _ = split_page(page)
    (train,) = block_commands(first)
    assert (train.words, train.marker, train.line) == (["uv", "run", "train.py", "seed=1"], "needs a GPU", 3)
    assert [command.words for command in block_commands(second)] == [["uv", "run", "pytest"]]
    assert inline_code(page) == [(6, "uv run pytest")]
