"""Engines that keep the base and get adapters alone, against transformers with the merged weights."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rsgrpo.cluster.environments import engine_environment
from rsgrpo.cluster.ray_cluster import REPOSITORY
from rsgrpo.config import Config, RolloutConfig
from rsgrpo.model.families.table import FAMILIES
from tests.engine.answers import MAX_GAP_NATS

pytestmark = pytest.mark.engine


def test_an_engine_with_adapters_computes_the_merged_model(tmp_path: Path) -> None:
    config = Config(stage="eval", rollout=RolloutConfig(num_threads=1))
    done = subprocess.run(
        [sys.executable, "-m", "tests.engine.adapter_engines", str(tmp_path), *FAMILIES],
        cwd=REPOSITORY,
        env=os.environ | engine_environment(config, "cpu", 1),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    found: dict[str, dict[str, float]] = {}
    for line in done.stdout.splitlines():
        if line.startswith("{"):
            found |= json.loads(line)
    assert list(found) == list(FAMILIES)
    for family, gaps in found.items():
        # each update takes the place of the one before, also in what the engine had cached
        changed = [gaps.pop(f"update {version}, against the model before") for version in (1, 2)]
        assert min(changed) > 10 * MAX_GAP_NATS, family
        assert max(gaps.values()) < MAX_GAP_NATS, family
