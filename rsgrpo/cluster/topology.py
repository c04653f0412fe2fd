"""Where ranks and engines run, and how weights reach the engines: what the config asks for, on what there is.

Disaggregated, every rank has a GPU and every engine has GPUs of its own. Colocated, an engine shares its GPUs with as
many ranks, and they take turns (``gpu_sharing.py``). A rank or an engine never lies on two nodes;
ranks and engines may.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from rsgrpo.cluster.device import choose_device
from rsgrpo.config import Config, ConfigError, Topology
from rsgrpo.errors import RsgrpoError

_OWN_MEMORY_FRAC = 0.9  # the rest is for CUDA's context and NCCL, which vLLM does not count
# Colocated, the sleeping trainer still has its CUDA context, NCCL's buffers and what its allocator did not give back,
# and while weights are handed over both sides hold them, beside a bucket of them.
_SHARED_MEMORY_FRAC = 0.6


class TopologyError(RsgrpoError):
    """The cluster cannot be used in the way that the config asks for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Bundle:
    """Resources that lie on one node.

    Attributes:
        gpus: how many whole GPUs the bundle takes.
        cpus: how many CPUs it takes: one for each process that the run starts there.
    """

    gpus: int
    cpus: int


@dataclass(frozen=True, kw_only=True, slots=True)
class PlacementPlan:
    """What to reserve in the cluster, all or nothing.

    Attributes:
        bundles: the bundles, those of engines first, since they are the larger ones.
        engine_bundles: the index of the bundle that each engine lies in.
        rank_bundles: the index of the bundle that each rank lies in.
        is_shared: whether ranks and engines share GPUs; the ranks then hold them, and the engines see theirs.
    """

    bundles: tuple[Bundle, ...]
    engine_bundles: tuple[int, ...]
    rank_bundles: tuple[int, ...]
    is_shared: bool

    @property
    def num_gpus(self) -> int:
        """How many GPUs all bundles have together."""
        return sum(bundle.gpus for bundle in self.bundles)


def transfer_kind(config: Config, device: str) -> str:
    """How new weights reach the engines.

    Args:
        config: ``rollout.weight_transfer`` and ``cluster.topology``.
        device: ``cpu`` or ``gpu``.

    Returns:
        The kind of transfer: ``object_store``, ``cuda_ipc`` or ``nccl``.

    Example:
        ``auto`` on a CPU is ``object_store``; on GPUs it is ``cuda_ipc`` where they are shared, else ``nccl``.
    """
    if config.rollout.weight_transfer != "auto":
        return config.rollout.weight_transfer
    if device == "cpu":
        return "object_store"
    return "cuda_ipc" if config.cluster.topology == "colocated" else "nccl"


def engine_memory_frac(config: Config) -> float:
    """Share of a GPU's memory that an engine may take, 0 to 1.

    Args:
        config: ``rollout.gpu_memory_frac``, else decided by ``cluster.topology``; ``stage=eval`` has no trainer.

    Example:
        0 gives 0.9 disaggregated and 0.6 colocated; 0.75 stays.
    """
    if config.rollout.gpu_memory_frac:
        return config.rollout.gpu_memory_frac
    is_shared = config.cluster.topology == "colocated" and config.stage != "eval"
    return _SHARED_MEMORY_FRAC if is_shared else _OWN_MEMORY_FRAC


@dataclass(frozen=True, kw_only=True, slots=True)
class Fitted:
    """The settings as they are used on the present cluster.

    Attributes:
        config: the settings with ``cluster.device`` and ``cluster.topology`` decided, the rest as asked for.
        lines: lines for the user: what was decided, and why; none where there is no GPU. Each is short, since a display
            cuts long ones, and the way out has a line of its own.
    """

    config: Config
    lines: tuple[str, ...]


def fit(config: Config, *, gpus_per_node: Sequence[int], has_engines: bool = True) -> Fitted:
    """Decide what ``auto`` leaves open, and refuse what cannot work; before any worker starts.

    Args:
        config: the run's settings.
        gpus_per_node: GPUs of each node of the cluster, as Ray sees them.
        has_engines: whether anything is sampled, so that engines need GPUs.

    Raises:
        MachineError: the installed vLLM does not go with the device (see :func:`rsgrpo.cluster.device.choose_device`).
        TopologyError: there is no place for the ranks and engines.

    Example:
        The quickstart with vLLM's GPU build and ``gpus_per_node=(1,)``: ``device=gpu``, ``topology=colocated``,
        ``rl.max_staleness_steps=0``; with the CPU build ``device=cpu``, ``disaggregated`` and 1.
    """
    num_gpus = sum(gpus_per_node)
    choice = choose_device(config.cluster, num_gpus, has_engines=has_engines)
    topology = _topology(config, choice.device, gpus_per_node, has_engines=has_engines)
    staleness = config.rl.max_staleness_steps
    if staleness < 0:
        staleness = int(topology != "colocated")
    fitted = replace(
        config,
        cluster=replace(config.cluster, device=choice.device, topology=topology),
        rl=replace(config.rl, max_staleness_steps=staleness),
    )
    check_topology(fitted, device=choice.device, gpus_per_node=gpus_per_node, has_engines=has_engines)
    if choice.device == "cpu":
        return Fitted(config=fitted, lines=tuple(choice.note.split("; ")) if choice.note else ())
    plan = plan_placement(fitted, has_engines=has_engines)
    ranks = _counted(len(plan.rank_bundles), "training rank")
    engines = _counted(len(plan.engine_bundles), "engine")
    ways = "take turns" if plan.is_shared else "have GPUs of their own"
    decided = f"cluster.topology={topology}{', chosen by auto' if config.cluster.topology == 'auto' else ''}"
    lines = (f"running on {plan.num_gpus} of {_counted(num_gpus, 'GPU')}: {ranks} and {engines} {ways}", decided)
    return Fitted(config=fitted, lines=lines)


def _topology(config: Config, device: str, gpus_per_node: Sequence[int], *, has_engines: bool) -> Topology:
    """Where ``auto`` stands for colocated: too few GPUs for both sides, enough for one, and settings that allow it."""
    if config.cluster.topology != "auto":
        return config.cluster.topology
    if device == "cpu" or config.rollout.weight_transfer == "nccl":
        return "disaggregated"
    if config.rollout.weight_transfer != "cuda_ipc" and fits(
        plan_placement(config, has_engines=has_engines), gpus_per_node
    ):
        return "disaggregated"
    try:
        colocated = replace(config, cluster=replace(config.cluster, topology="colocated"))
    except ConfigError:  # other numbers of ranks and engines' GPUs, or sampling during the update
        return "disaggregated"
    plan = plan_placement(colocated, has_engines=has_engines)
    return "colocated" if plan.is_shared and fits(plan, gpus_per_node) else "disaggregated"


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


def plan_placement(config: Config, *, has_engines: bool = True) -> PlacementPlan:
    """Bundles for the ranks and engines of a run on GPUs.

    Args:
        config: ``cluster.topology``, ``trainer.num_ranks``, ``rollout.num_workers`` and
            ``rollout.tensor_parallel_size``; ``stage=eval`` has no ranks.
        has_engines: whether anything is sampled, so that engines need GPUs.

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
        plan: the placement of the run's ranks and engines.
        gpus_per_node: the number of GPUs of each node.

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
        has_engines: whether anything is sampled, so that engines need GPUs.

    Raises:
        TopologyError: the settings cannot work on these nodes; the message names the setting, what there is, and the
            way out.
    """
    topology = _topology(config, device, gpus_per_node, has_engines=has_engines)
    config = replace(config, cluster=replace(config.cluster, topology=topology))
    _check_transfer(config, device)
    if device == "cpu":
        if config.cluster.topology == "colocated":
            raise TopologyError(
                "cluster.topology=colocated needs GPUs: vLLM's CPU engine cannot sleep, and there is no GPU memory to "
                "take turns with; set cluster.topology=disaggregated (on a CPU both share the cores in any case)"
            )
        return
    cluster = config.cluster
    way_out = "add +machine=one_gpu" if sum(gpus_per_node) == 1 else "lower them"
    if sum(gpus >= cluster.gpus_per_node for gpus in gpus_per_node) < cluster.num_nodes:
        raise TopologyError(
            f"cluster.num_nodes={cluster.num_nodes} × cluster.gpus_per_node={cluster.gpus_per_node} asks for "
            f"{cluster.num_nodes * cluster.gpus_per_node} GPUs, Ray has {sum(gpus_per_node)} ({_listed(gpus_per_node)} "
            f"by node); {way_out}, or join the missing nodes with `ray start`"
        )
    plan = plan_placement(config, has_engines=has_engines)
    asked = (
        f"trainer.num_ranks={config.trainer.num_ranks} and rollout.num_workers={config.rollout.num_workers} × "
        f"rollout.tensor_parallel_size={config.rollout.tensor_parallel_size} need {plan.num_gpus} GPUs "
        f"(cluster.topology={cluster.topology}, stage={config.stage}), Ray has {sum(gpus_per_node)}"
    )
    if plan.num_gpus > sum(gpus_per_node):
        raise TopologyError(f"{asked}; {way_out}, or join more nodes with `ray start`")
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
