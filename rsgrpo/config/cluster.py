"""``cluster``: Ray, and where ranks and engines run."""

from __future__ import annotations

from dataclasses import dataclass

from rsgrpo.config.checks import MAX_PROCESSES, Literal, between, check_choices

Topology = Literal["auto", "disaggregated", "colocated"]

Device = Literal["auto", "cpu", "gpu"]


@dataclass(kw_only=True, slots=True)
class ClusterConfig:
    """Ray."""

    address: str = ""
    """Address of a running cluster; empty: start one on this machine."""
    device: Device = "auto"
    """``cpu`` or ``gpu``. ``auto``: what the installed vLLM was built for; where nothing is sampled, GPUs if there
    are any."""
    topology: Topology = "auto"
    """``disaggregated``: trainer and engines have GPUs of their own. ``colocated``: they share GPUs and take
    turns (the engines sleep while the trainer works, the trainer's memory goes to the host while they
    sample); GPUs only. ``auto``: colocated where there are too few GPUs for both and the settings allow it."""
    num_nodes: int = 1
    """Nodes that the cluster must have before anything starts; GPUs only."""
    gpus_per_node: int = 0
    """GPUs that each of them must have; 0: whatever there is, as long as ranks and engines find a place."""

    def __post_init__(self) -> None:
        check_choices(self, "cluster.")
        between("cluster.num_nodes", self.num_nodes, 1, MAX_PROCESSES)
        between("cluster.gpus_per_node", self.gpus_per_node, 0, MAX_PROCESSES)
