"""Run every reward on every rollout, and say which tokens each speaks to.

A failure stops the step and names the reward, the sample and the rollout: an exception never becomes
a reward.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from numbers import Real
from typing import Any

import numpy as np

from rewards.base import RewardCall, RewardError
from rewards.exact import exact_answer_problem
from rewards.gold import gold_problem
from rewards.plugins import LoadedReward
from rewards.running import run_async, run_plain
from rewards.scopes import LocatedScope, ScopeRequest, locate_scopes
from rsgrpo.page_view import PageView
from rsgrpo.sections import parse_response
from rsgrpo.types import RolloutGroup, Sample, ScopedReward, ScoredGroup, ScoredRollout

# float32's reach, squares included: credit is computed from squared differences of rewards.
_LARGEST_VALUE = 1e18
_LISTED_CHARACTERS = 300
_NAMED_SAMPLES = 5  # how many offending samples a message lists


class Scorer:
    """Scores rollout groups with a fixed set of rewards.

    Example:
        >>> scorer = Scorer(load_rewards(config.rewards, Path.cwd()))
        >>> scorer.check_samples(samples)
        >>> scored = scorer.score(groups)
    """

    def __init__(self, rewards: Sequence[LoadedReward], view: PageView | None = None) -> None:
        """Take loaded rewards; their order is the order of ``ScoredRollout.rewards``.

        Args:
            rewards: to judge by.
            view: at which size the model sees pages; None: not known, so that a reward that asks for it raises.
        """
        self.rewards = tuple(rewards)
        self._view = view
        self._requests = tuple(
            ScopeRequest(scope=reward.config.scope, on_missing=reward.config.on_missing) for reward in self.rewards
        )

    def check_samples(self, samples: Sequence[Sample]) -> None:
        """Refuse samples that a reward cannot judge, before anything is started.

        That is: their gold lacks what the reward needs, or the exact answer, where the reward can write it, does not
        earn 1.

        Args:
            samples: training questions.

        Raises:
            RewardError: names the reward, how many samples, and the first of them.
        """
        for reward in self.rewards:
            problems = [(sample.sample_id, self._sample_problem(reward, sample)) for sample in samples]
            wrong = [(sample_id, problem) for sample_id, problem in problems if problem]
            if wrong:
                listed = "; ".join(f"{sample_id!r}: {problem}" for sample_id, problem in wrong[:_NAMED_SAMPLES])
                is_all = len(wrong) <= _NAMED_SAMPLES and len(listed) <= _LISTED_CHARACTERS
                raise RewardError(
                    f"reward {reward.name!r} cannot judge {len(wrong)} of {len(samples)} samples "
                    f"({listed[:_LISTED_CHARACTERS]}{'' if is_all else ', …'}); mend their gold, leave them out of the "
                    f"data, or remove rewards.{reward.name}"
                )

    def limited_to(self, samples: Sequence[Sample]) -> Scorer:
        """The rewards that can judge all of these samples; test questions may lack gold that training has."""
        return Scorer(
            [reward for reward in self.rewards if not any(self._sample_problem(reward, sample) for sample in samples)],
            self._view,
        )

    def _sample_problem(self, reward: LoadedReward, sample: Sample) -> str:
        if reward.config.scope.evidence_line and not sample.images:
            return "it has no images, and the scope is evidence_line"
        return gold_problem(sample, reward.gold_sections) or exact_answer_problem(reward, self._blank_call(sample))

    def _page_sizes(self, sample: Sample) -> Callable[[int], tuple[int, int]] | None:
        """Sizes of a sample's images, each read once, and only if a reward asks."""
        view = self._view
        return None if view is None else cache(lambda index: view.seen_size(sample.images[index]))

    def _blank_call(self, sample: Sample) -> RewardCall:
        return RewardCall(
            sample=sample,
            text="",
            parsed=parse_response(""),
            token_ids=np.zeros(0, dtype=np.int32),
            finish_reason="stop",
            num_tokens=0,
            rollout_index=0,
            page_sizes=self._page_sizes(sample),
        )

    def score(self, groups: Sequence[RolloutGroup]) -> list[ScoredGroup]:
        """Judge all rollouts of a step.

        Plain functions run one after the other, asynchronous ones all at once in one event loop,
        batch functions see all calls together.

        Args:
            groups: rollouts, with the samples that they answer.

        Returns:
            One scored group for each group, in order; siblings carry the same reward keys.

        Raises:
            RewardError: a reward raised, took longer than its ``timeout_seconds``, or returned what
                is no finite number, None, or (``evidence_line``) one of these an image.
        """
        sizes = [self._page_sizes(group.sample) for group in groups]
        calls = [
            RewardCall(
                sample=group.sample,
                text=rollout.text,
                parsed=parse_response(rollout.text),
                token_ids=rollout.token_ids,
                finish_reason=rollout.finish_reason,
                num_tokens=len(rollout.token_ids),
                rollout_index=rollout.rollout_index,
                page_sizes=page_sizes,
            )
            for group, page_sizes in zip(groups, sizes, strict=True)
            for rollout in group.rollouts
        ]
        columns = self._values(calls)
        scored = []
        row = 0
        for group in groups:
            rollouts = []
            for rollout in group.rollouts:
                located = locate_scopes(
                    self._requests, calls[row].parsed, rollout.token_char_starts, len(group.sample.images)
                )
                rewards = [
                    entry
                    for reward, column, scopes in zip(self.rewards, columns, located, strict=True)
                    for entry in _entries(reward, column[row], scopes)
                ]
                rollouts.append(ScoredRollout(rollout=rollout, rewards=tuple(rewards)))
                row += 1
            scored.append(ScoredGroup(group=group, rollouts=tuple(rollouts)))
        return scored

    def _values(self, calls: Sequence[RewardCall]) -> list[list[tuple[float | None, ...]]]:
        """For each reward, for each call, the checked values (one, or one an image)."""
        if not calls:
            return [[] for _ in self.rewards]
        together = [reward for reward in self.rewards if reward.is_async]
        returned = dict(zip((reward.name for reward in together), run_async(together, calls), strict=True))
        columns = []
        for reward in self.rewards:
            values = returned[reward.name] if reward.is_async else run_plain(reward, calls)
            columns.append([_checked(reward, call, value) for call, value in zip(calls, values, strict=True)])
        return columns


def _entries(
    reward: LoadedReward, values: tuple[float | None, ...], scopes: tuple[LocatedScope, ...]
) -> list[ScopedReward]:
    return [
        ScopedReward(
            name=reward.name,
            value=value,
            spans=scope.spans,
            scope_found=scope.found,
            image_index=scope.image_index,
        )
        for value, scope in zip(values, scopes, strict=True)
    ]


def _checked(reward: LoadedReward, call: RewardCall, returned: Any) -> tuple[float | None, ...]:
    """The values as floats, or a refusal that shows what was returned."""
    if not reward.config.scope.evidence_line:
        return (_number(reward, call, returned),)
    num_images = len(call.sample.images)
    if isinstance(returned, str | bytes) or not isinstance(returned, Sequence):
        raise _refusal(reward, call, returned, f"a list of {num_images} values, one an image of the sample")
    if len(returned) != num_images:
        raise _refusal(reward, call, returned, f"{num_images} values, one an image of the sample, not {len(returned)}")
    return tuple(_number(reward, call, value) for value in returned)


def _number(reward: LoadedReward, call: RewardCall, value: Any) -> float | None:
    if value is None:
        return None
    # Real covers int, bool, float and numpy scalars; a tensor or a text is a mistake.
    if isinstance(value, int | float | Real):
        number = float(min(max(value, -2 * _LARGEST_VALUE), 2 * _LARGEST_VALUE))  # an int may be too long for a float
        if abs(number) <= _LARGEST_VALUE:  # NaN is not
            return number
    raise _refusal(
        reward, call, value, f"a finite number of at most {_LARGEST_VALUE:g}, or None where the reward does not apply"
    )


def _refusal(reward: LoadedReward, call: RewardCall, returned: Any, wanted: str) -> RewardError:
    return RewardError(
        f"reward {reward.name!r} ({reward.config.function}) returned {returned!r} ({type(returned).__name__}) for "
        f"sample {call.sample.sample_id!r} rollout {call.rollout_index}; it must return {wanted}"
    )
