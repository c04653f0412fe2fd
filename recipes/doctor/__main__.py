"""``python -m recipes.doctor [recipe=NAME] [key=value …] [--json FILE]``: is this machine ready for that run?

The door only: what is looked at lies in ``recipes.doctor``, which knows rewards and recipes.
"""

from __future__ import annotations

import io
import os
import sys
import time

from rsgrpo.failures.command import open_standard_streams


def main() -> int:
    """Examine; 0 without problems, 1 with, 130 after Ctrl-C."""
    begin = time.perf_counter()
    open_standard_streams()
    # transformers and the hub talk on standard error about what the doctor says itself.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal that cannot show × is no reason to stop
    from recipes.doctor.command import run_doctor  # the one import upwards: a door beside the other commands' doors

    try:
        return run_doctor(sys.argv[1:], begin=begin)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # Nobody reads on (`… | head`); Python would complain once more when it flushes at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


if __name__ == "__main__":
    sys.exit(main())
