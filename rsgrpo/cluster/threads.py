"""CPU threads of ranks and engines: a node's cores, shared out among the processes that run there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rsgrpo.config import Config


@dataclass(frozen=True, kw_only=True, slots=True)
class Threads:
    """How many CPU threads each process gets.

    Attributes:
        ranks: the threads of each training rank.
        engines: the threads of each engine, and of each of its tensor parallel workers.
        ranks_alone: the threads of each training rank while no engine works, as in supervised training.
    """

    ranks: tuple[int, ...]
    engines: tuple[int, ...]
    ranks_alone: tuple[int, ...]


def share_threads(
    config: Config, *, cores: Mapping[str, int], rank_nodes: Sequence[str], engine_nodes: Sequence[str]
) -> Threads:
    """Give every process its share of its node's cores, at least one.

    On a CPU, ranks and engines work by turns unless the next batch is sampled during the update
    (``rl.max_staleness_steps``): each side then has the cores to itself when its turn comes. On GPUs both sides
    also decode pages and prepare prompts, so all processes of a node count.

    Args:
        config: ``cluster.device`` as decided; ``trainer.num_threads`` and ``rollout.num_threads`` above 0 hold as
            they are; an engine of ``rollout.tensor_parallel_size`` above 1 has a worker process for each part.
        cores: the number of cores of each node.
        rank_nodes: the node of each rank.
        engine_nodes: the node of each engine.

    Example:
        Two ranks and one engine on a node of 48 cores: 16 threads each on GPUs, 24 for each rank alone; on a CPU 24
        for each rank, which are at work together, and 48 for the engine.
    """
    size = config.rollout.tensor_parallel_size
    engine_processes = size + 1 if size > 1 else 1
    of_ranks = alone = Counter(rank_nodes)
    of_engines = Counter({node: count * engine_processes for node, count in Counter(engine_nodes).items()})
    samples_ahead = config.stage in ("rl", "all") and config.rl.max_staleness_steps
    if config.cluster.device == "gpu" or samples_ahead:
        of_ranks = of_engines = of_ranks + of_engines
    own = config.trainer.num_threads
    return Threads(
        ranks=tuple(own or max(1, cores[node] // of_ranks[node]) for node in rank_nodes),
        engines=tuple(config.rollout.num_threads or max(1, cores[node] // of_engines[node]) for node in engine_nodes),
        ranks_alone=tuple(own or max(1, cores[node] // alone[node]) for node in rank_nodes),
    )
