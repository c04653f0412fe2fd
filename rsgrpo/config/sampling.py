"""``rollout.sampling`` and ``eval.sampling``: how responses are drawn."""

from __future__ import annotations

from dataclasses import dataclass

from rsgrpo.config.checks import MAX_TOKENS, ConfigError, at_most, between, more_than

_MAX_TEMPERATURE = 100.0  # beyond it every token is as likely as any other
_MAX_TOP_K = 1_000_000  # more than any vocabulary has tokens
_MAX_PENALTY = 100.0


@dataclass(kw_only=True, slots=True)
class SamplingConfig:
    """How responses are drawn. Training refuses what would change the meaning of log-probabilities."""

    temperature: float = 1.0
    """Logits are divided by it. In training the policy's log-probabilities are taken at the same temperature."""
    top_p: float = 1.0
    """Draw among the likeliest tokens that together have this probability; 1: among all."""
    top_k: int = -1
    """Draw among so many likeliest tokens; -1: among all."""
    repetition_penalty: float = 1.0
    """Divides the logits of tokens that occurred before; 1: none."""
    max_response_tokens: int = 1536
    """Most tokens of a response, which is cut there."""

    def __post_init__(self) -> None:
        between("temperature", self.temperature, 0.0, _MAX_TEMPERATURE)
        if self.top_k != -1:
            between("top_k", self.top_k, 1, _MAX_TOP_K)
        more_than("repetition_penalty", self.repetition_penalty, 0.0)
        at_most("repetition_penalty", self.repetition_penalty, _MAX_PENALTY)
        between("max_response_tokens", self.max_response_tokens, 1, MAX_TOKENS)
        if not 0.0 < self.top_p <= 1.0:
            raise ConfigError(f"top_p={self.top_p} must lie in (0, 1]")
