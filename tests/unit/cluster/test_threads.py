"""A node's cores are shared out among the processes of the run that lie on it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import ray
from hypothesis import given
from hypothesis import strategies as st

from rsgrpo.cluster import ray_cluster as cluster_module
from rsgrpo.cluster.placement import open_placement
from rsgrpo.cluster.ray_cluster import Cluster, Node
from rsgrpo.cluster.threads import Threads, share_threads
from rsgrpo.config import ClusterConfig, Config, Device, RlConfig
from tests.unit.cluster.test_topology import config_of


def placed(device: Device, *, staleness: int = 0, threads: tuple[int, int] = (0, 0), **asked: Any) -> Config:
    """Settings of a run whose device has been decided."""
    config = config_of(**asked)
    return replace(
        config,
        cluster=replace(config.cluster, device=device),
        rl=RlConfig(max_staleness_steps=staleness),
        trainer=replace(config.trainer, num_threads=threads[0]),
        rollout=replace(config.rollout, num_threads=threads[1]),
    )


def test_all_processes_of_a_node_share_its_cores_on_gpus() -> None:
    # Eight ranks and four engines with a worker for each of two parts: 8 + 4 · (1 + 2) = 20 processes; 192 / 20 = 9.6.
    config = placed("gpu", ranks=8, engines=4, size=2)
    shared = share_threads(config, cores={"a": 192}, rank_nodes=["a"] * 8, engine_nodes=["a"] * 4)
    assert shared == Threads(ranks=(9,) * 8, engines=(9,) * 4, ranks_alone=(24,) * 8)


def test_every_node_shares_its_own_cores() -> None:
    # Two ranks alone on 96 cores: 48 each; one rank beside two engines on 64: 64 / 3 = 21.
    config = placed("gpu", ranks=3, engines=2)
    shared = share_threads(config, cores={"a": 96, "b": 64}, rank_nodes=["a", "b", "a"], engine_nodes=["b", "b"])
    assert shared == Threads(ranks=(48, 21, 48), engines=(21, 21), ranks_alone=(48, 64, 48))


def test_on_a_cpu_ranks_and_engines_take_turns_on_all_cores() -> None:
    config = placed("cpu", ranks=1, engines=1)
    shared = share_threads(config, cores={"a": 2}, rank_nodes=["a"], engine_nodes=["a"])
    assert shared == Threads(ranks=(2,), engines=(2,), ranks_alone=(2,))
    # Two ranks are at work at once, and so are four engines.
    more = placed("cpu", ranks=2, engines=4)
    shared = share_threads(more, cores={"a": 16}, rank_nodes=["a"] * 2, engine_nodes=["a"] * 4)
    assert shared == Threads(ranks=(8, 8), engines=(4,) * 4, ranks_alone=(8, 8))


def test_sampling_during_the_update_leaves_no_turns_to_take() -> None:
    config = placed("cpu", staleness=1)
    shared = share_threads(config, cores={"a": 8}, rank_nodes=["a"], engine_nodes=["a"])
    assert shared == Threads(ranks=(4,), engines=(4,), ranks_alone=(8,))
    without_rl = share_threads(replace(config, stage="sft"), cores={"a": 8}, rank_nodes=["a"], engine_nodes=["a"])
    assert without_rl == Threads(ranks=(8,), engines=(8,), ranks_alone=(8,))


@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_explicit_threads_hold(device: Device) -> None:
    config = placed(device, ranks=2, engines=1, threads=(3, 5))
    shared = share_threads(config, cores={"a": 64}, rank_nodes=["a", "a"], engine_nodes=["a"])
    assert shared == Threads(ranks=(3, 3), engines=(5,), ranks_alone=(3, 3))


@given(
    cores=st.integers(1, 256),
    ranks=st.integers(0, 16),
    engines=st.integers(0, 8),
    size=st.integers(1, 4),
    device=st.sampled_from(["cpu", "gpu"]),
)
def test_no_core_is_given_away_twice_and_nobody_gets_none(
    cores: int, ranks: int, engines: int, size: int, device: Device
) -> None:
    config = placed(device, ranks=max(ranks, 1), engines=max(engines, 1), size=size)
    shared = share_threads(config, cores={"a": cores}, rank_nodes=["a"] * ranks, engine_nodes=["a"] * engines)
    assert (len(shared.ranks), len(shared.engines)) == (ranks, engines)
    assert min((*shared.ranks, *shared.engines), default=1) >= 1
    assert all(alone >= beside for alone, beside in zip(shared.ranks_alone, shared.ranks, strict=True))
    assert sum(shared.ranks_alone) <= max(cores, ranks)
    num_processes = engines * (1 if size == 1 else size + 1)
    of_engines = sum(shared.engines) // max(engines, 1) * num_processes
    sides = [sum(shared.ranks) + of_engines] if device == "gpu" else [sum(shared.ranks), of_engines]
    for side, processes in zip(
        sides, [ranks + num_processes] if device == "gpu" else [ranks, num_processes], strict=True
    ):
        assert side <= max(cores, processes)


class FakeContext:
    def get_node_id(self) -> str:
        return "own"


def row(node: str, cpus: float, gpus: float = 0.0, *, alive: bool = True) -> dict[str, Any]:
    """A line of ``ray.nodes()``."""
    return {"NodeID": node, "Alive": alive, "Resources": {"CPU": cpus, **({"GPU": gpus} if gpus else {})}}


def test_the_cluster_is_read_from_rays_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [row("own", 64.0, 1.0), row("other", 96.0, 8.0), row("gone", 96.0, 8.0, alive=False)]
    monkeypatch.setattr(ray, "nodes", lambda: rows)
    monkeypatch.setattr(ray, "get_runtime_context", FakeContext)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(16)))
    found = cluster_module._read_cluster(ClusterConfig())
    # This process is bound to 16 of its node's 64 processors; of the other node Ray alone knows.
    assert found.nodes == (Node(node_id="own", cores=16, gpus=1), Node(node_id="other", cores=96, gpus=8))
    assert (found.num_cores, found.gpus_per_node) == (16, (1, 8))
    # A container that may use two of them at a time: Ray counts those.
    rows[0] = row("own", 2.0)
    assert cluster_module._read_cluster(ClusterConfig()).num_cores == 2
    # A client of a cluster elsewhere is on none of its nodes.
    assert cluster_module._read_cluster(ClusterConfig(address="ray://elsewhere:10001")).nodes[0].cores == 2


def test_the_quickstart_gives_trainer_and_engine_all_cores() -> None:
    two = Cluster(nodes=(Node(node_id="own", cores=2, gpus=0),), num_cores=2)
    with open_placement(placed("cpu", stage="all"), two) as (placement, threads):
        assert threads == Threads(ranks=(2,), engines=(2,), ranks_alone=(2,))
        assert not placement.is_shared
    with open_placement(placed("cpu", stage="eval", engines=2), two) as (_, threads):
        assert threads == Threads(ranks=(), engines=(1, 1), ranks_alone=())
    with open_placement(placed("cpu", stage="sft"), two, has_engines=False) as (_, threads):
        assert threads == Threads(ranks=(2,), engines=(), ranks_alone=(2,))
