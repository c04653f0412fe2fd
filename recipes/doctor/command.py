"""The doctor's command line: ``rsgrpo doctor [recipe=NAME] [key=value …] [--config-dir FOLDER] [--json FILE]``."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from recipes.doctor.check import Step
from recipes.doctor.examination import STEPS, examine
from recipes.doctor.output import show, verdict, write_json
from rsgrpo.errors import RsgrpoError, shown
from rsgrpo.failures.command import CommandParser, run_command

_EXAMPLES = """\
examples:
  uv run rsgrpo doctor                          # is this machine ready for the quickstart?
  uv run rsgrpo doctor recipe=evisrag_3b data.rl_path=data/evisrag/train.jsonl data.test_path=data/evisrag/test.jsonl
  uv run rsgrpo doctor recipe=evisrag_7b --json checks.json && uv run rsgrpo train recipe=evisrag_7b
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Examine what a training run would need.

    Args:
        arguments: the arguments of the command line; None: those of this process.

    Returns:
        The exit status: 0 without problems, 1 with problems.
    """
    # transformers and the hub talk on standard error about what the doctor says itself.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    return run_command(lambda: run_doctor(sys.argv[1:] if arguments is None else arguments))


def command_parser() -> CommandParser:
    """What the command takes."""
    parser = CommandParser(
        prog="rsgrpo doctor",
        description="Look at machine, data, model and rewards before a run does, and say what to do.\n"
        "Nothing is started, fetched or written. The exit status is 0 without problems and 1 with.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings, as for `rsgrpo train`")
    parser.add_argument(
        "--config-dir", type=Path, metavar="FOLDER", help="look for recipes and algorithms there as well"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the same as data")
    return parser


def run_doctor(arguments: Sequence[str], file: TextIO | None = None, steps: Sequence[Step] = STEPS) -> int:
    """Examine, print, and say how it went.

    Args:
        arguments: settings and ``--config-dir FOLDER`` as for ``rsgrpo train``, and ``--json FILE``.
        file: where to print; None: standard output.
        steps: what to look at.

    Returns:
        The exit status: 0 without problems, 1 with problems.

    Raises:
        RsgrpoError: ``--config-dir`` is no folder; the file for ``--json`` cannot be written (everything else has been
            printed by then).
    """
    begin = time.perf_counter()
    options = command_parser().parse_intermixed_args(arguments)
    overrides = [*_search_path(options.config_dir), *options.overrides]
    target = file or sys.stdout
    found = list(show(examine(overrides, steps=steps), target))
    seconds = time.perf_counter() - begin
    checks = [line.check for line in found]
    print(f"\n{verdict(checks, seconds)}", file=target, flush=True)
    if options.json:
        write_json(options.json, found, overrides, seconds)
    return int(any(check.status == "problem" for check in checks))


def _search_path(config_folder: Path | None) -> list[str]:
    """The override that stands for hydra's ``--config-dir``; none without a folder."""
    if config_folder is None:
        return []
    if not config_folder.is_dir():
        raise RsgrpoError(f"--config-dir {shown(config_folder)} is no folder; check the path")
    return [f'hydra.searchpath=["file://{config_folder.resolve()}"]']
