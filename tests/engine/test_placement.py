"""Placement plans on Ray's own scheduler, with GPUs in name only."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import ray

from rsgrpo.cluster import placement
from rsgrpo.cluster.placement import Placement
from rsgrpo.cluster.ray_cluster import REPOSITORY
from rsgrpo.cluster.topology import Bundle, PlacementPlan, TopologyError, plan_placement
from tests.engine.local_ray import local_ray
from tests.engine.probe import Probe
from tests.unit.cluster.test_topology import config_of

pytestmark = pytest.mark.engine

_PATIENCE_SECONDS = 300.0  # for what takes a second on an idle machine


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """Eight GPUs, as far as Ray's scheduler knows."""
    with local_ray(num_cpus=16, num_gpus=8, runtime_env={"env_vars": {"PYTHONPATH": str(REPOSITORY)}}):
        yield


def _places(options: list[dict[str, Any]]) -> list[tuple[str, str]]:
    probes = [ray.remote(Probe).options(**choices).remote() for choices in options]
    found = ray.get([probe.place.remote() for probe in probes], timeout=_PATIENCE_SECONDS)
    for probe in probes:
        ray.kill(probe)
    return found


def test_disaggregated_ranks_and_engines_share_no_gpu(cluster: None) -> None:
    plan = plan_placement(config_of(ranks=4, engines=2, size=2))
    placed = Placement.on_gpus(plan)
    try:
        nodes = placed.nodes()
        found = _places(
            [placed.for_engine(index, {}) for index in range(2)] + [placed.for_rank(rank, {}) for rank in range(4)]
        )
    finally:
        placed.close()
    here = ray.get_runtime_context().get_node_id()
    assert nodes == ((here,) * 4, (here,) * 2)
    used = [gpu for lent, _ in found for gpu in lent.split(",")]
    assert len(set(used)) == len(used) == 8
    assert [len(lent.split(",")) for lent, _ in found] == [2, 2, 1, 1, 1, 1]
    assert all(lent == seen for lent, seen in found)


def test_a_colocated_engine_sees_its_ranks_gpus_and_no_others(cluster: None) -> None:
    placed = Placement.on_gpus(plan_placement(config_of(ranks=4, engines=2, size=2, topology="colocated")))
    try:
        ranks = [ray.remote(Probe).options(**placed.for_rank(rank, {})).remote() for rank in range(4)]
        at = ray.get([rank.place.remote() for rank in ranks], timeout=_PATIENCE_SECONDS)
        rank_gpus = [gpu for gpu, _ in at]
        engines = _places([placed.for_engine(index, {}, rank_gpus) for index in range(2)])
    finally:
        placed.close()
    assert len(set(rank_gpus)) == 4
    # Ray lends the engines nothing; they see what their ranks hold.
    assert engines == [("", ",".join(rank_gpus[:2])), ("", ",".join(rank_gpus[2:]))]


def test_a_cluster_that_is_busy_is_named(cluster: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "_WAIT_SECONDS", 1.0)
    plan = PlacementPlan(
        bundles=(Bundle(gpus=4, cpus=1),) * 3, engine_bundles=(0, 1, 2), rank_bundles=(), is_shared=False
    )
    with pytest.raises(TopologyError, match=r"could not reserve 12 GPUs and 3 CPUs within 1 s; `ray status`"):
        Placement.on_gpus(plan)
