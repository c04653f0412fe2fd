"""Rewards of a step's groups as these come: what can be judged by itself is, while others are still sampled.

    add(group) ──► asynchronous rewards: all at once, in one event loop
               └─► plain rewards: one call after the other, in one thread
    scored()   ──► batch rewards: all calls of the step together
               └─► rewards that ask what the policy answers without single pages, once it was asked

A failure stops the step and names the reward, the sample and the rollout: an exception never becomes a reward.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from numbers import Real
from typing import Any

from rewards.base import RewardCall, RewardError
from rewards.plugins import LoadedReward
from rewards.running import AsyncCalls, checked_batch, run_async, run_plain
from rewards.scopes import LocatedScope, ScopeRequest, locate_scopes
from rsgrpo.config import ResponseFormat
from rsgrpo.text.sections import parse_response
from rsgrpo.types import Counterfactuals, RolloutGroup, Sample, ScopedReward, ScoredGroup, ScoredRollout

# float32's reach, squares included: credit is computed from squared differences of rewards.
_LARGEST_VALUE = 1e18

ImageSizes = Callable[[int], tuple[int, int]]


class Scoring:
    """Judges the groups of one step. Close it, whether or not it came to its end.

    Args:
        rewards: the rewards to judge by; their order is the order of ``ScoredRollout.rewards``.
        image_sizes: gives a sample's image sizes, for the rewards that ask; None: not known.
        response_format: the declared sections.

    Example:
        ::

            with closing(scorer.scoring()) as scoring:
                for group in engine.stream(...):
                    scoring.add(group)
                scored = scoring.scored()
    """

    def __init__(
        self,
        rewards: Sequence[LoadedReward],
        image_sizes: Callable[[Sample], ImageSizes | None],
        response_format: ResponseFormat,
    ) -> None:
        self._rewards = rewards
        self._image_sizes = image_sizes
        self._format = response_format
        self._asking = [reward for reward in rewards if reward.pages_in_question is not None]
        alone = [reward for reward in rewards if not reward.is_batch and reward not in self._asking]
        self._at_once = [reward for reward in alone if reward.is_async]
        self._in_turn = [reward for reward in alone if not reward.is_async]
        self._groups: list[RolloutGroup] = []
        self._calls: list[RewardCall] = []
        self._async_calls = AsyncCalls()
        self._waiting: deque[RewardCall] = deque()
        self._values: dict[str, list[Any]] = {reward.name: [] for reward in self._in_turn}
        self._thread = ThreadPoolExecutor(1, "rewards")
        self._rounds: deque[Future[None]] = deque()

    def add(self, group: RolloutGroup) -> None:
        """Begin to judge a group.

        Args:
            group: rollouts, with the sample that they answer.

        Raises:
            RewardError: a reward failed on an earlier group.
        """
        self._groups.append(group)
        image_sizes = self._image_sizes(group.sample)
        siblings = tuple(
            parse_response(rollout.text, self._format, group.prompt.opened_section, group.sample.page_numbers)
            for rollout in group.rollouts
        )
        for rollout, parsed in zip(group.rollouts, siblings, strict=True):
            call = RewardCall(
                sample=group.sample,
                text=rollout.text,
                parsed=parsed,
                token_ids=rollout.token_ids,
                finish_reason=rollout.finish_reason,
                num_tokens=len(rollout.token_ids),
                response_index=rollout.response_index,
                image_sizes=image_sizes,
                siblings=siblings,
                counterfactuals=group.counterfactuals,
            )
            self._calls.append(call)
            self._waiting.append(call)
            for reward in self._at_once:
                self._async_calls.begin(reward, call)
        self._rounds.append(self._thread.submit(self._judge_waiting))
        while self._rounds and self._rounds[0].done():
            self._rounds.popleft().result()

    def pages_in_question(self) -> dict[str, tuple[int, ...]]:
        """Which pages of which samples some reward wants exchanged, by sample id; samples without any are left out.

        Raises:
            RewardError: a reward cannot say it, or names a page that the sample does not have.
        """
        found: dict[str, set[int]] = {}
        firsts = self._first_calls()
        for reward in self._asking:
            asking = replace(reward, function=reward.pages_in_question or reward.function, is_batch=False)
            for call, pages in zip(firsts, run_plain(asking, firsts), strict=True):
                if not set(pages) <= set(range(len(call.sample.images))):
                    known = f"0-based indexes of the {len(call.sample.images)} images, for those in question"
                    raise _refusal(reward, call, pages, known)
                found.setdefault(call.sample.sample_id, set()).update(pages)
        return {sample_id: tuple(sorted(pages)) for sample_id, pages in found.items() if pages}

    def take_counterfactuals(self, counterfactuals: Mapping[str, Counterfactuals]) -> None:
        """Let the rewards that asked see what the policy answers without single pages.

        Args:
            counterfactuals: the answers by sample id; the other samples keep what they have.
        """
        if counterfactuals:
            self._calls = [
                replace(call, counterfactuals=counterfactuals.get(call.sample.sample_id, call.counterfactuals))
                for call in self._calls
            ]
            self._groups = [
                replace(group, counterfactuals=counterfactuals.get(group.sample_id, group.counterfactuals))
                for group in self._groups
            ]

    def _first_calls(self) -> list[RewardCall]:
        """The first call of each group."""
        firsts = []
        row = 0
        for group in self._groups:
            firsts += self._calls[row : row + 1]
            row += len(group.rollouts)
        return firsts

    def scored(self) -> list[ScoredGroup]:
        """All groups, judged, in the order in which they were added.

        Raises:
            RewardError: a reward raised, took longer than its ``timeout_seconds``, or returned something else than a
                finite number or None (for ``evidence_line``, one of these for each image).
        """
        columns = self._columns() if self._calls else [[] for _ in self._rewards]
        requests = tuple(
            ScopeRequest(scope=reward.config.scope, on_missing=reward.config.on_missing) for reward in self._rewards
        )
        scored = []
        row = 0
        for group in self._groups:
            rollouts = []
            for rollout in group.rollouts:
                located = locate_scopes(
                    requests, self._calls[row].parsed, rollout.token_char_starts, len(group.sample.images)
                )
                rewards = [
                    entry
                    for reward, column, scopes in zip(self._rewards, columns, located, strict=True)
                    for entry in _entries(reward, column[row], scopes)
                ]
                rollouts.append(ScoredRollout(rollout=rollout, rewards=tuple(rewards)))
                row += 1
            scored.append(group.with_rollouts(rollouts))
        return scored

    def close(self) -> None:
        """Give up the calls that are not done."""
        self._async_calls.close()
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _judge_waiting(self) -> None:
        """Call the plain rewards on all calls that wait; runs in the thread."""
        calls = []
        while self._waiting:
            calls.append(self._waiting.popleft())
        if calls:
            for reward in self._in_turn:
                self._values[reward.name].extend(run_plain(reward, calls))

    def _columns(self) -> list[list[tuple[float | None, ...]]]:
        """For each reward, for each call, the checked values (one, or one per image)."""
        together = [reward for reward in self._rewards if reward.is_async and reward.is_batch]
        for reward in together:
            self._async_calls.begin(reward, list(self._calls))
        returned: dict[str, Sequence[Any]] = {
            reward.name: run_plain(reward, self._calls)
            for reward in self._rewards
            if reward.is_batch and not reward.is_async
        }
        for reward in self._asking:
            if not reward.is_batch:
                returned[reward.name] = (run_async if reward.is_async else run_plain)(reward, self._calls)
        for judged in self._rounds:
            judged.result()
        values = self._async_calls.values()
        num_single = len(values) - len(together)
        for index, reward in enumerate(self._at_once):
            returned[reward.name] = values[index : num_single : len(self._at_once)]
        for reward, value in zip(together, values[num_single:], strict=True):
            returned[reward.name] = checked_batch(reward, self._calls, value)
        returned |= self._values
        return [
            [_checked(reward, call, value) for call, value in zip(self._calls, returned[reward.name], strict=True)]
            for reward in self._rewards
        ]


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
    """The values of one call as floats, or an error that shows what was returned."""
    if not reward.config.scope.evidence_line:
        return (_number(reward, call, returned),)
    num_images = len(call.sample.images)
    if isinstance(returned, str | bytes) or not isinstance(returned, Sequence):
        raise _refusal(reward, call, returned, f"a list of {num_images} values, one per image of the sample")
    if len(returned) != num_images:
        raise _refusal(reward, call, returned, f"{num_images} values, one per image of the sample, not {len(returned)}")
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
        f"sample {call.sample.sample_id!r} rollout {call.response_index}; it must return {wanted}"
    )
