"""How responses are drawn and what they earn: sampling, engines, scopes, rewards."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from rsgrpo.config.checks import TAGS, ConfigError, at_least, more_than, one_of


@dataclass(kw_only=True, slots=True)
class SamplingConfig:
    """How responses are drawn. Training refuses what would change the meaning of log-probabilities."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = -1
    """-1: off."""
    repetition_penalty: float = 1.0
    max_response_tokens: int = 1536

    def __post_init__(self) -> None:
        at_least("temperature", self.temperature, 0.0)
        at_least("max_response_tokens", self.max_response_tokens, 1)
        if not 0.0 < self.top_p <= 1.0:
            raise ConfigError(f"top_p={self.top_p} must lie in (0, 1]")


@dataclass(kw_only=True, slots=True)
class RolloutConfig:
    """The pool of vLLM workers."""

    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    num_workers: int = 1
    tensor_parallel_size: int = 1
    max_model_tokens: int = 16536
    """Prompt and response together."""
    max_num_sequences: int = 256
    max_batched_tokens: int = 16384
    gpu_memory_frac: float = 0.6
    kv_cache_gib: float = 1.0
    """CPU engine only: memory for the paged cache."""
    enforce_eager: bool = False
    num_threads: int = 0
    """CPU engine only: threads a worker; 0: all cores."""
    start_timeout_seconds: float = 900.0
    generate_timeout_seconds: float = 3600.0
    max_restarts: int = 2
    """How often a dead worker is replaced before the run stops."""

    def __post_init__(self) -> None:
        at_least("rollout.num_workers", self.num_workers, 1)
        at_least("rollout.tensor_parallel_size", self.tensor_parallel_size, 1)
        if self.max_model_tokens <= self.sampling.max_response_tokens:
            raise ConfigError(
                f"rollout.max_model_tokens={self.max_model_tokens} leaves no room for a prompt beside "
                f"rollout.sampling.max_response_tokens={self.sampling.max_response_tokens}"
            )


@dataclass(kw_only=True, slots=True)
class ScopeConfig:
    """Which response tokens a reward may touch: either start and stop, or one of the named forms."""

    start: str = ""
    """``begin`` or a tag such as ``<think>``; the start tag belongs to the scope."""
    stop: str = ""
    """``end`` or a tag; the stop tag does not belong to the scope."""
    section: str = ""
    """A section by name: ``think`` is ``<think>`` up to and with ``</think>``."""
    evidence_line: bool = False
    """Each image's own ``[i]:`` line; the reward then returns one value an image."""

    def __post_init__(self) -> None:
        forms = [bool(self.start or self.stop), bool(self.section), self.evidence_line]
        if sum(forms) != 1:
            raise ConfigError(
                "a scope needs exactly one of {start, stop}, {section} or {evidence_line: true}; "
                f"got start={self.start!r} stop={self.stop!r} section={self.section!r} "
                f"evidence_line={self.evidence_line}"
            )
        if self.section:
            one_of("scope.section", self.section, ("observe", "evidence", "think", "answer"))
        if self.start or self.stop:
            one_of("scope.start", self.start, ("begin", *TAGS))
            one_of("scope.stop", self.stop, (*TAGS, "end"))


@dataclass(kw_only=True, slots=True)
class RewardConfig:
    """One reward: a Python function, the tokens it may touch, and how much it weighs."""

    function: str
    """``package.module:function`` or ``path/to/file.py:function``."""
    scope: ScopeConfig
    weight: float = 1.0
    on_missing: str = "skip"
    """Scope absent: ``skip`` (no credit) or ``whole`` (the whole response, as the public code)."""
    kwargs: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments for the function."""
    timeout_seconds: float = 60.0
    """A call that takes longer stops the run and names the sample."""

    def __post_init__(self) -> None:
        one_of("rewards.*.on_missing", self.on_missing, ("skip", "whole"))
        more_than("rewards.*.timeout_seconds", self.timeout_seconds, 0.0)
        at_least("rewards.*.weight", self.weight, 0.0)
        if self.function.count(":") != 1:
            raise ConfigError(
                f"rewards.*.function={self.function!r} must be package.module:function or path/to/file.py:function"
            )


@dataclass(kw_only=True, slots=True)
class EvalConfig:
    """Evaluation of a checkpoint on the test questions."""

    sampling: SamplingConfig = field(default_factory=lambda: SamplingConfig(temperature=0.0, max_response_tokens=2048))
    max_samples: int = 0
    """0: all."""
    before_sft: bool = True
    """Also score the model that the run starts from."""
    checkpoint: str = ""
    """``stage=eval``: model folder to score; empty: the run's newest, else ``model.path``."""
