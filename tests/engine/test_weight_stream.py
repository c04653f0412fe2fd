"""Weights streamed from ranks to engines through Ray: real calls and records, memory that stands in for GPUs."""

from __future__ import annotations

import dataclasses
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import ray
import torch

from rollout.engine import RolloutError
from rollout.pool import RolloutPool
from rsgrpo.cluster import REPOSITORY
from rsgrpo.config import SamplingConfig
from rsgrpo.placement import ON_CPU
from rsgrpo.policy import WeightUpdate
from rsgrpo.turns import Phase, Share, Turns
from rsgrpo.types import ChatPrompt, PromptedSample, Sample, WeightVersion
from rsgrpo.weight_transfer import RankStream
from tests.engine.fake_workers import FakeEngine, FakeRank, weights_of
from tests.engine.local_ray import local_ray
from tests.unit.test_topology import config_of

pytestmark = pytest.mark.engine


@dataclasses.dataclass
class FakeTrainer:
    """The trainer's end of taking turns."""

    share: Share = Share.NOTHING

    def hold(self, share: Share) -> None:
        self.share = share


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    with local_ray(runtime_env={"env_vars": {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}}):
        yield


@contextmanager
def _pool(num_engines: int) -> Iterator[RolloutPool]:
    config = config_of(ranks=num_engines, engines=num_engines, topology="colocated", max_restarts=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            RolloutPool,
            "_new_worker",
            lambda self, index: ray.remote(FakeEngine).options(num_cpus=0).remote(f"gpu{index}"),
        )
        pool = RolloutPool(config, Path("none"), device="cpu", num_threads=1, placement=ON_CPU, rank_gpus=())
        yield pool
        pool.close()


@pytest.fixture(scope="module")
def ranks(cluster: None) -> list[Any]:
    return [ray.remote(FakeRank).options(num_cpus=0).remote(rank) for rank in range(2)]


def _update(ranks: list[Any], version: int, *, trainable_only: bool) -> WeightUpdate:
    return WeightUpdate(
        version=WeightVersion(version=version, checksum=""),
        buckets=(),
        is_complete=not trainable_only,
        sender=RankStream("cuda_ipc", ranks, ray.get, max_bucket_bytes=2**20, trainable_only=trainable_only),
    )


def _check(pool: RolloutPool, version: int, present: int) -> None:
    for found, weights in ray.get([worker.weights.remote() for worker in pool._workers]):
        assert found == version
        expected = weights_of(present)
        assert weights.keys() == expected.keys()
        assert all(torch.equal(weights[name], expected[name]) for name in weights)


QUESTIONS = [
    PromptedSample(sample=Sample(sample_id=f"q{index}"), prompt=ChatPrompt(sample_id=f"q{index}", text=""))
    for index in range(5)
]


def test_engines_follow_the_ranks_and_a_new_one_gets_everything(ranks: list[Any]) -> None:
    trainer = FakeTrainer()
    with _pool(2) as pool:
        turns = Turns(trainer, pool)
        pool.take_turns(turns)
        generate = partial(pool.generate, QUESTIONS, num_samples=1, sampling=SamplingConfig(), seed=0)
        assert [group.sample.sample_id for group in generate()] == ["q0", "q1", "q2", "q3", "q4"]
        pool.update_weights(_update(ranks, 1, trainable_only=False))
        _check(pool, 1, present=0)
        turns.take(Phase.TRAINING)
        ray.get([rank.train.remote() for rank in ranks])
        pool.update_weights(_update(ranks, 2, trainable_only=True))
        assert trainer.share == Share.WEIGHTS
        _check(pool, 2, present=1)
        # One dies asleep. Its questions are asked again, and its heir holds the tower too, which the last update
        # left out.
        os.kill(ray.get(pool._workers[1].ready.remote()), signal.SIGKILL)
        assert [group.sample.sample_id for group in generate()] == ["q0", "q1", "q2", "q3", "q4"]
        assert (pool.num_restarts, trainer.share) == (1, Share.NOTHING)
        _check(pool, 2, present=1)


def test_damage_on_the_way_and_death_in_an_update_stop_the_run(ranks: list[Any]) -> None:
    update = _update(ranks[:1], 3, trainable_only=False)
    with _pool(1) as pool:
        ray.get(pool._workers[0].damage.remote("layer.1"))
        words = r"rollout worker 0 got weights of version 3 .*layer.0 and 1 more.*weight_transfer=object_store"
        with pytest.raises(RolloutError, match=words):
            pool.update_weights(update)
        os.kill(ray.get(pool._workers[0].ready.remote()), signal.SIGKILL)
        with pytest.raises(RolloutError, match=r"(?s)while it took new weights.*resume=auto"):
            pool.update_weights(update)
