"""Drawn groups for property tests: ragged responses, overlapping and absent scopes, rewards that do not apply."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypedDict

import numpy as np
from hypothesis import strategies as st
from numpy.typing import ArrayLike

from rsgrpo.types import (
    ChatPrompt,
    Group,
    Rollout,
    Sample,
    ScopedReward,
    ScoredGroup,
    ScoredRollout,
    TokenSpan,
)

VALUES = (-1.0, 0.0, 0.1, 0.4, 2 / 3, 1.0, 2.1, 3 * 4 / 5)
"""Values a reward may take; some are no binary fractions, so that float32 means of equal ones are inexact."""
WEIGHTS = (0.0, 0.5, 1.0, 3.0)


class Clip(TypedDict):
    """The keywords of the clipped losses."""

    clip_low: float
    clip_high: float
    dual_clip: float


CLIP: Clip = {"clip_low": 0.2, "clip_high": 0.28, "dual_clip": 3.0}
"""The paper's ranges."""


@dataclass(frozen=True)
class Step:
    """Everything that one optimizer step trains on."""

    groups: list[ScoredGroup]
    weights: dict[str, float]

    @property
    def members(self) -> list[tuple[str, int]]:
        return [rollout.key for group in self.groups for rollout in group.rollouts]

    @property
    def places(self) -> dict[tuple[str, int], slice]:
        """Where each response's tokens stand in the step's flat vectors."""
        places: dict[tuple[str, int], slice] = {}
        offset = 0
        for group in self.groups:
            for rollout in group.rollouts:
                places[rollout.key] = slice(offset, offset + rollout.num_tokens)
                offset += rollout.num_tokens
        return places

    @property
    def num_tokens(self) -> int:
        return sum(rollout.num_tokens for group in self.groups for rollout in group.rollouts)


def scoped_reward(name: str, value: float | None, *spans: tuple[int, int], image_index: int = -1) -> ScopedReward:
    return ScopedReward(
        name=name,
        value=value,
        spans=tuple(TokenSpan(start=start, stop=stop) for start, stop in spans),
        scope_found=bool(spans),
        image_index=image_index,
    )


def scored_rollout(
    sample_id: str,
    index: int,
    num_tokens: int,
    rewards: Sequence[ScopedReward],
    *,
    logprobs: ArrayLike | None = None,
    finish_reason: str = "stop",
    policy_version: int = 0,
) -> ScoredRollout:
    rollout = Rollout(
        sample_id=sample_id,
        response_index=index,
        token_ids=np.zeros(num_tokens, np.int32),
        logprobs=np.zeros(num_tokens, np.float32) if logprobs is None else np.array(logprobs, np.float32),
        text="",
        token_char_starts=np.zeros(num_tokens, np.int32),
        finish_reason=finish_reason,
        policy_version=policy_version,
    )
    return ScoredRollout(rollout=rollout, rewards=tuple(rewards))


def scored_group(sample_id: str, rollouts: Sequence[ScoredRollout]) -> ScoredGroup:
    return Group(
        sample=Sample(sample_id=sample_id),
        prompt=ChatPrompt(sample_id=sample_id, text=""),
        prompt_token_ids=np.zeros(1, np.int32),
        rollouts=tuple(rollouts),
    )


def simple_group(sample_id: str, name: str, values: Sequence[float | None], lengths: Sequence[int]) -> ScoredGroup:
    """One reward on the whole response."""
    return scored_group(
        sample_id,
        [
            scored_rollout(sample_id, index, length, [scoped_reward(name, value, (0, length))])
            for index, (value, length) in enumerate(zip(values, lengths, strict=True))
        ],
    )


@st.composite
def spans(draw: st.DrawFn, num_tokens: int, *, is_one: bool = False) -> list[tuple[int, int]]:
    """Absent (one time in four or so), empty, or one or two spans, which may overlap."""
    count = draw(st.sampled_from((0, 1, 1, 1) if is_one else (0, 1, 1, 2)))
    found = []
    for _ in range(count):
        start, stop = sorted(draw(st.tuples(st.integers(0, num_tokens), st.integers(0, num_tokens))))
        found.append((start, stop))
    return found


@st.composite
def steps(
    draw: st.DrawFn,
    *,
    values: Sequence[float | None] = (*VALUES, None),
    weights: Sequence[float] = WEIGHTS,
    max_groups: int = 3,
    sibling_counts: Sequence[int] = (2, 3, 4, 5),
    max_tokens: int = 8,
    has_images: bool = True,
    is_one_span: bool = False,
) -> Step:
    """One optimizer step.

    Args:
        draw: hypothesis.
        values: what a reward may say; None: it does not apply.
        weights: what a reward may weigh.
        max_groups: at most.
        sibling_counts: sizes that a group may have.
        max_tokens: of a response, at least 1.
        has_images: also draw a reward given image by image.
        is_one_span: at most one span a scope, as the public code has it.
    """
    names = [f"r{index}" for index in range(draw(st.integers(1, 3)))]
    keys = [(name, -1) for name in names]
    if has_images and draw(st.booleans()):
        keys += [("per_image", image) for image in range(draw(st.integers(1, 2)))]
    drawn_weights = {name: draw(st.sampled_from(weights)) for name, _ in keys}
    groups = []
    for group_index in range(draw(st.integers(1, max_groups))):
        sample_id = f"g{group_index}"
        count = draw(st.sampled_from(sibling_counts))
        lengths = draw(st.lists(st.integers(1, max_tokens), min_size=count, max_size=count))
        has_zero_variance = draw(st.sampled_from((False, False, False, True)))
        shared = {key: draw(st.sampled_from(values)) for key in keys}
        rollouts = []
        for index, length in enumerate(lengths):
            rewards = [
                scoped_reward(
                    name,
                    shared[name, image] if has_zero_variance else draw(st.sampled_from(values)),
                    *draw(spans(length, is_one=is_one_span)),
                    image_index=image,
                )
                for name, image in keys
            ]
            rollouts.append(scored_rollout(sample_id, index, length, rewards))
        groups.append(scored_group(sample_id, rollouts))
    return Step(groups=groups, weights=drawn_weights)


@st.composite
def partitions(draw: st.DrawFn, members: Sequence[tuple[str, int]]) -> list[list[tuple[str, int]]]:
    """Any way to cut a step into micro-batches, in any order; none is empty."""
    order = draw(st.permutations(list(members)))
    batches: list[list[tuple[str, int]]] = [[]]
    for member in order:
        if len(batches[-1]) > 0 and draw(st.booleans()):
            batches.append([])
        batches[-1].append(member)
    return batches


def with_values(group: ScoredGroup, change: Mapping[str, float]) -> ScoredGroup:
    """The group with a constant added to the values of the named rewards."""
    rollouts = []
    for rollout in group.rollouts:
        rewards = [
            ScopedReward(
                name=reward.name,
                value=None if reward.value is None else reward.value + change.get(reward.name, 0.0),
                spans=reward.spans,
                scope_found=reward.scope_found,
                image_index=reward.image_index,
            )
            for reward in rollout.rewards
        ]
        rollouts.append(ScoredRollout(rollout=rollout.rollout, rewards=tuple(rewards)))
    return group.with_rollouts(rollouts)
