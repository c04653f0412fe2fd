"""``rsgrpo lab replay|lint``: try rewards on a CPU, without a model."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

from rewards.lab.cases import KINDS
from rewards.lab.lint import Lint, lint
from rewards.lab.replay import replay
from rewards.lab.settings import changed_settings, parsed_value, run_settings, yaml_rewards
from rewards.lab.tables import lint_table, replay_table
from rewards.plugins import load_rewards
from rsgrpo.config import RewardConfig, ScopeConfig
from rsgrpo.errors import RsgrpoError, shown
from rsgrpo.failures import CommandParser, run_command
from rsgrpo.io.atomic_files import write_json
from rsgrpo.io.jsonl import cut_line_note
from rsgrpo.run.folder import RunFolder

_DEFAULT_SHOWN = 5
_STATUSES = """\
exit status:
  0, of lint 1 if a trick earns as much as an honest response, 2 for an error
"""
_REPLAY_EXAMPLES = """\
  uv run rsgrpo lab replay runs/quickstart rewards.accuracy.weight=1 ~rewards.format
  uv run rsgrpo lab replay runs/quickstart --config configs/recipe/evisrag_7b.yaml --show 1
  uv run rsgrpo lab replay runs/quickstart 'response.sections.0.required=false'
  uv run rsgrpo lab replay runs/quickstart \\
      '+rewards.mine={function: "my_rewards.py:short_thinking", scope: {section: think}}'
"""
_LINT_EXAMPLES = """\
  uv run rsgrpo lab lint rewards.functions.accuracy:accuracy
  uv run rsgrpo lab lint my_rewards.py:short_thinking max_words=40
  uv run rsgrpo lab lint rewards.functions.format:format 'response.sections=[{name: plan}, {name: answer}]'
  uv run rsgrpo lab lint --config configs/recipe/quickstart.yaml --json tricks.json
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: the arguments of the command line; None: those of this process.

    Returns:
        The exit status: 0 on success, 1 if ``lint`` found a trick that pays, 2 after an error.
    """

    def command() -> int:
        options = command_parser().parse_args(arguments)
        return _replay(options) if options.command == "replay" else _lint(options)

    return run_command(command, error_status=2)


def command_parser() -> CommandParser:
    """What the command takes."""
    lines = argparse.RawDescriptionHelpFormatter
    parser = CommandParser(
        prog="rsgrpo lab",
        description="Try rewards on a CPU, without a model: on responses that a run saved, and against known tricks.",
        epilog=f"examples:\n{_REPLAY_EXAMPLES}{_LINT_EXAMPLES}\n{_STATUSES}",
        formatter_class=lines,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    again = commands.add_parser(
        "replay",
        help="score a run's saved responses with other rewards",
        description="Score a run's saved responses with other rewards, and say whose credit changes.",
        epilog=f"examples:\n{_REPLAY_EXAMPLES}",
        formatter_class=lines,
    )
    again.add_argument("run_folder", type=Path, help="the run_dir of a run, such as runs/quickstart")
    again.add_argument(
        "overrides", nargs="*", help="rewards.NAME.key=value, +rewards.NAME={…}, ~rewards.NAME, response.key=value"
    )
    again.add_argument("--config", type=Path, help="YAML whose rewards and sections take the place of the run's")
    again.add_argument("--stage", default="rl", help="whose responses: rl (default) or another stage of the run")
    again.add_argument(
        "--show", type=int, default=_DEFAULT_SHOWN, help=f"groups shown one by one (default {_DEFAULT_SHOWN})"
    )
    again.add_argument("--json", type=Path, help="write everything there")
    tricks = commands.add_parser(
        "lint",
        help="play known tricks on rewards",
        description="Play known tricks on rewards: none of them may earn as much as an honest response does.",
        epilog=f"examples:\n{_LINT_EXAMPLES}\n{_STATUSES}",
        formatter_class=lines,
    )
    tricks.add_argument(
        "rewards",
        nargs="*",
        help="module:function or file.py:function, key=value for its arguments, and response.key=value (with --config "
        "rewards.NAME.key=value too)",
    )
    tricks.add_argument("--config", type=Path, help="YAML with rewards: judge their weighted sum")
    tricks.add_argument(
        "--kind",
        default="",
        choices=("", *KINDS),
        metavar="KIND",
        help=f"of question: {', '.join(KINDS)}; default: what fits the reward",
    )
    tricks.add_argument("--json", type=Path, help="write everything there")
    return parser


def _replay(options: argparse.Namespace) -> int:
    before = run_settings(options.run_folder)
    after = changed_settings(options.run_folder, options.config, options.overrides)
    if note := cut_line_note(RunFolder(root=options.run_folder).rollouts_file):
        print(f"note: {note}", file=sys.stderr)
    result = replay(options.run_folder, before, after, stage=options.stage)
    print(replay_table(result, options.show))
    if options.json:
        _write(options.json, dataclasses.asdict(result))
    return 0


def _lint(options: argparse.Namespace) -> int:
    results: list[Lint] = []
    overrides = [given for given in options.rewards if _is_override(given)]
    others = [given for given in options.rewards if not _is_override(given)]
    kwargs = {key: parsed_value(value) for key, _, value in (given.partition("=") for given in others) if value}
    empty = next((given for given in others if given.endswith("=")), "")
    if empty:
        raise RsgrpoError(f"{shown(empty)} has no value; write {shown(empty)}VALUE, or leave it out")
    functions = [given for given in others if "=" not in given]
    if not functions and options.config is None:
        raise RsgrpoError("lint needs a reward, such as rewards.functions.accuracy:accuracy, or --config FILE")
    rewards, response_format = yaml_rewards(options.config, overrides)
    if options.config is not None:
        loaded = load_rewards(rewards, Path.cwd(), response_format)
        results.append(lint(str(options.config), loaded, options.kind, response_format))
    for function in functions:
        config = RewardConfig(function=function, scope=ScopeConfig(start="begin", stop="end"), kwargs=kwargs)
        short_name = function.rpartition(":")[2]  # messages call a reward rewards.NAME, as in settings
        loaded = load_rewards({short_name: config}, Path.cwd(), response_format)
        results.append(lint(function, loaded, options.kind, response_format))
    print(lint_table(results))
    if options.json:
        _write(options.json, [dataclasses.asdict(result) for result in results])
    return int(any(result.paying for result in results))


def _is_override(given: str) -> bool:
    """Whether an argument of lint changes a setting: a function's own arguments have no points in their names."""
    key, is_set, _ = given.partition("=")
    return given.startswith("~") or bool(is_set and "." in key)


def _write(file: Path, document: object) -> None:
    write_json(file, document, indent=1)


if __name__ == "__main__":
    sys.exit(main())
