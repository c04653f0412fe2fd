"""Environment variables of the processes that train and sample."""

from __future__ import annotations

import os

from rsgrpo.cluster.topology import transfer_kind
from rsgrpo.config import Config
from rsgrpo.system.machine import REPOSITORY

_QUIET_VLLM = {"VLLM_LOGGING_LEVEL": "WARNING", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
_IN_PROCESS = "VLLM_ENABLE_V1_MULTIPROCESSING"
_POOLING_CACHE_GIB = 2.0  # of one batch
_ALLOCATOR_VARIABLES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")

Environment = dict[str, str]


def _shared_variables(device: str, num_threads: int) -> Environment:
    variables = {
        "OMP_NUM_THREADS": str(num_threads),
        # Trainer and engine take turns on the same cores: a waiting thread must not spin on one.
        "OMP_WAIT_POLICY": "PASSIVE",
        "PYTHONPATH": str(REPOSITORY),
        "TOKENIZERS_PARALLELISM": "false",
    }
    # Without a GPU to see, no library takes one: Ray leaves them visible to processes that asked for none.
    return variables | {"CUDA_VISIBLE_DEVICES": ""} if device == "cpu" else variables


def rank_environment(config: Config, device: str, num_threads: int, *, is_shared: bool = False) -> Environment:
    """Environment variables that a rank's process gets.

    Args:
        config: the run's settings.
        device: ``cpu`` or ``gpu``.
        num_threads: CPU threads that it may use.
        is_shared: whether an engine shares its GPU.
    """
    variables = _shared_variables(device, num_threads)
    if device == "cpu":
        return variables | {"DS_ACCELERATOR": "cpu"}
    own = {name: os.environ[name] for name in _ALLOCATOR_VARIABLES if os.environ.get(name)}
    if own or (is_shared and transfer_kind(config, device) == "cuda_ipc"):
        # Another process can only map expandable segments where the system lets it take file descriptors from
        # this one (pidfd_getfd), which containers forbid.
        return variables | own
    # Packed sequences of every length would leave gaps between fixed segments that nothing fits into.
    return variables | {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}


def engine_environment(config: Config, device: str, num_threads: int) -> Environment:
    """Environment variables that an engine's process gets.

    Args:
        config: the run's settings.
        device: ``cpu`` or ``gpu``.
        num_threads: CPU threads that it may use.
    """
    # Weight updates send a function to the engine's workers; they are our own processes.
    variables = _shared_variables(device, num_threads) | _QUIET_VLLM | {"VLLM_ALLOW_INSECURE_SERIALIZATION": "1"}
    return variables | _vllm_on_cpu(config.rollout.kv_cache_gib) if device == "cpu" else variables


def pooling_environment(device: str) -> Environment:
    """Environment variables that a process needs in which vLLM embeds pages.

    Args:
        device: ``cpu``, or another kind of device.
    """
    return _QUIET_VLLM | _vllm_on_cpu(_POOLING_CACHE_GIB) if device == "cpu" else dict(_QUIET_VLLM)


def serving_environment(device: str, num_threads: int, kv_cache_gib: float) -> Environment:
    """Environment variables that vLLM's own server gets, whose engine is a process of its own.

    Args:
        device: ``cpu`` or ``gpu``.
        num_threads: CPU threads that it may use.
        kv_cache_gib: CPU engine only: memory for the paged cache, in GiB.
    """
    variables = _shared_variables(device, num_threads) | _QUIET_VLLM
    own = {name: value for name, value in _vllm_on_cpu(kv_cache_gib).items() if name != _IN_PROCESS}
    return variables | own if device == "cpu" else variables


def _vllm_on_cpu(kv_cache_gib: float) -> Environment:
    return {
        "VLLM_CPU_KVCACHE_SPACE": str(max(1, round(kv_cache_gib))),
        _IN_PROCESS: "0",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # pinned threads would fight the trainer's for their cores
    }
