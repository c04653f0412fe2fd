"""``rollout``: the engines."""

from __future__ import annotations

from dataclasses import dataclass, field

from rsgrpo.config.checks import (
    MAX_PROCESSES,
    MAX_SECONDS,
    MAX_THREADS,
    MAX_TOKENS,
    ConfigError,
    at_least,
    at_most,
    between,
    more_than,
    one_of,
)
from rsgrpo.config.sampling import SamplingConfig

WEIGHT_TRANSFERS = ("object_store", "cuda_ipc", "nccl")
_MAX_BATCHED_TOKENS = 4_194_304  # the engine sets memory aside for each of them
_MAX_SEQUENCES = 65_536
MAX_BUCKET_MIB = 4_000
"""The largest bucket in MiB: it travels between vLLM's processes as one message, which ends at 4 GiB."""
_MAX_CACHE_GIB = 1.0e5


@dataclass(kw_only=True, slots=True)
class RolloutConfig:
    """The pool of vLLM workers."""

    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    num_workers: int = 1
    """Number of engines."""
    tensor_parallel_size: int = 1
    """Number of GPUs of each engine."""
    max_model_tokens: int = 16536
    """Most tokens of a prompt and its response together."""
    max_num_sequences: int = 256
    """Most responses that an engine samples at the same time."""
    max_batched_tokens: int = 16384
    """Most tokens that an engine computes in one of its steps; longer prompts are read in parts."""
    gpu_memory_frac: float = 0.0
    """Share of a GPU's memory that an engine takes for weights, cache and activations; 0: 0.9 where it has its
    GPUs to itself, 0.6 where it shares them with the trainer (``cluster.topology=colocated``)."""
    kv_cache_gib: float = 1.0
    """CPU engine only: memory for the paged cache, in GiB."""
    enforce_eager: bool = False
    """Leave out vLLM's CUDA graphs: they cost memory and start-up time, and sample faster."""
    image_embeds: bool = False
    """Feed the engine the stored features of pages instead of pixels (needs ``model.vision_cache.folder``)."""
    num_threads: int = 0
    """CPU threads of each engine; 0: its share of its node's cores (docs/scaling.md)."""
    start_timeout_seconds: float = 900.0
    """Seconds that an engine may take to load the model and to start."""
    generate_timeout_seconds: float = 3600.0
    """Seconds that an engine may say nothing while it samples, or a call to it may take."""
    max_restarts: int = 2
    """How often a dead worker is replaced before the run stops."""
    weight_transfer: str = "auto"
    """How new weights reach the engines: ``object_store`` (Ray's shared memory), ``cuda_ipc`` (trainer and
    engine on the same GPUs), ``nccl`` (broadcast between GPUs). ``auto``: the object store on a CPU, else
    ``cuda_ipc`` where ``cluster.topology`` is colocated and ``nccl`` where it is not."""
    weight_bucket_mib: int = 512
    """Weights travel in flat buckets of at most this size (one larger parameter makes its own)."""

    def __post_init__(self) -> None:
        between("rollout.num_workers", self.num_workers, 1, MAX_PROCESSES)
        between("rollout.tensor_parallel_size", self.tensor_parallel_size, 1, MAX_PROCESSES)
        between("rollout.num_threads", self.num_threads, 0, MAX_THREADS)
        between("rollout.weight_bucket_mib", self.weight_bucket_mib, 1, MAX_BUCKET_MIB)
        between("rollout.max_num_sequences", self.max_num_sequences, 1, _MAX_SEQUENCES)
        between("rollout.max_batched_tokens", self.max_batched_tokens, 1, _MAX_BATCHED_TOKENS)
        between("rollout.max_model_tokens", self.max_model_tokens, 2, MAX_TOKENS)
        at_least("rollout.max_restarts", self.max_restarts, 0)
        if self.gpu_memory_frac:
            between("rollout.gpu_memory_frac", self.gpu_memory_frac, 0.01, 1.0)
        for name, value, maximum in (
            ("kv_cache_gib", self.kv_cache_gib, _MAX_CACHE_GIB),
            ("start_timeout_seconds", self.start_timeout_seconds, MAX_SECONDS),
            ("generate_timeout_seconds", self.generate_timeout_seconds, MAX_SECONDS),
        ):
            more_than(f"rollout.{name}", value, 0.0)
            at_most(f"rollout.{name}", value, maximum)
        if self.max_batched_tokens < self.max_num_sequences:
            raise ConfigError(
                f"rollout.max_batched_tokens={self.max_batched_tokens} is less than rollout.max_num_sequences="
                f"{self.max_num_sequences}, each of which needs a token in every pass; raise the one or lower the other"
            )
        one_of("rollout.weight_transfer", self.weight_transfer, ("auto", *WEIGHT_TRANSFERS))
        if self.max_model_tokens <= self.sampling.max_response_tokens:
            raise ConfigError(
                f"rollout.max_model_tokens={self.max_model_tokens} leaves no room for a prompt beside "
                f"rollout.sampling.max_response_tokens={self.sampling.max_response_tokens}"
            )
