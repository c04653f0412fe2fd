"""Start ranks and engines where the config wants them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from rollout.pool import RolloutPool
from rsgrpo.cluster import Cluster
from rsgrpo.config import Config
from rsgrpo.placement import ON_CPU, Placement
from rsgrpo.policy import Policy
from rsgrpo.topology import check_topology, plan_placement
from rsgrpo.turns import Turns


@dataclass(frozen=True, kw_only=True, slots=True)
class Workers:
    """What a run works with.

    Attributes:
        engine: the pool of engines; None if nothing is sampled.
        policy: the training ranks; None with ``stage=eval``.
    """

    engine: RolloutPool | None
    policy: Policy | None


@contextmanager
def open_workers(
    config: Config, model_folder: Path, cluster: Cluster, *, needs_engine: bool = True
) -> Iterator[Workers]:
    """Start ranks and engines in the background, for the length of the block.

    Args:
        config: the run's settings.
        model_folder: what both load.
        cluster: what Ray offers.
        needs_engine: whether anything is to be sampled.

    Raises:
        TopologyError: the cluster cannot be used as the config asks; nothing has started then.
    """
    check_topology(config, device=cluster.device, gpus_per_node=cluster.gpus_per_node, has_engines=needs_engine)
    with ExitStack() as stack:
        placement = (
            ON_CPU if cluster.device == "cpu" else Placement.on_gpus(plan_placement(config, has_engines=needs_engine))
        )
        stack.callback(placement.close)
        policy = None
        if config.stage != "eval":
            policy = Policy.start(
                config,
                model_folder,
                device=cluster.device,
                num_threads=config.trainer.num_threads or cluster.num_threads,
                placement=placement,
            )
            stack.callback(policy.close)
        engine = None
        if needs_engine:
            engine = RolloutPool.start(
                config,
                model_folder,
                device=cluster.device,
                num_threads=cluster.num_threads,
                placement=placement,
                rank_gpus=policy.gpus() if policy is not None and placement.is_shared else (),
            )
            stack.callback(engine.close)
        if policy is not None and engine is not None and placement.is_shared:
            turns = Turns(policy, engine)
            policy.take_turns(turns)
            engine.take_turns(turns)
        yield Workers(engine=engine, policy=policy)
