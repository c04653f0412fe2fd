"""Where ranks and engines run, and how weights reach the engines: what the config asks for, on what there is.

Disaggregated, every rank has a GPU and every engine has GPUs of its own. Colocated, an engine shares its GPUs with as
many ranks, and they take turns (``turns.py``). A rank or an engine never lies on two nodes; ranks and engines may.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rsgrpo.config import Config
from rsgrpo.errors import RsgrpoError


class TopologyError(RsgrpoError):
    """The cluster cannot be used in the way that the config asks for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Bundle:
    """Resources that lie on one node.

    Attributes:
        gpus: whole GPUs.
        cpus: one for each process that the run starts there.
    """

    gpus: int
    cpus: int


@dataclass(frozen=True, kw_only=True, slots=True)
class PlacementPlan:
    """What to ask of the cluster, all or nothing.

    Attributes:
        bundles: engines' first: they are the larger ones.
        engine_bundles: which bundle each engine lies in.
        rank_bundles: which bundle each rank lies in.
        is_shared: whether ranks and engines share GPUs; the ranks then hold them, and the engines see theirs.
    """

    bundles: tuple[Bundle, ...]
    engine_bundles: tuple[int, ...]
    rank_bundles: tuple[int, ...]
    is_shared: bool

    @property
    def num_gpus(self) -> int:
        """GPUs of all bundles together."""
        return sum(bundle.gpus for bundle in self.bundles)


def transfer_kind(config: Config, device: str) -> str:
    """How new weights reach the engines.

    Args:
        config: ``rollout.weight_transfer`` and ``cluster.topology``.
        device: ``cpu`` or ``gpu``.

    Returns:
        ``object_store``, ``cuda_ipc`` or ``nccl``.

    Example:
        ``auto`` on a CPU is ``object_store``; on GPUs it is ``cuda_ipc`` where they are shared, else ``nccl``.
    """
    if config.rollout.weight_transfer != "auto":
        return config.rollout.weight_transfer
    if device == "cpu":
        return "object_store"
    return "cuda_ipc" if config.cluster.topology == "colocated" else "nccl"


def plan_placement(config: Config, *, has_engines: bool = True) -> PlacementPlan:
    """Bundles for the ranks and engines of a run on GPUs.

    Args:
        config: ``cluster.topology``, ``trainer.num_ranks``, ``rollout.num_workers`` and
            ``rollout.tensor_parallel_size``; ``stage=eval`` has no ranks.
        has_engines: False: nothing is sampled.

    Example:
        Four ranks and two engines of two GPUs each: disaggregated, bundles of 2, 2, 1, 1, 1 and 1 GPUs; colocated,
        two bundles of 2 GPUs, ranks 0 and 1 in the first, 2 and 3 in the second.
    """
    engines, size = config.rollout.num_workers * has_engines, config.rollout.tensor_parallel_size
    num_ranks = 0 if config.stage == "eval" else config.trainer.num_ranks
    is_shared = config.cluster.topology == "colocated" and num_ranks > 0 and has_engines
    engine_bundle = Bundle(gpus=size, cpus=1 + size if is_shared else 1)
    if is_shared:
        own: tuple[Bundle, ...] = ()
        rank_bundles = tuple(rank // size for rank in range(num_ranks))
    else:
        own = (Bundle(gpus=1, cpus=1),) * num_ranks
        rank_bundles = tuple(range(engines, engines + num_ranks))
    return PlacementPlan(
        bundles=(*(engine_bundle,) * engines, *own),
        engine_bundles=tuple(range(engines)),
        rank_bundles=rank_bundles,
        is_shared=is_shared,
    )


def fits(plan: PlacementPlan, gpus_per_node: Sequence[int]) -> bool:
    """Whether every bundle finds a node.

    The largest bundle goes first, onto the fullest node that still holds it. With engines of one size and ranks
    of one GPU that finds a place for all whenever there is one.

    Args:
        plan: of the run.
        gpus_per_node: GPUs of each node.

    Example:
        Two engines of 2 GPUs and two ranks fit on nodes of (3, 3) GPUs, three engines of 2 do not.
    """
    free = list(gpus_per_node)
    for gpus in sorted((bundle.gpus for bundle in plan.bundles), reverse=True):
        roomy = [node for node, left in enumerate(free) if left >= gpus]
        if not roomy:
            return False
        free[min(roomy, key=free.__getitem__)] -= gpus
    return True


def check_topology(config: Config, *, device: str, gpus_per_node: Sequence[int], has_engines: bool = True) -> None:
    """Refuse, before any worker starts, what cannot work.

    Args:
        config: the run's settings.
        device: ``cpu`` or ``gpu``.
        gpus_per_node: GPUs of each node of the cluster.
        has_engines: False: nothing is sampled.

    Raises:
        TopologyError: names the setting, what there is, and the way out.
    """
    _check_transfer(config, device)
    if device == "cpu":
        if config.cluster.topology == "colocated":
            raise TopologyError(
                "cluster.topology=colocated needs GPUs: vLLM's CPU engine cannot sleep, and there is no GPU memory to "
                "take turns with; set cluster.topology=disaggregated (on a CPU both share the cores in any case)"
            )
        return
    cluster = config.cluster
    if sum(gpus >= cluster.gpus_per_node for gpus in gpus_per_node) < cluster.num_nodes:
        raise TopologyError(
            f"cluster.num_nodes={cluster.num_nodes} × cluster.gpus_per_node={cluster.gpus_per_node} asks for "
            f"{cluster.num_nodes * cluster.gpus_per_node} GPUs, Ray has {sum(gpus_per_node)} ({_listed(gpus_per_node)} "
            "by node); lower them, or join the missing nodes with `ray start`"
        )
    plan = plan_placement(config, has_engines=has_engines)
    asked = (
        f"trainer.num_ranks={config.trainer.num_ranks} and rollout.num_workers={config.rollout.num_workers} × "
        f"rollout.tensor_parallel_size={config.rollout.tensor_parallel_size} need {plan.num_gpus} GPUs "
        f"(cluster.topology={cluster.topology}, stage={config.stage}), Ray has {sum(gpus_per_node)}"
    )
    if plan.num_gpus > sum(gpus_per_node):
        raise TopologyError(f"{asked}; lower them, or join more nodes with `ray start`")
    if not fits(plan, gpus_per_node):
        raise TopologyError(
            f"{asked}, but {_listed(gpus_per_node)} by node, where they do not fit: an engine is never spread over "
            "nodes; lower rollout.tensor_parallel_size or rollout.num_workers"
        )


def _listed(gpus_per_node: Sequence[int]) -> str:
    return " + ".join(map(str, gpus_per_node)) or "none"


def _check_transfer(config: Config, device: str) -> None:
    kind, is_colocated = transfer_kind(config, device), config.cluster.topology == "colocated"
    if device == "cpu" and kind != "object_store":
        raise TopologyError(
            f"rollout.weight_transfer={kind} needs GPUs; set rollout.weight_transfer=auto or object_store"
        )
    if kind == "cuda_ipc" and not is_colocated:
        raise TopologyError(
            "rollout.weight_transfer=cuda_ipc hands memory of one GPU to another process on it, but "
            "cluster.topology=disaggregated gives trainer and engines GPUs of their own; set one of them to the other's"
        )
    if kind == "nccl" and is_colocated:
        raise TopologyError(
            "rollout.weight_transfer=nccl cannot join two processes on one GPU, as cluster.topology=colocated has "
            "them; set rollout.weight_transfer=auto"
        )
