"""Who answers benchmark questions: our engines, or a server; both hand over each answer as soon as it is there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from rollout.engine import RolloutEngine
from rsgrpo.config import SamplingConfig
from rsgrpo.prompts import ChatTemplater
from rsgrpo.task_prompts.turns import TaskPrompt, chat_prompt

_BATCH_QUESTIONS = 256
_BATCH_IMAGES = 512  # decoded pages of one call lie in memory together


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What came back for one prompt.

    Attributes:
        prompt_id: whose answer it is.
        text: the response; empty if there is none.
        finish_reason: ``stop`` or ``length`` (cut at the limit), or what the server says.
        failure: why there is no response; empty where there is one.
    """

    prompt_id: str
    text: str = ""
    finish_reason: str = ""
    failure: str = ""


class Answerer(Protocol):
    """Answers prompts."""

    def answer(
        self, prompts: Sequence[TaskPrompt], sampling: SamplingConfig, on_answers: Callable[[Sequence[Answer]], None]
    ) -> None:
        """Answer all prompts, in any order.

        Args:
            prompts: with unique ids.
            sampling: how to draw responses.
            on_answers: called with answers as they come; each prompt's comes once.

        Raises:
            RsgrpoError: nothing can be answered any more; what ``on_answers`` got is good.
        """


class EngineAnswerer:
    """Answers with the rollout engine, batch by batch.

    Args:
        engine: loaded with the weights to judge.
        chat: the model's tokenizer or processor.
        seed: of the sampling, where there is any.
    """

    def __init__(self, engine: RolloutEngine, chat: ChatTemplater, seed: int) -> None:
        self._engine = engine
        self._chat = chat
        self._seed = seed

    def answer(
        self, prompts: Sequence[TaskPrompt], sampling: SamplingConfig, on_answers: Callable[[Sequence[Answer]], None]
    ) -> None:
        """See :class:`Answerer`; an engine answers everything or raises."""
        for batch in batches_of(prompts):
            prompted = [chat_prompt(one, self._chat) for one in batch]
            groups = self._engine.generate(prompted, num_samples=1, sampling=sampling, seed=self._seed)
            on_answers(
                [
                    Answer(
                        prompt_id=group.sample.sample_id,
                        text=group.rollouts[0].text,
                        finish_reason=group.rollouts[0].finish_reason,
                    )
                    for group in groups
                ]
            )


def batches_of(prompts: Sequence[TaskPrompt]) -> Iterator[list[TaskPrompt]]:
    """Cut prompts into calls of at most 256 questions and 512 images (one question may have more by itself)."""
    batch: list[TaskPrompt] = []
    num_images = 0
    for one in prompts:
        if batch and (len(batch) == _BATCH_QUESTIONS or num_images + len(one.images) > _BATCH_IMAGES):
            yield batch
            batch, num_images = [], 0
        batch.append(one)
        num_images += len(one.images)
    if batch:
        yield batch
