"""Is the response too long, or too short?"""

from __future__ import annotations

from rewards.base import RewardCall


def overlong(call: RewardCall, max_response_tokens: int, buffer_tokens: int, min_response_tokens: int = 0) -> float:
    """Soft penalty in [-1, 0] on the number of tokens (DAPO's overlong shaping, with a lower limit).

    With n tokens, maximum m and buffer b: -1 below the minimum; 0 up to m - b; then falling linearly
    to -1 at m; -1 beyond.

    Args:
        call: the response to judge, with its sample.
        max_response_tokens: m, the most tokens of a response.
        buffer_tokens: b, over how many tokens below m the penalty grows; 0: it is a step at m.
        min_response_tokens: the fewest tokens of a response; fewer cost 1 as well.

    Example:
        m = 1536, b = 512: 1024 tokens give 0.0, 1280 give -0.5, 1536 give -1.0.
    """
    return overlong_penalty(call.num_tokens, max_response_tokens, buffer_tokens, min_response_tokens)


def overlong_penalty(
    num_tokens: int, max_response_tokens: int, buffer_tokens: int, min_response_tokens: int = 0
) -> float:
    """The penalty of ``overlong`` for a response of ``num_tokens`` tokens."""
    if num_tokens < min_response_tokens or num_tokens > max_response_tokens:
        return -1.0
    free_tokens = max_response_tokens - buffer_tokens
    return 0.0 if num_tokens <= free_tokens else (free_tokens - num_tokens) / buffer_tokens
