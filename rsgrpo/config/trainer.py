"""``trainer``: the ranks that hold and train the policy."""

from __future__ import annotations

from dataclasses import dataclass

from rsgrpo.config.checks import (
    MAX_PROCESSES,
    MAX_SECONDS,
    MAX_THREADS,
    ConfigError,
    at_least,
    at_most,
    between,
    more_than,
)


@dataclass(kw_only=True, slots=True)
class TrainerConfig:
    """The ranks that hold and update the policy."""

    num_ranks: int = 1
    """Number of processes that hold and train the policy; on GPUs each has one."""
    num_threads: int = 0
    """CPU threads of each rank; 0: its share of its node's cores (docs/scaling.md)."""
    zero_stage: int = 2
    """DeepSpeed ZeRO stage: 1, 2 or 3."""
    offload_optimizer: bool = False
    """Keep optimizer states in host memory."""
    offload_parameters: bool = False
    """Keep parameters in host memory (ZeRO 3)."""
    micro_batch_tokens: int = 16384
    """Hard cap of tokens in one forward pass; a prompt with one response that is longer is an error."""
    micro_batch_pairs: int = 0
    """Hard cap of attention work in one forward pass: pairs of a query and a key that it sees, such as 1.3e8 for
    16,384 tokens of one sequence; 0: none. It bounds the time of a micro-batch where prompts are long."""
    share_prefix: bool = True
    """Compute a group's prompt once for its n responses (same gradient, less work)."""
    max_skipped_steps: int = 3
    """Stop after this many steps in a row with a non-finite gradient."""
    timeout_seconds: float = 7200.0
    """Seconds that the ranks may take for one call (to load the model, for a batch's passes, for a checkpoint) before
    they count as hanging. A rank that dies is noticed at once."""

    def __post_init__(self) -> None:
        between("trainer.num_ranks", self.num_ranks, 1, MAX_PROCESSES)
        between("trainer.num_threads", self.num_threads, 0, MAX_THREADS)
        at_least("trainer.max_skipped_steps", self.max_skipped_steps, 1)
        more_than("trainer.timeout_seconds", self.timeout_seconds, 0.0)
        at_most("trainer.timeout_seconds", self.timeout_seconds, MAX_SECONDS)
        at_least("trainer.micro_batch_tokens", self.micro_batch_tokens, 1)
        at_least("trainer.micro_batch_pairs", self.micro_batch_pairs, 0)
        if self.zero_stage not in (1, 2, 3):
            raise ConfigError(f"trainer.zero_stage={self.zero_stage} is not known; choose 1, 2 or 3")
        if self.offload_parameters and self.zero_stage != 3:
            raise ConfigError("trainer.offload_parameters=true needs trainer.zero_stage=3")
