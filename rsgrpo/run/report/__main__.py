"""``rsgrpo report RUN_FOLDER``: write the report again and print its path."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rsgrpo.errors import RsgrpoError, shown
from rsgrpo.failures import CommandParser, run_command
from rsgrpo.run.logger import METRICS_FILE
from rsgrpo.run.report.build import ROLLOUTS_FILE, build_report

_FILES_OF_A_RUN = ("config.yaml", METRICS_FILE, "summary.json", ROLLOUTS_FILE)
_EXAMPLES = """\
examples:
  uv run rsgrpo report runs/quickstart       # writes runs/quickstart/report.html, also while the run goes on
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Build one report; 0 on success."""
    return run_command(lambda: _build(arguments))


def command_parser() -> CommandParser:
    """What the command takes."""
    parser = CommandParser(
        prog="rsgrpo report",
        description="Write a run's report.html from what its folder holds, and print its path.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run_folder", type=Path, help="the run_dir of a run, such as runs/quickstart")
    return parser


def _build(arguments: Sequence[str] | None) -> None:
    folder = command_parser().parse_args(arguments).run_folder
    if folder.is_dir() and not any((folder / name).exists() for name in _FILES_OF_A_RUN):
        print(
            f"note: {shown(folder)} holds no run (none of {', '.join(_FILES_OF_A_RUN)}): the page is empty",
            file=sys.stderr,
        )
    try:
        print(build_report(folder, lambda note: print(f"note: {note}", file=sys.stderr)))
    except ValueError as error:
        raise error if isinstance(error, RsgrpoError) else RsgrpoError(f"{shown(folder)}: {shown(error)}") from error


if __name__ == "__main__":
    sys.exit(main())
