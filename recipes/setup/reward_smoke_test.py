"""Rewards, tried before workers start: one that cannot work is found in a second, not after the first rollouts."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from transformers import PreTrainedTokenizerBase

from rewards.boxes import find_boxes
from rewards.scorer import Scorer
from rsgrpo.text.token_offsets import TokenTable
from rsgrpo.types import Group, PromptedSample, Rollout, RolloutGroup, Sample

_LEAST_IOU = 0.8  # gold text is rounded, to thousandths or pixels; numbers of another convention overlap less


def smoke_test_rewards(
    scorer: Scorer, prompts: Sequence[PromptedSample], tokenizer: PreTrainedTokenizerBase
) -> tuple[str, ...]:
    """Judge gold responses as if they had been sampled: one of each kind of question, since rewards differ in them.

    Args:
        scorer: the rewards to try.
        prompts: the samples whose gold responses, or first accepted answers, are judged.
        tokenizer: the tokenizer that the responses are encoded with.

    Returns:
        Lines of warning: gold text whose boxes a reward does not take for gold, so that text, prompt and reward
        may not mean the same numbers.

    Raises:
        RewardError: a reward raises, hangs, or returns what is no reward.
    """
    chosen = list({_kind(prompted.sample): prompted for prompted in reversed(prompts)}.values())[::-1]
    table = TokenTable.from_tokenizer(tokenizer)
    scored = scorer.score([_answered(prompted, tokenizer, table) for prompted in chosen])
    exact = {reward.name: reward for reward in scorer.rewards if reward.exact_answer is not None}
    warnings: dict[str, tuple[str, ...]] = {}
    for prompted, group in zip(chosen, scored, strict=True):
        (rollout,) = group.rollouts
        if len(find_boxes(rollout.rollout.text)) != len(prompted.sample.boxes) or not prompted.sample.boxes:
            continue
        for value in rollout.rewards:
            if value.name in exact and value.value is not None and value.value < _LEAST_IOU:
                warnings.setdefault(
                    value.name,
                    (
                        f"warning: the gold text of {prompted.sample.sample_id!r:.40} earns {value.value:.2f} by "
                        f"rewards.{value.name:.20}: it counts otherwise",
                        f"  than {exact[value.name].config.kwargs!s:.60}; let the prompt ask for what is rewarded",
                    ),
                )
    return tuple(line for lines in warnings.values() for line in lines)


def _kind(sample: Sample) -> tuple[bool, ...]:
    """Which fields of the question hold something: what tells the kinds of questions apart."""
    fields = (sample.gold_response, sample.answers, sample.boxes, sample.choices, sample.positive_images, sample.images)
    return (sample.is_sufficient, *(bool(field) for field in fields))


def _answered(prompted: PromptedSample, tokenizer: PreTrainedTokenizerBase, table: TokenTable) -> RolloutGroup:
    """A group of the question whose only response is its gold, with all tags, whatever the prompt opens."""
    sample = prompted.sample
    written = sample.gold_response or next(iter(sample.answers), "")
    ids = [*tokenizer.encode(written, add_special_tokens=False), tokenizer.eos_token_id]
    text, starts = table.decode(ids)
    rollout = Rollout(
        sample_id=sample.sample_id,
        response_index=0,
        token_ids=np.array(ids, dtype=np.int32),
        logprobs=np.zeros(len(ids), dtype=np.float32),
        text=text,
        token_char_starts=starts,
        finish_reason="stop",
        policy_version=0,
    )
    return Group(
        sample=sample,
        prompt=dataclasses.replace(prompted.prompt, opened_section=""),
        prompt_token_ids=np.zeros(0, dtype=np.int32),
        rollouts=(rollout,),
    )
