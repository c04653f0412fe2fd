"""Kinds of GPUs, and which share of their figures a run reaches: one data file beside this module."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from rsgrpo.errors import RsgrpoError, shown

_FILE = Path(__file__).with_name("gpus.json")


class PlanError(RsgrpoError):
    """A plan cannot be made, or what is planned cannot work; the message says what would."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GpuKind:
    """Published figures of a GPU: dense matrix products, float32 without TF32.

    Attributes:
        name: as ``plan_for.gpu`` names it.
        memory_gib: as the driver reports it.
        bfloat16_teraflops: 10¹² operations a second.
        float32_teraflops: likewise.
        memory_gb_a_second: bandwidth of its memory, 10⁹ bytes a second.
        link_gb_a_second: to the GPUs beside it, one way: NVLink, else PCIe.
    """

    name: str
    memory_gib: float
    bfloat16_teraflops: float
    float32_teraflops: float
    memory_gb_a_second: float
    link_gb_a_second: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Assumptions:
    """What a plan assumes because no formula gives it.

    Attributes:
        source: where the figures come from: assumed, or measured with what.
        matrix_share: share of the peak that an update's products reach.
        prefill_share: likewise where engines read prompts.
        bandwidth_share: share of the memory's bandwidth that sampling and the optimizer reach.
        link_share: likewise of the link.
        host_gb_a_second: of an optimizer step over offloaded states, 10⁹ bytes a second.
        decode_overhead_seconds: that an engine's pass takes beside its arithmetic.
        allocator_factor: memory that activations occupy over what they need.
        context_gib: of CUDA, NCCL and kernels, in every process.
        graphs_gib: of vLLM's CUDA graphs.
        sleeping_engine_gib: that an engine keeps while it sleeps.
    """

    source: str
    matrix_share: float
    prefill_share: float
    bandwidth_share: float
    link_share: float
    host_gb_a_second: float
    decode_overhead_seconds: float
    allocator_factor: float
    context_gib: float
    graphs_gib: float
    sleeping_engine_gib: float


def read_gpus(file: Path = _FILE) -> tuple[Assumptions, dict[str, GpuKind]]:
    """Assumptions, and kinds by name.

    Args:
        file: the JSON file of GPU kinds and assumptions; by default the one that comes with the package.
    """
    content = json.loads(file.read_text(encoding="utf-8"))
    kinds = [GpuKind(**fields) for fields in content.pop("gpus")]
    return Assumptions(**content), {kind.name: kind for kind in kinds}


def gpu_kind(name: str, kinds: dict[str, GpuKind]) -> GpuKind:
    """The kind of a name, in upper or lower case.

    Raises:
        PlanError: it is not known.
    """
    found = next((kind for kind in kinds.values() if kind.name.lower() == name.lower()), None)
    if found is None:
        raise PlanError(f"plan_for.gpu={shown(name, 80)} is not known; choose from {', '.join(kinds)}")
    return found
