"""The machine and what is installed on it: cores, memory, versions, the vLLM build, GPUs, limits."""

from __future__ import annotations

import os
import platform
import resource
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import InvalidVersion, Version

from recipes.doctor.check import Check, Subject, ok, problem, refused, warning
from recipes.doctor.probe import TorchAnswer
from rsgrpo.cluster.device import VersionOf, choose_device, installed_version, vllm_build
from rsgrpo.cluster.topology import TopologyError, fit
from rsgrpo.config import ClusterConfig, Config
from rsgrpo.system.machine import MachineError

_GIB = 1 << 30
_OWN_MEMORY_BYTES = 5 * _GIB  # driver, one rank, one engine and Ray, each with its libraries, before weights
_MIN_FILES, _GOOD_FILES = 1024, 8192  # Ray asks for 8192 and opens some hundred for each process
_FLASH_CAPABILITY = (8, 0)  # bfloat16 and flash-attn begin with Ampere


def machine_checks(subject: Subject) -> Iterator[Check]:
    """Cores, memory, operating system, Python."""
    cores = len(os.sched_getaffinity(0))
    load = os.getloadavg()[0]
    yield ok("cores", f"{cores} usable, load {load:.1f}")
    workers = subject.config.rollout.num_workers if subject.config else 1
    kv_cache_gib = subject.config.rollout.kv_cache_gib if subject.config else 1.0
    yield memory_check(read_memory(), int(_OWN_MEMORY_BYTES + workers * kv_cache_gib * _GIB))
    yield system_check(platform.system(), platform.machine(), f"{platform.system()} {platform.release()}")
    yield python_check(platform.python_version(), _own_metadata("Requires-Python"))
    yield files_check(resource.getrlimit(resource.RLIMIT_NOFILE))


@dataclass(frozen=True, kw_only=True, slots=True)
class Memory:
    """What a process here may use.

    Attributes:
        total_bytes: the memory of the machine in bytes, or of the container if that has less.
        available_bytes: how many of these bytes other processes do not use.
    """

    total_bytes: int
    available_bytes: int


def read_memory(proc: Path = Path("/proc/meminfo"), cgroup: Path = Path("/sys/fs/cgroup")) -> Memory:
    """Memory of the machine, bounded by the container's.

    Args:
        proc: the kernel's table.
        cgroup: the container's folder (version 2); one without a limit, or none at all, bounds nothing.
    """
    rows = (line.split() for line in proc.read_text().splitlines())
    kib = {row[0].rstrip(":"): int(row[1]) for row in rows if len(row) >= 2 and row[1].isdigit()}
    total, available = kib["MemTotal"] << 10, kib["MemAvailable"] << 10
    limit, used = _number(cgroup / "memory.max"), _number(cgroup / "memory.current")
    if limit is not None and limit < total:
        total, available = limit, min(available, limit - (used or 0))
    return Memory(total_bytes=total, available_bytes=max(available, 0))


def _number(file: Path) -> int | None:
    try:
        return int(file.read_text())
    except (OSError, ValueError):
        return None


def memory_check(memory: Memory, wanted_bytes: int) -> Check:
    """Whether what is free suffices for the processes of a run.

    Args:
        memory: how much memory there is.
        wanted_bytes: how much the libraries and the engines' caches take, in bytes; weights come on top.
    """
    found = f"{memory.total_bytes / _GIB:.1f} GiB, {memory.available_bytes / _GIB:.1f} GiB free"
    if memory.available_bytes >= wanted_bytes:
        return ok("memory", found)
    return warning(
        "memory",
        f"{found}; a run of one trainer and one engine takes about {wanted_bytes / _GIB:.1f} GiB beside the weights",
        "end other programs, or lower rollout.kv_cache_gib and rollout.num_workers",
    )


def system_check(system: str, machine: str, found: str) -> Check:
    """Whether there are wheels for this system."""
    if (system, machine) == ("Linux", "x86_64"):
        return ok("system", f"{found} ({machine})")
    return problem(
        "system", f"{found} ({machine}); rsgrpo is built for Linux on x86_64", "use such a machine or a container"
    )


def python_check(version: str, wanted: str) -> Check:
    """Whether this Python is supported."""
    if not wanted or SpecifierSet(wanted).contains(version):
        return ok("Python", version)
    return problem("Python", f"{version}; supported are {wanted}", "uv sync makes an environment with a supported one")


def files_check(limits: tuple[int, int]) -> Check:
    """Whether enough files may be open at once.

    Args:
        limits: soft and hard limit of this process.
    """
    soft, hard = (float("inf") if limit == resource.RLIM_INFINITY else limit for limit in limits)
    found = "no limit" if soft == float("inf") else f"{soft:.0f}"
    if soft >= _GOOD_FILES:
        return ok("open files", found)
    advice = f"ulimit -n {min(hard, 65536):.0f}"
    if hard < _GOOD_FILES:
        advice += "; a higher hard limit is set in /etc/security/limits.conf or by docker run --ulimit nofile=65536"
    if soft < _MIN_FILES:
        return problem("open files", f"{found}; a run opens some {_MIN_FILES}", advice)
    return warning("open files", f"{found}; Ray asks for {_GOOD_FILES}", advice)


def _own_metadata(key: str) -> str:
    try:
        return metadata.metadata("rsgrpo")[key] or ""
    except (metadata.PackageNotFoundError, KeyError):
        return ""


def version_checks(_: Subject) -> Iterator[Check]:
    """Installed versions against those that pyproject.toml asks for."""
    try:
        wanted = [Requirement(line) for line in metadata.requires("rsgrpo") or ()]
    except metadata.PackageNotFoundError:
        yield problem("packages", "rsgrpo itself is not installed in this environment", "run uv sync, then uv run …")
        return
    yield from requirement_checks(wanted, installed_version)


def requirement_checks(wanted: list[Requirement], version_of: VersionOf) -> Iterator[Check]:
    """One line for all packages that fit, and one for each that does not.

    Args:
        wanted: the packages that rsgrpo asks for; those of an extra may be absent.
        version_of: gives the installed version of a package; None: it is not installed.
    """
    fitting: list[str] = []
    for requirement in wanted:
        version = version_of(requirement.name)
        is_optional = requirement.marker is not None
        if version is None:
            if not is_optional:
                yield problem(
                    requirement.name,
                    f"not installed; supported is {requirement.name}{requirement.specifier}",
                    "run uv sync",
                )
        elif not _is_supported(requirement, version):
            report = warning if is_optional else problem
            yield report(requirement.name, f"{version}; verified with rsgrpo is {requirement.specifier}", "run uv sync")
        elif requirement.specifier and requirement.name in _SHOWN:
            fitting.append(f"{requirement.name} {version}")
    yield ok("packages", ", ".join(fitting) or "all as asked")


_SHOWN = ("torch", "torchvision", "transformers", "ray", "deepspeed", "datasets", "flash-attn")


def _is_supported(requirement: Requirement, version: str) -> bool:
    try:
        return requirement.specifier.contains(Version(version).base_version, prereleases=True)
    except InvalidVersion:
        return False


def vllm_check(cluster: ClusterConfig, num_gpus: int, *, has_engines: bool, cpu_flags: frozenset[str]) -> Check:
    """Whether the vLLM build is the one for this machine: what a run would say.

    Args:
        cluster: the cluster settings, which say what device is asked for.
        num_gpus: NVIDIA GPUs of this machine.
        has_engines: whether anything is sampled.
        cpu_flags: what the processor can do, as /proc/cpuinfo writes it.
    """
    try:
        choice = choose_device(cluster, num_gpus, has_engines=has_engines)
    except MachineError as error:
        return refused("vLLM", error)
    build = vllm_build()
    if choice.note and cluster.device == "auto":
        found, _, advice = choice.note.partition("; ")
        return warning("vLLM", f"{build.label}: {found}", advice)
    if build.device == "gpu":
        return ok("vLLM", f"{build.label}, the GPU build")
    if build.device == "cpu" and choice.device == "cpu":
        if cpu_flags and "avx2" not in cpu_flags:
            return problem("vLLM", f"{build.label}, the CPU build, needs a processor with AVX2", "use another machine")
        if cpu_flags and "avx512f" not in cpu_flags:
            return ok("vLLM", f"{build.label}, the CPU build (AVX2: this processor has no AVX-512, sampling is slower)")
    return ok("vLLM", f"{build.label}, the CPU build" if build.device else f"{build.label}; nothing is sampled")


def read_cpu_flags(file: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """The flags of the processor's features, such as ``avx2``; empty where the kernel does not say."""
    try:
        lines = file.read_text().splitlines()
    except OSError:
        return frozenset()
    return frozenset(next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), ()))


def nvidia_driver() -> str:
    """Version of the NVIDIA driver; empty if there is no NVIDIA GPU."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return ""
    query = [tool, "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return next(iter(answer.stdout.split()), "")


def build_checks(subject: Subject) -> Iterator[Check]:
    """The builds of torch and vLLM, the GPUs, and whether ranks and engines find a place on them."""
    config, driver = subject.config, nvidia_driver()
    # The GPUs of a cluster that is joined are not this machine's: it need not have any.
    is_remote = config is not None and bool(config.cluster.address)
    cluster = ClusterConfig() if config is None else replace(config.cluster, address="")
    has_engines = config is None or config.stage not in ("sft", "retriever")
    answer = subject.probe.answer() if subject.probe is not None else None
    num_gpus = len(answer.gpus) if answer is not None and not answer.error else int(bool(driver))
    if is_remote:
        check = ok("vLLM", f"{vllm_build().label}; the device is decided on the cluster's nodes")
    else:
        check = vllm_check(cluster, num_gpus, has_engines=has_engines, cpu_flags=read_cpu_flags())
    yield check
    if answer is None:
        return
    wants_gpu = None if is_remote or cluster.device == "auto" else cluster.device == "gpu"
    yield from torch_checks(answer, driver, wants_gpu=wants_gpu)
    is_placed = config is not None and config.stage != "retriever"
    if config is not None and is_placed and not is_remote and not answer.error and check.status != "problem":
        yield topology_check(config, len(answer.gpus))


def topology_check(config: Config, num_gpus: int) -> Check:
    """Whether ranks and engines find a place on this machine: what a run would decide.

    Args:
        config: the settings, which say how many GPUs are used and how they are shared.
        num_gpus: how many GPUs this machine has.
    """
    name = "placement"
    try:
        fitted = fit(config, gpus_per_node=(num_gpus,), has_engines=config.stage != "sft")
    except (MachineError, TopologyError) as error:
        return refused(name, error)
    if fitted.config.cluster.device == "gpu":
        return ok(name, "; ".join(fitted.lines))
    ranks = 0 if config.stage == "eval" else config.trainer.num_ranks
    return ok(name, f"training ranks: {ranks}, engines: {config.rollout.num_workers}; they fit on the cpu")


def torch_checks(answer: TorchAnswer, driver: str, *, wants_gpu: bool | None) -> Iterator[Check]:
    """Whether torch works, and which GPUs it can use.

    Args:
        answer: what the probe of torch answered.
        driver: version of the NVIDIA driver; empty: no GPU.
        wants_gpu: what ``cluster.device`` says; None: ``auto``.
    """
    if answer.error:
        yield problem("torch", answer.error, "run uv sync --reinstall-package torch; check the disk and the processor")
        return
    yield ok("torch", f"{answer.version} computes; built with {f'CUDA {answer.cuda}' if answer.cuda else 'no CUDA'}")
    if driver and not answer.gpus and wants_gpu is not False:
        reason = f"torch {answer.version} cannot use them" if answer.cuda else f"torch {answer.version} has no CUDA"
        yield problem(
            "GPU",
            f"driver {driver} is there, but {reason} (built with CUDA {answer.cuda or '-'})",
            "update the driver, check CUDA_VISIBLE_DEVICES, or set cluster.device=cpu",
        )
        return
    if not answer.gpus:
        if wants_gpu:
            yield problem("GPU", "cluster.device=gpu, and there is none here", "set cluster.device=auto or cpu")
        else:
            yield ok("GPU", "none; training and sampling run on the cores")
        return
    for index, gpu in enumerate(answer.gpus):
        found = (
            f"{gpu.name}, {gpu.total_bytes / _GIB:.0f} GiB, {gpu.free_bytes / _GIB:.0f} GiB free, driver {driver}, "
            f"compute capability {gpu.capability[0]}.{gpu.capability[1]}"
        )
        name = f"GPU {index}"
        if gpu.free_bytes < 0.8 * gpu.total_bytes:
            yield warning(name, found, "another process holds memory of it: nvidia-smi names it; end it, or wait")
        elif gpu.capability < _FLASH_CAPABILITY:
            yield warning(name, f"{found}; bfloat16 needs 8.0", "set model.dtype=float32 model.attention=sdpa")
        else:
            yield ok(name, found)
