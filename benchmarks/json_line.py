"""How the benchmarks show what they found."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping
from pathlib import Path

from rsgrpo.run.summary import collect_versions

REPOSITORY = Path(__file__).resolve().parent.parent


def report(name: str, result: Mapping[str, object]) -> None:
    """Print one JSON object: the result, the machine, the versions.

    Args:
        name: the name of the benchmark.
        result: what it measured.
    """
    memory_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    machine = {
        "cpus": len(os.sched_getaffinity(0)),
        "memory_gib": round(memory_bytes / 2**30),
        "machine": platform.machine(),
    }
    print(json.dumps({"benchmark": name, **result, "machine": machine, "versions": collect_versions(REPOSITORY)}))
