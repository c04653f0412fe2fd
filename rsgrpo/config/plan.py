"""What ``plan=true`` computes for; a run reads none of it."""

from __future__ import annotations

from dataclasses import dataclass

from rsgrpo.config.checks import ConfigError, at_least, at_most, between, check_share

_MAX_SAMPLES = 1_000_000
_MAX_PRICE = 1.0e6
_MAX_MEMORY_GIB = 1.0e6


@dataclass(kw_only=True, slots=True)
class PlanConfig:
    """Machine, price and assumptions of a plan."""

    gpu: str = ""
    """Kind of GPU, such as ``H100`` or ``A100-80`` (docs/plan.md lists them); empty: this machine's, else ``H100``."""
    price_per_gpu_hour: float = 0.0
    """Price of a GPU for an hour, in any currency; 0: no cost is shown."""
    host_memory_gib: float = 0.0
    """Memory of a node in GiB; 0: the plan shows what a node needs, and refuses nothing for it."""
    response_frac: float = 0.5
    """Mean length of sampled responses as a share of their bound; memory is computed at the bound."""
    max_samples: int = 512
    """Samples of each data set that are looked at, evenly spread."""
    file: str = ""
    """JSON file that the plan is written to as data; empty: none."""

    def __post_init__(self) -> None:
        between("plan_for.price_per_gpu_hour", self.price_per_gpu_hour, 0.0, _MAX_PRICE)
        at_least("plan_for.host_memory_gib", self.host_memory_gib, 0.0)
        at_most("plan_for.host_memory_gib", self.host_memory_gib, _MAX_MEMORY_GIB)
        between("plan_for.max_samples", self.max_samples, 1, _MAX_SAMPLES)
        check_share("plan_for.response_frac", self.response_frac)
        if not self.response_frac:
            raise ConfigError("plan_for.response_frac=0 samples nothing; set the expected share, such as 0.5")
