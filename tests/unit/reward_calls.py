"""What rewards are given in tests: a call, and groups of rollouts of one token a character."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from rewards.base import RewardCall
from rsgrpo.text.sections import ParsedResponse, parse_response
from rsgrpo.types import ChatPrompt, Group, Rollout, RolloutGroup, Sample


def make_call(
    sample: Sample,
    text: str,
    *,
    parsed: ParsedResponse | None = None,
    num_tokens: int = 3,
    image_sizes: Callable[[int], tuple[int, int]] | None = None,
) -> RewardCall:
    """A finished response to a sample, read by the default sections unless ``parsed`` says otherwise."""
    return RewardCall(
        sample=sample,
        text=text,
        parsed=parsed or parse_response(text),
        token_ids=np.zeros(num_tokens, dtype=np.int32),
        finish_reason="stop",
        num_tokens=num_tokens,
        response_index=0,
        image_sizes=image_sizes,
    )


def character_group(sample: Sample, *texts: str) -> RolloutGroup:
    """Rollouts with one token a character and an end-of-sequence token."""
    rollouts = tuple(
        Rollout(
            sample_id=sample.sample_id,
            response_index=index,
            token_ids=np.zeros(len(text) + 1, dtype=np.int32),
            logprobs=np.zeros(len(text) + 1, dtype=np.float32),
            text=text,
            token_char_starts=np.arange(len(text) + 1, dtype=np.int32),
            finish_reason="stop",
            policy_version=0,
        )
        for index, text in enumerate(texts)
    )
    return Group(
        sample=sample,
        prompt=ChatPrompt(sample_id=sample.sample_id, text=""),
        prompt_token_ids=np.zeros(1, dtype=np.int32),
        rollouts=rollouts,
    )
