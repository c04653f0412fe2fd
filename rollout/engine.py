"""What the recipes need of whatever answers questions."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Protocol

from rsgrpo.config import SamplingConfig
from rsgrpo.errors import RsgrpoError
from rsgrpo.types import PromptedSample, RolloutGroup
from rsgrpo.weights.update import WeightUpdate


class RolloutError(RsgrpoError):
    """Responses could not be sampled; the message names the worker or the sample and the way out."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NamedLogprobs:
    """How probable given tokens are as the first token of a response.

    Attributes:
        logprobs: natural logarithms of the probabilities, one for each of the tokens, in their order.
        num_prompt_tokens: how many tokens the prompt has, those of its images included.
    """

    logprobs: tuple[float, ...]
    num_prompt_tokens: int


class TokenJudge(Protocol):
    """Says how probable given answers of one token are; engines do, and a plain forward pass of a model does."""

    def named_logprobs(
        self, prompted: Sequence[PromptedSample], token_ids: Sequence[int], *, max_pixels: int
    ) -> list[NamedLogprobs]:
        """Look at the first token behind each prompt.

        Args:
            prompted: the questions, with different sample ids.
            token_ids: the tokens to look at, at least one.
            max_pixels: the area in pixels that larger pages are scaled down to.

        Returns:
            The log-probabilities behind each prompt, in the order of the questions.
        """


class RolloutEngine(Protocol):
    """Samples responses under the newest weights that it was given."""

    @property
    def policy_version(self) -> int:
        """Version stamp of the newest weights that the engine was given."""

    def stream(
        self, prompted: Sequence[PromptedSample], *, num_samples: int, sampling: SamplingConfig, seed: int
    ) -> Generator[RolloutGroup, None, None]:
        """Answer questions, and hand over each group as soon as it is complete.

        Args:
            prompted: the questions, with different sample ids.
            num_samples: n, responses a question.
            sampling: how to draw them.
            seed: the seed; with each sample's id it fixes every response, whichever worker draws it.

        Yields:
            One group for each question, in the order in which they are complete. Close the generator where it may not
            be used up: the engines then give up the rest.
        """

    def generate(
        self, prompted: Sequence[PromptedSample], *, num_samples: int, sampling: SamplingConfig, seed: int
    ) -> list[RolloutGroup]:
        """Answer questions as ``stream`` does; all groups come together, in the order of the questions."""

    def update_weights(self, update: WeightUpdate) -> None:
        """Take new weights, check them against their checksum, and forget everything cached.

        Where another thread is in the middle of ``stream``, its responses go on under the new weights.
        """
