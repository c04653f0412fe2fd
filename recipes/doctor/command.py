"""The doctor's command line."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from recipes.doctor.check import Step
from recipes.doctor.examination import STEPS, examine
from recipes.doctor.output import show, verdict, write_json
from rsgrpo.errors import RsgrpoError


def run_doctor(
    arguments: Sequence[str], file: TextIO | None = None, steps: Sequence[Step] = STEPS, begin: float | None = None
) -> int:
    """Examine, print, and say how it went.

    Args:
        arguments: overrides as for ``train.py``, and ``--json FILE``.
        file: where to print; None: standard output.
        steps: what to look at.
        begin: ``time.perf_counter()`` when the command began, before its imports; None: now.

    Returns:
        0 without problems, 1 with.
    """
    begin = time.perf_counter() if begin is None else begin
    parser = argparse.ArgumentParser(
        prog="python -m recipes.doctor",
        description="Look at machine, data, model and rewards before a run does, and say what to do.",
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="as for train.py, such as recipe=quickstart")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the same as data")
    options = parser.parse_intermixed_args(arguments)
    target = file or sys.stdout
    found = list(show(examine(options.overrides, steps=steps), target))
    seconds = time.perf_counter() - begin
    checks = [line.check for line in found]
    print(f"\n{verdict(checks, seconds)}", file=target, flush=True)
    if options.json:
        try:
            write_json(options.json, found, options.overrides, seconds)
        except RsgrpoError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
    return int(any(check.status == "problem" for check in checks))
