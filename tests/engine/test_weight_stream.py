"""Weights streamed from ranks to engines through Ray: real calls and records, memory that stands in for GPUs."""

from __future__ import annotations

import dataclasses
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import ray
import torch

from rollout.engine import RolloutError
from rollout.pool import RolloutPool
from rsgrpo.cluster.gpu_sharing import GpuSharing, OnGpu, Phase
from rsgrpo.cluster.ray_cluster import REPOSITORY
from rsgrpo.config import SamplingConfig
from rsgrpo.trainer.policy import Policy
from rsgrpo.types import ChatPrompt, PromptedSample, Sample
from rsgrpo.weights.buckets import WeightVersion
from rsgrpo.weights.transfer import RankStream
from rsgrpo.weights.update import WeightUpdate
from tests.engine.fake_workers import FakeEngine, FakeRank, SlowRank, weights_of
from tests.engine.local_ray import local_ray
from tests.tiny_model import make_group
from tests.unit.cluster.test_topology import config_of

pytestmark = pytest.mark.engine


@dataclasses.dataclass
class FakeTrainer:
    """The trainer's end of taking turns."""

    parts: OnGpu = OnGpu.NOTHING

    def set_on_gpu(self, parts: OnGpu) -> None:
        self.parts = parts


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    with local_ray(runtime_env={"env_vars": {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}}):
        yield


@contextmanager
def _pool(num_engines: int, *, max_restarts: int = 1) -> Iterator[RolloutPool]:
    config = config_of(ranks=num_engines, engines=num_engines, topology="colocated", max_restarts=max_restarts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            RolloutPool,
            "_new_worker",
            lambda self, index: ray.remote(FakeEngine).options(num_cpus=0).remote(f"gpu{index}"),
        )
        pool = RolloutPool(config, Path("none"), device="cpu", num_threads=1)
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
        whole=lambda: _update(ranks, version, trainable_only=False),
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
        gpu_sharing = GpuSharing(trainer, pool)
        pool.share_gpus(gpu_sharing)
        generate = partial(pool.generate, QUESTIONS, num_samples=1, sampling=SamplingConfig(), seed=0)
        assert [group.sample.sample_id for group in generate()] == ["q0", "q1", "q2", "q3", "q4"]
        pool.update_weights(_update(ranks, 1, trainable_only=False))
        _check(pool, 1, present=0)
        gpu_sharing.begin(Phase.TRAINING)
        ray.get([rank.train.remote() for rank in ranks])
        pool.update_weights(_update(ranks, 2, trainable_only=True))
        assert trainer.parts == OnGpu.WEIGHTS
        _check(pool, 2, present=1)
        # One dies asleep. Its questions are asked again, and its heir holds the tower too, which the last update
        # left out.
        os.kill(ray.get(pool._workers[1].ready.remote()), signal.SIGKILL)
        assert [group.sample.sample_id for group in generate()] == ["q0", "q1", "q2", "q3", "q4"]
        assert (pool.num_restarts, trainer.parts) == (1, OnGpu.NOTHING)
        # It loads while the other answers, and is there for the next call.
        assert [group.sample.sample_id for group in generate()] == ["q0", "q1", "q2", "q3", "q4"]
        assert (pool.num_restarts, trainer.parts) == (1, OnGpu.NOTHING)
        _check(pool, 2, present=1)


def test_damage_on_the_way_stops_the_run(ranks: list[Any]) -> None:
    with _pool(1) as pool:
        ray.get(pool._workers[0].damage.remote("layer.1"))
        words = r"rollout worker 0 got weights of version 3 .*layer.0 and 1 more.*weight_transfer=object_store"
        with pytest.raises(RolloutError, match=words):
            pool.update_weights(_update(ranks[:1], 3, trainable_only=False))


def test_an_engine_that_dies_in_a_transfer_is_replaced_and_all_get_everything(ranks: list[Any]) -> None:
    present = ray.get(ranks[0].version.remote())
    with _pool(2) as pool:
        ray.get(pool._workers[1].die_in_transfer.remote())
        survivor = ray.get(pool._workers[0].ready.remote())
        pool.update_weights(_update(ranks, 4, trainable_only=False))
        assert pool.num_restarts == 1
        assert ray.get(pool._workers[0].ready.remote()) == survivor
        _check(pool, 4, present=present)


def test_several_dead_engines_are_replaced_together(ranks: list[Any]) -> None:
    with _pool(2, max_restarts=2) as pool:
        pool.update_weights(_update(ranks, 5, trainable_only=False))
        for worker in pool._workers:
            os.kill(ray.get(worker.ready.remote()), signal.SIGKILL)
        pool.generate(QUESTIONS, num_samples=1, sampling=SamplingConfig(), seed=0)
        assert pool.num_restarts == 2
        _check(pool, 5, present=ray.get(ranks[0].version.remote()))


class Broadcast(RankStream):
    """A stream whose ranks wait for every engine, as NCCL's broadcast does."""

    @property
    def kind(self) -> str:
        return "nccl"

    def new_group(self) -> str:
        return "aWQ="

    def join(self, group: str, num_members: int) -> Any:
        return ray.put(None)


def test_an_engine_that_died_before_a_broadcast_is_replaced(ranks: list[Any]) -> None:
    sender = Broadcast("cuda_ipc", ranks[:1], ray.get, max_bucket_bytes=2**20, trainable_only=False)
    update = dataclasses.replace(_update(ranks[:1], 6, trainable_only=False), sender=sender)
    with _pool(1) as pool:
        pool.wait_ready()
        os.kill(ray.get(pool._workers[0].ready.remote()), signal.SIGKILL)
        pool.update_weights(update)
        assert pool.num_restarts == 1
        _check(pool, 6, present=ray.get(ranks[0].version.remote()))


def test_a_death_in_a_broadcast_stops_the_run(ranks: list[Any]) -> None:
    sender = Broadcast("cuda_ipc", ranks[:1], ray.get, max_bucket_bytes=2**20, trainable_only=False)
    update = dataclasses.replace(_update(ranks[:1], 6, trainable_only=False), sender=sender)
    with _pool(1) as pool:
        ray.get(pool._workers[0].die_in_transfer.remote())
        with pytest.raises(RolloutError, match=r"died while it took new weights.*resume=auto"):
            pool.update_weights(update)


def test_a_call_that_another_thread_waits_for_ends_with_the_pool(ranks: list[Any], tmp_path: Path) -> None:
    asked = tmp_path / "asked"
    with ThreadPoolExecutor() as threads, _pool(2) as pool:
        pool.update_weights(_update(ranks, 1, trainable_only=False))
        ray.get([worker.stand_still.remote(asked) for worker in pool._workers])
        waiting = threads.submit(pool.generate, QUESTIONS, num_samples=1, sampling=SamplingConfig(), seed=0)
        while not asked.exists():
            time.sleep(0.05)
        pool.close()
        with pytest.raises(RolloutError, match="ended while they sampled"):
            waiting.result(timeout=60)


def test_weights_asked_for_by_another_thread_come_after_the_call_that_is_under_way(
    cluster: None, tmp_path: Path
) -> None:
    begun = tmp_path / "begun"
    rank = ray.remote(SlowRank).options(num_cpus=0).remote(begun)
    policy = Policy(config_of(ranks=1, engines=1), [rank], "cpu")
    with ThreadPoolExecutor() as pool:
        scored = pool.submit(policy.score, [make_group("q", [], [1])])
        while not begun.exists():
            time.sleep(0.05)
        # Between the two calls of the other thread they would meet another rank's in another order.
        assert policy.weights().is_complete
        assert len(scored.result()) == 1
    assert ray.get(rank.calls.remote()) == ["prepare", "score", "gather"]
    policy.close()
