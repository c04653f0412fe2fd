"""A fixed set of rewards: which samples they can judge, and what they say of groups of rollouts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from functools import cache

import numpy as np

from rewards.base import RewardCall, RewardError
from rewards.gold import gold_problem
from rewards.gold_check import exact_answer_problem
from rewards.plugins import LoadedReward
from rewards.scoring import Scoring
from rsgrpo.config import EVISRAG, ResponseFormat
from rsgrpo.data.images.image_view import ImageView
from rsgrpo.text.sections import parse_response
from rsgrpo.types import RolloutGroup, Sample, ScoredGroup

_LISTED_CHARACTERS = 300
_NAMED_SAMPLES = 5  # how many offending samples a message lists


class Scorer:
    """Scores rollout groups with a fixed set of rewards.

    Example:
        >>> response_format = config.response.format
        >>> scorer = Scorer(load_rewards(config.rewards, Path.cwd(), response_format), view, response_format)
        >>> scorer.check_samples(samples)
        >>> scored = scorer.score(groups)
    """

    def __init__(
        self,
        rewards: Sequence[LoadedReward],
        view: ImageView | None = None,
        response_format: ResponseFormat = EVISRAG,
    ) -> None:
        """Take loaded rewards; their order is the order of ``ScoredRollout.rewards``.

        Args:
            rewards: the rewards to judge by.
            view: says at which size the model sees images; None: not known, so that a reward that asks for it raises.
            response_format: the declared sections, by which responses and gold are taken apart.
        """
        self.rewards = tuple(rewards)
        self._view = view
        self._format = response_format

    def check_samples(self, samples: Sequence[Sample]) -> None:
        """Refuse samples that a reward cannot judge, before anything is started.

        That is: their gold lacks what the reward needs, or the exact answer, where the reward can write it, does not
        earn 1.

        Args:
            samples: the samples to train on.

        Raises:
            RewardError: a reward cannot judge some samples; the message names the reward, how many samples, and the
                first of them.
        """
        for reward in self.rewards:
            problems = [(sample.sample_id, self._sample_problem(reward, sample)) for sample in samples]
            wrong = [(sample_id, problem) for sample_id, problem in problems if problem]
            if wrong:
                listed = "; ".join(f"{sample_id!r}: {problem}" for sample_id, problem in wrong[:_NAMED_SAMPLES])
                is_all = len(wrong) <= _NAMED_SAMPLES and len(listed) <= _LISTED_CHARACTERS
                raise RewardError(
                    f"reward {reward.name!r} cannot judge {len(wrong)} of {len(samples)} samples "
                    f"({listed[:_LISTED_CHARACTERS]}{'' if is_all else ', …'}); fix their gold, leave them out of the "
                    f"data, or remove rewards.{reward.name}"
                )

    def limited_to(self, samples: Sequence[Sample]) -> Scorer:
        """The rewards that can judge all of these samples; test questions may lack gold that training has."""
        return Scorer(
            [reward for reward in self.rewards if not any(self._sample_problem(reward, sample) for sample in samples)],
            self._view,
            self._format,
        )

    def _sample_problem(self, reward: LoadedReward, sample: Sample) -> str:
        if reward.config.scope.evidence_line and not sample.images:
            return "it has no images, and the scope is evidence_line"
        problem = gold_problem(sample, reward.gold_sections, self._format, reward.answer_section)
        return problem or exact_answer_problem(reward, self._blank_call(sample))

    def _image_sizes(self, sample: Sample) -> Callable[[int], tuple[int, int]] | None:
        """Gives the size of the sample's image at an index, each read once; None where no model is known."""
        view = self._view
        return None if view is None else cache(lambda index: view.seen_size(sample.images[index]))

    def _blank_call(self, sample: Sample) -> RewardCall:
        return RewardCall(
            sample=sample,
            text="",
            parsed=parse_response("", self._format),
            token_ids=np.zeros(0, dtype=np.int32),
            finish_reason="stop",
            num_tokens=0,
            response_index=0,
            image_sizes=self._image_sizes(sample),
        )

    def scoring(self) -> Scoring:
        """Begin to judge groups that come one by one, while others are still sampled."""
        return Scoring(self.rewards, self._image_sizes, self._format)

    def score(self, groups: Sequence[RolloutGroup]) -> list[ScoredGroup]:
        """Judge groups that are all there; see :class:`rewards.scoring.Scoring`.

        Args:
            groups: rollouts, with the samples that they answer.

        Returns:
            One scored group for each group, in order; siblings carry the same reward keys.

        Raises:
            RewardError: a reward raised, took longer than its ``timeout_seconds``, or returned something else than a
                finite number or None (for ``evidence_line``, one of these for each image).
        """
        with closing(self.scoring()) as scoring:
            for group in groups:
                scoring.add(group)
            return scoring.scored()
