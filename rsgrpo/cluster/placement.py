"""Ray's side of a placement plan: one placement group for ranks and engines, and what an actor needs to lie in it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import ray
from ray.util.placement_group import placement_group, placement_group_table, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from rsgrpo.cluster.environments import Environment
from rsgrpo.cluster.ray_cluster import Cluster
from rsgrpo.cluster.threads import Threads, share_threads
from rsgrpo.cluster.topology import PlacementPlan, TopologyError, plan_placement
from rsgrpo.config import Config

_WAIT_SECONDS = 120.0


class Placement:
    """Where ranks and engines run: :data:`ON_CPU`, or made by :meth:`on_gpus`.

    Args:
        plan: what was asked for; None on a CPU, where processes share the cores.
        group: Ray's placement group, ready; None on a CPU.
    """

    def __init__(self, plan: PlacementPlan | None, group: Any) -> None:
        self._plan = plan
        self._group = group

    @classmethod
    def on_gpus(cls, plan: PlacementPlan) -> Placement:
        """Reserve what a plan asks for, all or nothing.

        Args:
            plan: the placement of the run's ranks and engines.

        Raises:
            TopologyError: the cluster is busy, or has too few CPUs.
        """
        group = placement_group([{"GPU": bundle.gpus, "CPU": bundle.cpus} for bundle in plan.bundles], strategy="PACK")
        if not group.wait(timeout_seconds=_WAIT_SECONDS):
            remove_placement_group(group)
            raise TopologyError(
                f"Ray could not reserve {plan.num_gpus} GPUs and {sum(bundle.cpus for bundle in plan.bundles)} CPUs "
                f"within {_WAIT_SECONDS:g} s; `ray status` shows what is in use: end other jobs, or ask for less"
            )
        return cls(plan, group)

    def nodes(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Ray's ids of the nodes with ranks, and of those with engines; on a CPU both are empty."""
        if self._plan is None:
            return (), ()
        at = placement_group_table(self._group)["bundles_to_node_id"]
        return (
            tuple(at[bundle] for bundle in self._plan.rank_bundles),
            tuple(at[bundle] for bundle in self._plan.engine_bundles),
        )

    @property
    def is_shared(self) -> bool:
        """Whether ranks and engines share GPUs."""
        return self._plan is not None and self._plan.is_shared

    def for_rank(self, rank: int, environment: Environment) -> dict[str, Any]:
        """Ray's options for the actor of a rank.

        Args:
            rank: the number of the rank.
            environment: the environment variables of its process.
        """
        if self._plan is None:
            return _options(environment)
        return _options(environment, num_gpus=1, strategy=self._bundle(self._plan.rank_bundles[rank]))

    def for_engine(self, engine: int, environment: Environment, rank_gpus: Sequence[str] = ()) -> dict[str, Any]:
        """Ray's options for the actor of an engine.

        Args:
            engine: the number of the engine.
            environment: the environment variables of its process.
            rank_gpus: GPU of each rank as its node numbers them, where GPUs are shared.
        """
        if self._plan is None:
            return _options(environment)
        bundle = self._plan.engine_bundles[engine]
        if not self._plan.is_shared:
            return _options(environment, num_gpus=self._plan.bundles[bundle].gpus, strategy=self._bundle(bundle))
        # Ray lends a GPU once: the ranks hold it, the engine is shown it.
        own = [gpu for gpu, place in zip(rank_gpus, self._plan.rank_bundles, strict=True) if place == bundle]
        shown = {"CUDA_VISIBLE_DEVICES": ",".join(own), "RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES": "1"}
        return _options({**environment, **shown}, strategy=self._bundle(bundle), num_gpus=0)

    def _bundle(self, index: int) -> PlacementGroupSchedulingStrategy:
        return PlacementGroupSchedulingStrategy(self._group, placement_group_bundle_index=index)

    def close(self) -> None:
        """Release everything that was reserved."""
        if self._group is not None and ray.is_initialized():
            remove_placement_group(self._group)
        self._group = None


def _options(environment: Environment, *, num_gpus: int = 0, strategy: Any = "DEFAULT") -> dict[str, Any]:
    return {
        "num_cpus": 0 if strategy == "DEFAULT" else 1,
        "num_gpus": num_gpus,
        "scheduling_strategy": strategy,
        "runtime_env": {"env_vars": environment},
    }


ON_CPU = Placement(None, None)
"""The placement without a reservation: Ray's scheduler decides where actors run."""


@contextmanager
def open_placement(
    config: Config, cluster: Cluster, *, has_engines: bool = True
) -> Iterator[tuple[Placement, Threads]]:
    """Reserve places for the length of the block, and share out the cores there.

    Args:
        config: the settings as :func:`rsgrpo.cluster.topology.fit` gives them.
        cluster: the cluster's resources, as Ray sees them.
        has_engines: whether anything is sampled, so that engines need a place.

    Yields:
        Where ranks and engines run, and how many CPU threads each of them gets.

    Raises:
        TopologyError: the cluster is busy, or has too few CPUs.
    """
    cores = {node.node_id: node.cores for node in cluster.nodes}
    if config.cluster.device == "cpu":
        # Ray's scheduler chooses the nodes later: all may come to lie on the smallest one.
        num_ranks = 0 if config.stage == "eval" else config.trainer.num_ranks
        nodes = (("any",) * num_ranks, ("any",) * (config.rollout.num_workers * has_engines))
        placement, cores = ON_CPU, {"any": min(cores.values())}
    else:
        placement = Placement.on_gpus(plan_placement(config, has_engines=has_engines))
        nodes = placement.nodes()
    try:
        yield placement, share_threads(config, cores=cores, rank_nodes=nodes[0], engine_nodes=nodes[1])
    finally:
        placement.close()
