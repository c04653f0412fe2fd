"""Where ranks and engines go, and what is refused before any of them starts."""

from __future__ import annotations

import socket
import time
from itertools import product
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rsgrpo.cluster.ray_cluster import ClusterError, open_cluster
from rsgrpo.cluster.topology import Bundle, TopologyError, check_topology, fits, plan_placement, transfer_kind
from rsgrpo.config import (
    ClusterConfig,
    Config,
    RewardConfig,
    RolloutConfig,
    ScopeConfig,
    Stage,
    Topology,
    TrainerConfig,
)
from tests.unit.composition import RECIPES, composed

REWARD = {"any": RewardConfig(function="a:b", scope=ScopeConfig(start="begin", stop="end"))}


def config_of(
    ranks: int = 1,
    engines: int = 1,
    size: int = 1,
    topology: Topology = "disaggregated",
    stage: Stage = "rl",
    **rollout: Any,
) -> Config:
    """Settings of a run of that size."""
    return Config(
        stage=stage,
        rewards=REWARD,
        trainer=TrainerConfig(num_ranks=ranks),
        rollout=RolloutConfig(num_workers=engines, tensor_parallel_size=size, **rollout),
        cluster=ClusterConfig(topology=topology),
    )


def test_disaggregated_gives_everyone_gpus_of_their_own() -> None:
    plan = plan_placement(config_of(ranks=3, engines=2, size=4))
    assert plan.bundles == (Bundle(gpus=4, cpus=1),) * 2 + (Bundle(gpus=1, cpus=1),) * 3
    assert (plan.engine_bundles, plan.rank_bundles) == ((0, 1), (2, 3, 4))
    assert plan.num_gpus == 11 and not plan.is_shared


def test_colocated_puts_an_engines_ranks_on_its_gpus() -> None:
    plan = plan_placement(config_of(ranks=6, engines=3, size=2, topology="colocated"))
    # Each bundle: two GPUs, two ranks' processes and the engine's.
    assert plan.bundles == (Bundle(gpus=2, cpus=3),) * 3
    assert (plan.engine_bundles, plan.rank_bundles) == ((0, 1, 2), (0, 0, 1, 1, 2, 2))
    assert plan.num_gpus == 6 and plan.is_shared


@pytest.mark.parametrize("topology", ["disaggregated", "colocated"])
def test_evaluation_has_engines_only(topology: Topology) -> None:
    plan = plan_placement(config_of(ranks=2, engines=2, topology=topology, stage="eval"))
    assert plan.bundles == (Bundle(gpus=1, cpus=1),) * 2
    assert plan.rank_bundles == () and not plan.is_shared


@pytest.mark.parametrize("topology", ["disaggregated", "colocated"])
def test_where_nothing_is_sampled_there_are_ranks_only(topology: Topology) -> None:
    plan = plan_placement(config_of(ranks=2, engines=2, topology=topology, stage="sft"), has_engines=False)
    assert plan.bundles == (Bundle(gpus=1, cpus=1),) * 2
    assert (plan.engine_bundles, plan.rank_bundles, plan.is_shared) == ((), (0, 1), False)


@given(
    engines=st.integers(1, 3),
    size=st.integers(1, 4),
    ranks=st.integers(1, 4),
    nodes=st.lists(st.integers(0, 5), max_size=3),
)
def test_a_place_is_found_whenever_there_is_one(engines: int, size: int, ranks: int, nodes: list[int]) -> None:
    plan = plan_placement(config_of(ranks=ranks, engines=engines, size=size))
    sizes = [bundle.gpus for bundle in plan.bundles]
    # All ways to give every bundle a node: at most 3^7.
    possible = any(
        all(sum(gpus for gpus, at in zip(sizes, way, strict=True) if at == node) <= nodes[node] for node in set(way))
        for way in product(range(len(nodes)), repeat=len(sizes))
    )
    assert fits(plan, nodes) == possible


@pytest.mark.parametrize(
    ("kind", "device", "topology", "expected"),
    [
        ("auto", "cpu", "disaggregated", "object_store"),
        ("auto", "gpu", "disaggregated", "nccl"),
        ("auto", "gpu", "colocated", "cuda_ipc"),
        ("object_store", "gpu", "colocated", "object_store"),
    ],
)
def test_weights_travel_as_the_topology_allows(kind: str, device: str, topology: Topology, expected: str) -> None:
    assert transfer_kind(config_of(topology=topology, weight_transfer=kind), device) == expected


@pytest.mark.parametrize(
    ("asked", "device", "nodes", "words"),
    [
        ({"topology": "colocated"}, "cpu", (), r"topology=colocated needs GPUs.*topology=disaggregated"),
        ({"weight_transfer": "nccl"}, "cpu", (), r"weight_transfer=nccl needs GPUs.*=auto"),
        ({"weight_transfer": "cuda_ipc"}, "gpu", (8,), r"=cuda_ipc hands memory of one GPU"),
        ({"topology": "colocated", "weight_transfer": "nccl"}, "gpu", (8,), r"=nccl cannot join two processes"),
        ({"ranks": 8, "engines": 4, "size": 2}, "gpu", (8,), r"num_ranks=8.*=4 × .*=2 need 16 GPUs.*Ray has 8;"),
        ({"ranks": 1, "engines": 1, "size": 4}, "gpu", (2, 3), r"2 \+ 3 by node, where they do not fit.*lower"),
    ],
)
def test_what_cannot_work_is_refused_with_the_way_out(
    asked: dict[str, Any], device: str, nodes: tuple[int, ...], words: str
) -> None:
    with pytest.raises(TopologyError, match=words):
        check_topology(config_of(**asked), device=device, gpus_per_node=nodes)


def test_a_cluster_may_be_used_to_its_last_gpu() -> None:
    # Engines of 2 on the first node and 2 + 2 on the second, a rank beside each.
    check_topology(config_of(ranks=2, engines=3, size=2), device="gpu", gpus_per_node=(3, 5))
    # Colocated, four GPUs serve four ranks and two engines of two.
    check_topology(config_of(ranks=4, engines=2, size=2, topology="colocated"), device="gpu", gpus_per_node=(4,))


def test_nodes_that_are_missing_are_counted() -> None:
    config = composed("recipe=evisrag_7b")
    with pytest.raises(TopologyError, match=r"num_nodes=2 × cluster.gpus_per_node=8 asks for 16 GPUs, Ray has 8"):
        check_topology(config, device="gpu", gpus_per_node=(8,))
    with pytest.raises(TopologyError, match=r"Ray has 12 \(8 \+ 4 by node\)"):
        check_topology(config, device="gpu", gpus_per_node=(8, 4))


@pytest.mark.parametrize("recipe", [name for name in RECIPES if name.startswith(("evisrag_", "rl_", "sft_"))])
def test_every_recipe_fits_on_the_nodes_that_it_names(recipe: str) -> None:
    config = composed(f"recipe={recipe}")
    nodes = (config.cluster.gpus_per_node,) * config.cluster.num_nodes
    assert nodes[0] > 0
    # Supervised recipes without test questions sample nothing.
    has_engines = config.stage != "sft" or bool(config.data.test_path)
    check_topology(config, device="gpu", gpus_per_node=nodes, has_engines=has_engines)


@pytest.mark.parametrize("address", ["127.0.0.1:{port}", "ray://127.0.0.1:{port}"])
def test_an_address_where_no_cluster_answers_is_named_at_once(address: str) -> None:
    with socket.socket() as taken:
        # Bound, and nobody listens: no other process can come to listen there meanwhile.
        taken.bind(("127.0.0.1", 0))
        address = address.format(port=taken.getsockname()[1])
        words = rf"no Ray cluster answers at cluster.address='{address}'.*`ray start --head`"
        begin = time.monotonic()
        with pytest.raises(ClusterError, match=words), open_cluster(ClusterConfig(address=address)):
            raise AssertionError("never opened")
        assert time.monotonic() - begin < 10


def test_an_address_that_is_none_is_named() -> None:
    with (
        pytest.raises(ClusterError, match=r"cluster\.address='127\.0\.0\.1:head' is no address; write HOST:PORT"),
        open_cluster(ClusterConfig(address="127.0.0.1:head")),
    ):
        raise AssertionError("never opened")
