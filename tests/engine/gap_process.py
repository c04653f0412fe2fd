"""Gaps between engines and transformers, measured family by family in one process of its own: vLLM is imported once."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from rsgrpo.cluster.environments import engine_environment
from rsgrpo.cluster.ray_cluster import REPOSITORY
from rsgrpo.config import Config, RolloutConfig

Gaps = dict[str, float]
"""Largest gaps in nats, by what was compared."""


def gaps_of(module: str, root: Path, families: Sequence[str]) -> dict[str, Gaps]:
    """Run a module that calls :func:`print_gaps` in an engine's environment; gives its gaps by family."""
    config = Config(stage="eval", rollout=RolloutConfig(num_threads=1))
    done = subprocess.run(
        [sys.executable, "-m", module, str(root), *families],
        cwd=REPOSITORY,
        env=os.environ | engine_environment(config, "cpu", 1),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    found: dict[str, Gaps] = {}
    for line in done.stdout.splitlines():
        if line.startswith("{"):
            found |= json.loads(line)
    return found


def print_gaps(measure: Callable[[Path, str], Gaps]) -> None:
    """Measure every family that the command line names behind the root folder, and print a line of JSON for each."""
    root = Path(sys.argv[1])
    for model_type in sys.argv[2:]:
        torch.manual_seed(0)
        print(json.dumps({model_type: measure(root, model_type)}), flush=True)
        gc.collect()
