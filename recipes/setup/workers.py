"""Start ranks and engines where the config wants them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from rollout.pool import RolloutPool
from rsgrpo.cluster.gpu_sharing import GpuSharing
from rsgrpo.cluster.placement import open_placement
from rsgrpo.cluster.ray_cluster import Cluster
from rsgrpo.cluster.topology import Fitted, fit
from rsgrpo.config import Config
from rsgrpo.trainer.policy import Policy


@dataclass(frozen=True, kw_only=True, slots=True)
class Workers:
    """What a run works with.

    Attributes:
        engine: the pool of engines; None if nothing is sampled.
        policy: the training ranks; None with ``stage=eval``.
        fitted: the settings that they were started with, and what to tell the user about them.
    """

    engine: RolloutPool | None
    policy: Policy | None
    fitted: Fitted


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
        MachineError: the installed vLLM does not go with the device; nothing has started then.
        TopologyError: the cluster cannot be used as the config asks; nothing has started then.
    """
    fitted = fit(config, gpus_per_node=cluster.gpus_per_node, has_engines=needs_engine)
    config, device = fitted.config, fitted.config.cluster.device
    with ExitStack() as stack:
        placement, threads = stack.enter_context(open_placement(config, cluster, has_engines=needs_engine))
        policy = None
        if config.stage != "eval":
            policy = Policy.start(
                config,
                model_folder,
                device=device,
                num_threads=threads.ranks,
                num_threads_alone=threads.ranks_alone,
                placement=placement,
            )
            stack.callback(policy.close)
        engine = None
        if needs_engine:
            engine = RolloutPool(
                config,
                model_folder,
                device=device,
                num_threads=threads.engines,
                placement=placement,
                rank_gpus=policy.gpus() if policy is not None and placement.is_shared else (),
            )
            stack.callback(engine.close)
        if policy is not None and engine is not None and placement.is_shared:
            gpu_sharing = GpuSharing(policy, engine)
            policy.share_gpus(gpu_sharing)
            engine.share_gpus(gpu_sharing)
        yield Workers(engine=engine, policy=policy, fitted=fitted)
