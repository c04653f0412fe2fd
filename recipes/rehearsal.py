"""Rewards, tried before workers start: one that cannot work is found in a second, not after the first rollouts."""

from __future__ import annotations

import numpy as np
from transformers import PreTrainedTokenizerBase

from rewards.scorer import Scorer
from rsgrpo.token_offsets import TokenTable
from rsgrpo.types import PromptedSample, Rollout, RolloutGroup


def rehearse(scorer: Scorer, question: PromptedSample, tokenizer: PreTrainedTokenizerBase) -> None:
    """Judge a gold response as if it had been sampled.

    Args:
        scorer: the rewards.
        question: whose gold response, or first accepted answer, is judged.
        tokenizer: gives the tokens.

    Raises:
        RewardError: a reward raises, hangs, or returns what is no reward.
    """
    sample = question.sample
    written = sample.gold_response or next(iter(sample.answers), "")
    ids = [*tokenizer.encode(written, add_special_tokens=False), tokenizer.eos_token_id]
    text, starts = TokenTable.from_tokenizer(tokenizer).decode(ids)
    rollout = Rollout(
        sample_id=sample.sample_id,
        rollout_index=0,
        token_ids=np.array(ids, dtype=np.int32),
        logprobs=np.zeros(len(ids), dtype=np.float32),
        text=text,
        token_char_starts=starts,
        finish_reason="stop",
        policy_version=0,
    )
    group = RolloutGroup(
        sample=sample,
        prompt=question.prompt,
        prompt_token_ids=np.zeros(0, dtype=np.int32),
        rollouts=(rollout,),
    )
    scorer.score([group])
