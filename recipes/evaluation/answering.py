"""Who answers benchmark questions: our engines, or a server; both hand over each answer as soon as it is there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Protocol

from rollout.engine import RolloutEngine
from rsgrpo.config import SamplingConfig
from rsgrpo.evaluation.prompts.turns import TaskPrompt, chat_prompt
from rsgrpo.prompts.chat_template import ChatTemplater


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What came back for one prompt.

    Attributes:
        prompt_id: the id of the prompt that is answered.
        text: the text of the response; empty if there is none.
        finish_reason: why the response ended: ``stop`` or ``length`` (cut at the limit), or what the server says.
        failure: why there is no response; empty where there is one.
        mean_logprob: the mean log-probability of the response's tokens, in nats, the end of sequence included; None:
            it is not known.
    """

    prompt_id: str
    text: str = ""
    finish_reason: str = ""
    failure: str = ""
    mean_logprob: float | None = None


class Answerer(Protocol):
    """Answers prompts."""

    def answer(
        self, prompts: Sequence[TaskPrompt], sampling: SamplingConfig, on_answers: Callable[[Sequence[Answer]], None]
    ) -> None:
        """Answer all prompts, in any order.

        Args:
            prompts: the prompts to answer, with unique ids.
            sampling: how to draw responses.
            on_answers: is called with answers as they come; each prompt's comes once.

        Raises:
            RsgrpoError: no further prompt can be answered; the answers that ``on_answers`` got are valid.
        """


class EngineAnswerer:
    """Answers with the rollout engine.

    Args:
        engine: loaded with the weights to judge.
        chat: the model's tokenizer or processor, with the template's arguments.
        seed: the seed of the sampling; greedy decoding does not use it.
    """

    def __init__(self, engine: RolloutEngine, chat: ChatTemplater, seed: int) -> None:
        self._engine = engine
        self._chat = chat
        self._seed = seed

    def answer(
        self, prompts: Sequence[TaskPrompt], sampling: SamplingConfig, on_answers: Callable[[Sequence[Answer]], None]
    ) -> None:
        """See :class:`Answerer`; an engine answers everything or raises."""
        prompted = [chat_prompt(prompt, self._chat) for prompt in prompts]
        with closing(self._engine.stream(prompted, num_samples=1, sampling=sampling, seed=self._seed)) as groups:
            for group in groups:
                (rollout,) = group.rollouts
                answer = Answer(
                    prompt_id=group.sample.sample_id,
                    text=rollout.text,
                    finish_reason=rollout.finish_reason,
                    mean_logprob=float(rollout.logprobs.mean()) if len(rollout.logprobs) else None,
                )
                on_answers([answer])
