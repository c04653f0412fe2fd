"""``python -m rsgrpo.run.report RUN_FOLDER``: write the report again and print its path."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from rsgrpo.errors import RsgrpoError, shown
from rsgrpo.failures import CommandParser, run_command
from rsgrpo.run.report.build import build_report


def main(arguments: Sequence[str] | None = None) -> int:
    """Build one report; 0 on success."""
    return run_command(lambda: _build(arguments))


def _build(arguments: Sequence[str] | None) -> None:
    parser = CommandParser(prog="python -m rsgrpo.run.report", description="Write a run's report.html.")
    parser.add_argument("run_folder", type=Path, help="the run_dir of a run, such as runs/quickstart")
    folder = parser.parse_args(arguments).run_folder
    try:
        print(build_report(folder, lambda note: print(f"note: {note}", file=sys.stderr)))
    except ValueError as error:
        raise error if isinstance(error, RsgrpoError) else RsgrpoError(f"{shown(folder)}: {shown(error)}") from error


if __name__ == "__main__":
    sys.exit(main())
