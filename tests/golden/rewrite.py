"""Write the golden trace anew and say what changed: ``uv run python -m tests.golden.rewrite [--check]``."""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections import Counter
from pathlib import Path

from rsgrpo.failures import run_program
from tests.golden.compare import differences

TRACE = Path(__file__).resolve().parent / "trace.json"
_SHOWN = 20


def main() -> int:
    """Run the job, compare, write; with ``--check`` nothing is written, and a difference is exit status 1."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="only compare")
    is_check = parser.parse_args().check
    # As train.py does, before anything imports Ray.
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    from tests.golden.job import run_job

    expected = json.loads(TRACE.read_text()) if TRACE.exists() else {}
    with tempfile.TemporaryDirectory(prefix="golden-") as folder:
        found = run_job(Path(folder))
    lines = list(differences(expected, json.loads(json.dumps(found))))
    if not lines:
        print("the trace is as it was")
        return 0
    for line in lines[:_SHOWN]:
        print(line)
    parts = Counter("/".join(part for part in line.split(":")[0].split("/") if not part.isdigit()) for line in lines)
    print(f"{len(lines)} differences in all, by part: {dict(parts.most_common(_SHOWN))}")
    if not is_check:
        TRACE.write_text(
            json.dumps(found, indent=None, separators=(",", ":")).replace('"samples"', '\n"samples"') + "\n"
        )
        print(f"wrote tests/golden/{TRACE.name}; commit it with the change that explains it")
    return int(is_check)


if __name__ == "__main__":
    run_program(main)
