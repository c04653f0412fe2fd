"""``python -m rsgrpo.report RUN_FOLDER``: write the report again and print its path."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rsgrpo.errors import RsgrpoError
from rsgrpo.report.build import build_report


def main() -> int:
    """Build one report; 0 on success."""
    parser = argparse.ArgumentParser(prog="python -m rsgrpo.report", description="Write a run's report.html.")
    parser.add_argument("run_folder", type=Path, help="the run_dir of a run, such as runs/quickstart")
    try:
        print(build_report(parser.parse_args().run_folder, lambda note: print(f"note: {note}", file=sys.stderr)))
    except RsgrpoError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
