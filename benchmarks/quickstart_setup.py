"""What the benchmarks of the running system share: the quickstart's data and model, and Ray."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")

from hydra import compose, initialize_config_dir

from recipes.setup.preparation import Prepared, prepare
from rsgrpo.cluster.ray_cluster import REPOSITORY, Cluster, open_cluster
from rsgrpo.config import Config, load_config, register_schema
from rsgrpo.run.folder import RunFolder
from rsgrpo.run.progress import Progress

SMALL = (
    "quickstart.num_sft_samples=16",
    "quickstart.num_rl_samples=1024",
    "quickstart.num_test_samples=16",
    "rl.max_staleness_steps=0",  # one side at a time is measured, with all cores
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Setup:
    """What a benchmark runs on."""

    config: Config
    prepared: Prepared
    cluster: Cluster


def quickstart_config(overrides: Sequence[str]) -> Config:
    """The quickstart recipe with few questions and ``overrides`` on top."""
    register_schema()
    with initialize_config_dir(str(REPOSITORY / "configs"), version_base=None):
        return load_config(compose("config", overrides=["stage=rl", "logging.progress=false", *SMALL, *overrides]))


@contextmanager
def quickstart(overrides: Sequence[str]) -> Iterator[Setup]:
    """Data, model and a Ray cluster for the length of the block."""
    config = quickstart_config(overrides)
    with tempfile.TemporaryDirectory() as folder:
        prepared = prepare(config, RunFolder(root=Path(folder)), Progress(False))
        with open_cluster(config.cluster) as cluster:
            yield Setup(config=config, prepared=prepared, cluster=cluster)
