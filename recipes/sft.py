"""Supervised fine-tuning: loss on the answers only, a token mean over the optimizer step.

The trainer is the one of reinforcement learning: a conversation is a group of one response whose ``positive_weights``
holds 1/N at the targets, N the targets of the whole optimizer step, and 0 at what stands between them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from recipes.sft_data import ConversationSource
from rsgrpo.algorithm.update_metrics import UpdateMetrics
from rsgrpo.config import OptimizerConfig, SftPhaseConfig
from rsgrpo.data.readers.findings import Tally
from rsgrpo.prompts.conversation import Conversation, TextEncoder, response_tokens
from rsgrpo.trainer.policy import Policy
from rsgrpo.types import ImageRef, TrainingGroup, TrainingResponse


@dataclass(kw_only=True, slots=True)
class SftState:
    """What a checkpoint of the driver holds: the phase, steps taken in all and in it, its position in the data.

    Attributes:
        skipped: how many conversations were passed over in training, by reason.
    """

    step: int = 0
    phase: int = 0
    phase_step: int = 0
    position: int = 0
    skipped: Tally = field(default_factory=Tally)


@dataclass(frozen=True, kw_only=True, slots=True)
class SftPhase:
    """A phase with its data."""

    settings: SftPhaseConfig
    source: ConversationSource

    @property
    def num_steps(self) -> int:
        """How many optimizer steps the phase takes."""
        settings = self.settings
        by_epochs = max(1, settings.num_epochs * len(self.source) // settings.samples_per_step)
        return min(by_epochs, settings.max_steps) if settings.max_steps else by_epochs

    @property
    def optimizer(self) -> OptimizerConfig:
        """The phase's optimizer settings; a warm-up given as a share is turned into a number of steps."""
        optimizer = self.settings.optimizer
        if optimizer.warmup_steps or not self.settings.warmup_frac:
            return optimizer
        return dataclasses.replace(optimizer, warmup_steps=math.ceil(self.settings.warmup_frac * self.num_steps))


def training_groups(
    conversations: Sequence[Conversation], tokenizer: TextEncoder, image_tokens: Callable[[ImageRef], int]
) -> list[TrainingGroup]:
    """Conversations as training groups.

    Args:
        conversations: the conversations of one optimizer step.
        tokenizer: the policy's tokenizer.
        image_tokens: how many positions an image takes.

    Returns:
        One group with one response for each conversation; every target token weighs 1/N, N counted over all of them.
    """
    encoded = [response_tokens(conversation, tokenizer, image_tokens) for conversation in conversations]
    num_targets = sum(int(is_target.sum()) for _, is_target in encoded)
    return [
        TrainingGroup(
            sample_id=conversation.sample_id,
            prompt=conversation.prompt,
            prompt_token_ids=None,
            responses=(
                TrainingResponse(
                    response_index=0,
                    token_ids=ids,
                    positive_weights=(is_target / num_targets).astype(np.float32),
                    negative_weights=np.zeros(len(ids), dtype=np.float32),
                    images=tuple(image for part in conversation.parts for image in part.images),
                ),
            ),
        )
        for conversation, (ids, is_target) in zip(conversations, encoded, strict=True)
    ]


class SupervisedTraining:
    """One phase of the supervised stage, one optimizer step at a time.

    Args:
        phase: what it trains on, and how.
        policy: the ranks that hold the weights.
        tokenizer: the policy's tokenizer.
        image_tokens: how many positions an image takes.
        state: where to go on.
    """

    def __init__(
        self,
        *,
        phase: SftPhase,
        policy: Policy,
        tokenizer: TextEncoder,
        image_tokens: Callable[[ImageRef], int],
        state: SftState,
    ) -> None:
        self.phase = phase
        self.policy = policy
        self.tokenizer = tokenizer
        self.image_tokens = image_tokens
        self.state = state

    def train_step(self) -> UpdateMetrics:
        """One optimizer step on the next conversations."""
        taken = self.phase.source.take(self.state.position, self.phase.settings.samples_per_step)
        result = self.policy.update(training_groups(taken.conversations, self.tokenizer, self.image_tokens), "nll")
        self.state.step += 1
        self.state.phase_step += 1
        self.state.position = taken.position
        for reason, detail in taken.skipped:
            self.state.skipped.add(reason, detail)
        return result.metrics

    def validation_loss(self) -> float | None:
        """Mean negative log-likelihood of the held-out target tokens, in nats a token; None if none are held out."""
        held_out = self.phase.source.held_out()
        if not held_out:
            return None
        groups = training_groups(held_out, self.tokenizer, self.image_tokens)
        scored = self.policy.score(groups)
        # The weights of all targets together are 1: their sum is the mean.
        return -sum(
            float(np.dot(response.logprobs.astype(np.float64), group.responses[0].positive_weights.astype(np.float64)))
            for response, group in zip(scored, groups, strict=True)
        )
