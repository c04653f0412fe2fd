"""How the benchmarks of the running system show what they found."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping
from pathlib import Path

from rsgrpo.summary import collect_versions

REPOSITORY = Path(__file__).resolve().parent.parent


def report(name: str, result: Mapping[str, object]) -> None:
    """Print one JSON object: the result, the machine, the versions.

    Args:
        name: of the benchmark.
        result: what it measured.
    """
    machine = {"cpus": len(os.sched_getaffinity(0)), "machine": platform.machine(), "python": platform.python_version()}
    print(json.dumps({"benchmark": name, **result, "machine": machine, "versions": collect_versions(REPOSITORY)}))
