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
        name: the name of the kind in ``plan_for.gpu``.
        memory_gib: the memory in GiB, as the driver reports it.
        bfloat16_teraflops: bfloat16 peak rate, in 10¹² operations a second.
        float32_teraflops: float32 peak rate, in 10¹² operations a second.
        memory_gb_a_second: the bandwidth of its memory, in 10⁹ bytes a second.
        link_gb_a_second: the bandwidth to the GPUs beside it, one way, in 10⁹ bytes a second: NVLink, else PCIe.
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
        source: where the figures come from: assumed, or what they were measured with.
        matrix_share: the share of the peak rate that the matrix products of an update reach, 0 to 1.
        prefill_share: the share of the peak rate that engines reach while they read prompts, 0 to 1.
        bandwidth_share: the share of the memory's bandwidth that sampling and the optimizer reach, 0 to 1.
        link_share: the share of the link's bandwidth that transfers between GPUs reach, 0 to 1.
        host_gb_a_second: the rate at which an optimizer step goes through offloaded states, in 10⁹ bytes a second.
        decode_overhead_seconds: the seconds that a pass of an engine takes in addition to its arithmetic.
        allocator_factor: how many times the memory that activations need they occupy in torch's allocator.
        context_gib: GiB that CUDA, NCCL and the kernels take in every process.
        graphs_gib: GiB that vLLM's CUDA graphs take.
        sleeping_engine_gib: GiB that an engine keeps on the GPU while it sleeps.
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
    """Read the assumptions, and the kinds of GPUs by name.

    Args:
        file: the JSON file of GPU kinds and assumptions; by default the one that comes with the package.
    """
    content = json.loads(file.read_text(encoding="utf-8"))
    kinds = [GpuKind(**fields) for fields in content.pop("gpus")]
    return Assumptions(**content), {kind.name: kind for kind in kinds}


def gpu_kind(name: str, kinds: dict[str, GpuKind]) -> GpuKind:
    """The kind of a name, in upper or lower case.

    Raises:
        PlanError: the kind is not known.
    """
    found = next((kind for kind in kinds.values() if kind.name.lower() == name.lower()), None)
    if found is None:
        raise PlanError(f"plan_for.gpu={shown(name, 80)} is not known; choose from {', '.join(kinds)}")
    return found
