"""vLLM against transformers for every family: pages, stored features, and after weight updates."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from rsgrpo.cluster.environments import engine_environment
from rsgrpo.cluster.ray_cluster import REPOSITORY
from rsgrpo.config import Config, RolloutConfig
from rsgrpo.model.families.table import FAMILIES
from tests.engine.answers import MAX_GAP_NATS

pytestmark = pytest.mark.engine

# test_rollout_pool.py has it, through Ray and with two engines.
OTHERS = [family for family in FAMILIES if family != "qwen2_5_vl"]


@pytest.fixture(scope="module")
def gaps(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, float]]:
    config = Config(stage="eval", rollout=RolloutConfig(num_threads=1))
    done = subprocess.run(
        [sys.executable, "-m", "tests.engine.family_engines", str(tmp_path_factory.mktemp("root")), *OTHERS],
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
    return found


@pytest.mark.parametrize("family", OTHERS)
def test_an_engine_agrees_with_transformers_before_and_after_updates(
    gaps: dict[str, dict[str, float]], family: str
) -> None:
    found = dict(gaps[family])
    # The update of adapters has changed the model: the one before it is far off.
    assert found.pop("adapters, against the model before") > 10 * MAX_GAP_NATS
    assert max(found.values()) < MAX_GAP_NATS
