"""Supervised fine-tuning on tagged trajectories: loss on the response only, a token mean over the step.

The trainer is the one of reinforcement learning: a trajectory is a group of one response whose
``positive`` stream holds 1/N, N the response tokens of the whole optimizer step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerBase

from recipes.prompt_stream import PromptStream
from rsgrpo.config import Config
from rsgrpo.policy import Policy
from rsgrpo.types import PromptedSample, TrainingGroup, TrainingResponse, UpdateMetrics


@dataclass(kw_only=True, slots=True)
class SftState:
    """What a checkpoint of the driver holds: steps taken and the position in the data."""

    step: int = 0
    position: int = 0


def trajectories(prompted: Sequence[PromptedSample], tokenizer: PreTrainedTokenizerBase) -> list[TrainingGroup]:
    """Gold responses as training groups, the end-of-turn token included.

    Args:
        prompted: questions with their gold responses.
        tokenizer: the policy's.

    Returns:
        One group of one response a question; every response token weighs 1/N, N counted over all.
    """
    ids = [
        np.asarray(
            [*tokenizer.encode(one.sample.gold_response, add_special_tokens=False), tokenizer.eos_token_id],
            dtype=np.int32,
        )
        for one in prompted
    ]
    num_tokens = sum(len(response) for response in ids)
    return [
        TrainingGroup(
            sample_id=one.sample.sample_id,
            prompt=one.prompt,
            prompt_token_ids=None,
            responses=(
                TrainingResponse(
                    response_index=0,
                    token_ids=response,
                    positive=np.full(len(response), 1.0 / num_tokens, dtype=np.float32),
                    negative=np.zeros(len(response), dtype=np.float32),
                ),
            ),
        )
        for one, response in zip(prompted, ids, strict=True)
    ]


class SupervisedTraining:
    """The supervised stage, one optimizer step at a time.

    Args:
        config: the run's settings.
        policy: the ranks that hold the weights.
        tokenizer: the policy's.
        questions: questions with gold; the last ``sft.validation_samples`` are held out.
        state: where to go on.
    """

    def __init__(
        self,
        *,
        config: Config,
        policy: Policy,
        tokenizer: PreTrainedTokenizerBase,
        questions: Sequence[PromptedSample],
        state: SftState,
    ) -> None:
        self.config = config
        self.policy = policy
        self.tokenizer = tokenizer
        self.state = state
        num_held_out = min(config.sft.validation_samples, len(questions) // 10)
        num_trained = len(questions) - num_held_out
        self.validation = questions[num_trained:]
        self.stream = PromptStream(questions[:num_trained], seed=config.seed, shuffle=True, position=state.position)
        by_epochs = max(1, config.sft.num_epochs * num_trained // config.sft.samples_per_step)
        self.num_steps = min(by_epochs, config.sft.max_steps) if config.sft.max_steps else by_epochs

    def train_step(self) -> UpdateMetrics:
        """One optimizer step on the next questions."""
        prompted = self.stream.take(self.config.sft.samples_per_step)
        result = self.policy.update(trajectories(prompted, self.tokenizer), "nll")
        self.state.step += 1
        self.state.position = self.stream.position
        return result.metrics

    def validation_loss(self) -> float:
        """Mean negative log-likelihood of a held-out response token, in nats; NaN if none is held out."""
        if not self.validation:
            return float("nan")
        scored = self.policy.score(trajectories(self.validation, self.tokenizer))
        total = sum(float(-one.logprobs.sum(dtype=np.float64)) for one in scored)
        return total / sum(len(one.logprobs) for one in scored)
