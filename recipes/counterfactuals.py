"""What the policy answers without single pages: the question that counterfactual rewards ask.

    groups with pages in question ──► greedy, all pages ──► still in question? ──► greedy, one page exchanged

A page is exchanged for one of another question, so that the layout of the prompt and the numbers of the other pages
stay. The answers come from the engines, under the weights that they hold when a step's responses are sampled: the
policy's own, or one step older with ``rl.max_staleness_steps: 1``, as the responses themselves. They are no part of the
gradient.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import numpy as np

from rsgrpo.config import SamplingConfig
from rsgrpo.types import Counterfactuals, ImageRef, PromptedSample, RolloutGroup

_DRAWS = 16  # pages that are looked at for one that takes no more tokens than the page in whose place it is put

PagesInQuestion = Mapping[str, tuple[int, ...]]
"""The 0-based images by sample id."""


class Answering(Protocol):
    """What answers; :class:`rollout.engine.RolloutEngine` does."""

    def generate(
        self, prompted: Sequence[PromptedSample], *, num_samples: int, sampling: SamplingConfig, seed: int
    ) -> list[RolloutGroup]:
        """Answer questions with different sample ids, in their order."""


class Asking(Protocol):
    """What asks for counterfactuals; :class:`rewards.scoring.Scoring` does."""

    def pages_in_question(self) -> PagesInQuestion:
        """Which pages are to be exchanged, by sample id."""

    def take_counterfactuals(self, counterfactuals: Mapping[str, Counterfactuals]) -> None:
        """Take what was answered so far, by sample id."""


class CounterfactualAnswers:
    """Asks the policy again, without pages that rewards put into question.

    Args:
        prompts: the questions of the stage, whose pages are put in the places of others.
        sampling: how responses are sampled; the answers here are greedy.
        num_exchanges: how often each page in question is exchanged, each time for another page.
        image_tokens: gives how many tokens an image takes.
        seed: the seed from which the pages are drawn.
    """

    def __init__(
        self,
        prompts: Sequence[PromptedSample],
        sampling: SamplingConfig,
        *,
        num_exchanges: int,
        image_tokens: Callable[[ImageRef], int],
        seed: int,
    ) -> None:
        self._sampling = dataclasses.replace(sampling, temperature=0.0)
        self._num_exchanges = num_exchanges
        self._image_tokens = image_tokens
        self._seed = seed
        pages = {image: None for prompt in prompts for image in prompt.sample.images}
        self._pages = tuple(pages)

    def ask(self, engine: Answering, prompted: Sequence[PromptedSample], asking: Asking, seed: int) -> dict[str, float]:
        """Ask what rewards want to know, and tell them.

        Args:
            engine: what answers.
            prompted: the questions of the groups that are judged.
            asking: whose pages are in question.
            seed: the seed of the sampling call.

        Returns:
            Metrics: ``counterfactual/pages``, how many pages were exchanged, and ``counterfactual/tokens``, how many
            tokens were sampled for it.
        """
        first = [prompt for prompt in prompted if prompt.sample.sample_id in asking.pages_in_question()]
        with_all, num_tokens = self._answers(engine, first, seed)
        known = {sample_id: Counterfactuals(with_all=text, exchanged=()) for sample_id, text in with_all.items()}
        asking.take_counterfactuals(known)
        pages = asking.pages_in_question()
        exchanges = {
            (prompt.sample.sample_id, image_index): self.exchanged(prompt, image_index)
            for prompt in first
            for image_index in pages.get(prompt.sample.sample_id, ())
        }
        texts, num_more = self._answers(engine, [prompt for found in exchanges.values() for prompt in found], seed)
        asking.take_counterfactuals(
            {
                prompt.sample.sample_id: Counterfactuals(
                    with_all=with_all[prompt.sample.sample_id],
                    exchanged=tuple(
                        tuple(
                            texts[exchange.sample.sample_id]
                            for exchange in exchanges.get((prompt.sample.sample_id, image_index), ())
                        )
                        for image_index in range(len(prompt.sample.images))
                    ),
                )
                for prompt in first
            }
        )
        return {
            "counterfactual/pages": float(sum(map(bool, exchanges.values()))),
            "counterfactual/tokens": float(num_tokens + num_more),
        }

    def _answers(self, engine: Answering, prompted: Sequence[PromptedSample], seed: int) -> tuple[dict[str, str], int]:
        """Greedy responses by sample id, and how many tokens they have together."""
        if not prompted:
            return {}, 0
        groups = engine.generate(prompted, num_samples=1, sampling=self._sampling, seed=seed)
        num_tokens = sum(len(group.rollouts[0].token_ids) for group in groups)
        return {group.sample_id: group.rollouts[0].text for group in groups}, num_tokens

    def exchanged(self, prompted: PromptedSample, image_index: int) -> list[PromptedSample]:
        """The question with one page exchanged, as often as pages are found that take no more tokens.

        Args:
            prompted: the question.
            image_index: the 0-based image that is exchanged.

        Returns:
            The question under other ids, once for each page. Which pages depends on the seed, the question and the
            image alone.
        """
        sample, own = prompted.sample, set(prompted.sample.images)
        digest = hashlib.blake2b(sample.sample_id.encode(), digest_size=8).digest()
        rng = np.random.default_rng((self._seed, int.from_bytes(digest, "big"), image_index))
        room = self._image_tokens(sample.images[image_index])
        found: dict[ImageRef, None] = {}
        for _ in range(_DRAWS * self._num_exchanges):
            page = self._pages[int(rng.integers(len(self._pages)))]
            if page not in own and page not in found and self._image_tokens(page) <= room:
                found[page] = None
                if len(found) == self._num_exchanges:
                    break
        return [_with_page(prompted, image_index, page, number) for number, page in enumerate(found)]


def _with_page(prompted: PromptedSample, image_index: int, page: ImageRef, number: int) -> PromptedSample:
    """The question under an id of its own, with another page in the place of one."""
    sample_id = f"{prompted.sample.sample_id} without image {image_index + 1}, {number + 1}"
    images = list(prompted.sample.images)
    images[image_index] = page
    return PromptedSample(
        sample=dataclasses.replace(prompted.sample, sample_id=sample_id, images=tuple(images)),
        prompt=dataclasses.replace(prompted.prompt, sample_id=sample_id, images=tuple(images)),
    )
