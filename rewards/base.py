"""What a reward function receives, may return, and may declare about itself.

A reward is a plain function::

    def mentions_total(call: RewardCall, word: str = "total") -> float | None:
        return 1.0 if word in call.text else 0.0

It returns a number, or None where it has nothing to say about this response. A reward whose scope is
``evidence_line`` returns one such value an image. ``async def`` works as well: the calls of a step run
at once in one event loop, a new one each step, so open clients inside the function. ``batch_reward`` marks
a function that takes the list of all calls and returns the list of their values.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from rsgrpo.errors import RsgrpoError
from rsgrpo.sections import ParsedResponse
from rsgrpo.types import IntArray, Sample

RewardValue = float | None | Sequence[float | None]
"""What a reward says of one response; the sequence form belongs to the scope ``evidence_line``."""

RewardCallable = Callable[..., Any]
FunctionT = TypeVar("FunctionT", bound=RewardCallable)


class RewardError(RsgrpoError):
    """A reward cannot be loaded, or raised, hung or returned what is no reward; nothing was scored."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RewardCall:
    """One response to judge.

    Attributes:
        sample: the question with its images and gold.
        text: the response.
        parsed: its sections and evidence lines.
        token_ids: [R] int32, as sampled.
        finish_reason: ``stop`` or ``length``.
        num_tokens: R, end of sequence included.
        rollout_index: which sibling.
    """

    sample: Sample
    text: str
    parsed: ParsedResponse
    token_ids: IntArray
    finish_reason: str
    num_tokens: int
    rollout_index: int


@dataclass(frozen=True, kw_only=True, slots=True)
class DeclaredReward:
    """A reward function with what it declared; calling it calls the function.

    Attributes:
        function: takes a ``RewardCall`` (a list of them if ``is_batch``) and keyword arguments.
        is_batch: whether it judges all calls at once.
        gold_sections: sections that the gold response, and fields that the sample, must hold.
    """

    function: RewardCallable
    is_batch: bool = False
    gold_sections: tuple[str, ...] = ()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function."""
        return self.function(*args, **kwargs)


def batch_reward(function: RewardCallable | DeclaredReward) -> DeclaredReward:
    """Mark a function that takes the list of all calls of a step and returns one value for each.

    Example:
        >>> @batch_reward
        ... def served_judge(calls: Sequence[RewardCall]) -> list[float]:
        ...     return [float(len(call.text) > 10) for call in calls]
    """
    return replace(_declared(function), is_batch=True)


def needs_gold(*sections: str) -> Callable[[RewardCallable | DeclaredReward], DeclaredReward]:
    """Declare sections that the gold response must hold, so that samples are checked before training.

    ``answer`` is also satisfied by ``Sample.answers`` where there is no gold response at all;
    ``evidence`` needs at least one ``[i]:`` line in it. ``boxes``, ``choices`` and ``positive_images`` name
    fields of the sample that must not be empty.
    """

    def declare(function: RewardCallable | DeclaredReward) -> DeclaredReward:
        return replace(_declared(function), gold_sections=sections)

    return declare


def _declared(function: RewardCallable | DeclaredReward) -> DeclaredReward:
    return function if isinstance(function, DeclaredReward) else DeclaredReward(function=function)
