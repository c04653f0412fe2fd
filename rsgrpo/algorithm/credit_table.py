"""A scored group as a table: a row a sibling, a column a reward; and as one reward on the whole response."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rsgrpo.config import Reach
from rsgrpo.types import RewardKey, ScopedReward, ScoredGroup, ScoredRollout, TokenSpan

TOTAL = "total"
"""The name of the one reward that :func:`whole_view` leaves."""

Matrix = NDArray[np.float64]


def merged(spans: Iterable[TokenSpan]) -> list[TokenSpan]:
    """Non-empty spans in order, overlapping ones joined, so that no token counts twice.

    Example:
        ``[2, 5)`` and ``[4, 6)`` become ``[2, 6)``.
    """
    found = [span for span in spans if span.stop > span.start]
    if len(found) < 2:
        return found
    joined: list[TokenSpan] = []
    for span in sorted(found, key=lambda span: span.start):
        if joined and span.start <= joined[-1].stop:
            joined[-1] = TokenSpan(start=joined[-1].start, stop=max(joined[-1].stop, span.stop))
        else:
            joined.append(span)
    return joined


def _num_tokens(spans: Iterable[TokenSpan]) -> int:
    return sum(span.stop - span.start for span in spans)


@dataclass(frozen=True, slots=True)
class CreditTable:
    """One group as a table: one row for each sibling, one column for each reward key.

    Attributes:
        names: [K], the reward's name of each column.
        keys: [K], the reward's name and the image's index of each column.
        values: [n, K] float64, the values of the rewards; NaN where a reward does not apply.
        spans: n × K lists of spans: the tokens in the scope of each cell; empty where the reward does not apply.
        num_tokens: [n, K] int64, how many tokens the spans of each cell hold.
        response_tokens: [n] int64, how many tokens each response has.
    """

    names: list[str]
    keys: list[RewardKey]
    values: Matrix
    spans: list[list[list[TokenSpan]]]
    num_tokens: NDArray[np.int64]
    response_tokens: NDArray[np.int64]

    def applies_by_name(self) -> dict[str, NDArray[np.bool_]]:
        """[n] bool by reward: whether it applies to each response (for a per-image reward: to any image of it)."""
        applies: dict[str, NDArray[np.bool_]] = {}
        for column, name in enumerate(self.names):
            found = ~np.isnan(self.values[:, column])
            applies[name] = applies[name] | found if name in applies else found
        return applies

    def tokens_by_name(self) -> dict[str, NDArray[np.int64]]:
        """[n] int64 by reward: how many tokens its scope has over all images; a shared token counts once."""
        columns: dict[str, list[int]] = defaultdict(list)
        for column, name in enumerate(self.names):
            columns[name].append(column)
        return {
            name: self.num_tokens[:, found[0]]
            if len(found) == 1
            else np.array(
                [_num_tokens(merged(span for column in found for span in row[column])) for row in self.spans],
                dtype=np.int64,
            )
            for name, found in columns.items()
        }


def credit_table(group: ScoredGroup, reach: Reach = "scope") -> CreditTable:
    """Lay a group out as a table.

    Args:
        group: a group of scored rollouts.
        reach: ``scope``: a cell has the tokens of its reward's scope; ``causal``: all up to the last of these.

    Raises:
        ValueError: siblings have different rewards, or a span goes beyond its response.
    """
    keys = [reward.key for reward in group.rollouts[0].rewards] if group.rollouts else []
    spans = [[_checked_spans(group, rollout, index) for index in range(len(keys))] for rollout in group.rollouts]
    if reach == "causal":
        spans = [[_up_to_the_last(cell) for cell in row] for row in spans]
    for rollout in group.rollouts:
        found = [reward.key for reward in rollout.rewards]
        if found != keys or len(set(found)) != len(found):
            raise ValueError(
                f"sample {group.sample_id!r} rollout {rollout.rollout.response_index} has the rewards {found}, its "
                f"first sibling {keys}; siblings must carry the same rewards, each once, in the same order"
            )
    shape = (len(group.rollouts), len(keys))
    values = [
        [np.nan if reward.value is None else reward.value for reward in rollout.rewards] for rollout in group.rollouts
    ]
    counts = [[_num_tokens(cell) for cell in row] for row in spans]
    return CreditTable(
        names=[name for name, _ in keys],
        keys=keys,
        values=np.array(values, dtype=np.float64).reshape(shape),
        spans=spans,
        num_tokens=np.array(counts, dtype=np.int64).reshape(shape),
        response_tokens=np.array([rollout.num_tokens for rollout in group.rollouts], dtype=np.int64),
    )


def _up_to_the_last(cell: list[TokenSpan]) -> list[TokenSpan]:
    return [TokenSpan(start=0, stop=cell[-1].stop)] if cell else []


def _checked_spans(group: ScoredGroup, rollout: ScoredRollout, index: int) -> list[TokenSpan]:
    """Merged spans of a rollout's reward; none where it does not apply, so that nothing counts its tokens.

    None also where the rollout lacks that reward (refused in :func:`credit_table`).
    """
    if index >= len(rollout.rewards):
        return []
    reward = rollout.rewards[index]
    for span in reward.spans:
        if not 0 <= span.start <= span.stop <= rollout.num_tokens:
            raise ValueError(
                f"reward {reward.name!r} has the span [{span.start}, {span.stop}) in sample {group.sample_id!r} "
                f"rollout {rollout.rollout.response_index}, whose response has {rollout.num_tokens} tokens; "
                "spans must lie inside the response"
            )
    return [] if reward.value is None else merged(reward.spans)


def group_totals(group: ScoredGroup, weights: Mapping[str, float]) -> list[float | None]:
    """The weighted sum of every sibling's rewards, made comparable where some rewards do not apply to all of them.

    A reward that does not apply to a sibling stands in its sum with the mean over the siblings that have a value: it
    then pulls that sibling neither up nor down, where a 0 would be its best value (a penalty) or its worst.

    Args:
        group: a group of scored rollouts, with any rewards.
        weights: the weight of each reward by its name, for all of them; rewards of weight 0 do not count.

    Returns:
        One number for each sibling; None where no reward applies.

    Example:
        A penalty of weight 1 that does not apply, is -0.5 and is -1: totals -0.75 (or None, if it is the only
        reward), -0.5 and -1.
    """
    columns = list(zip(*(rollout.rewards for rollout in group.rollouts), strict=True))
    parts: list[list[float | None]] = []
    for column in columns:
        weight = weights[column[0].name]
        if weight:
            parts.append([None if reward.value is None else weight * reward.value for reward in column])
    totals: list[float | None] = []
    means = [sum(found) / len(found) if (found := [v for v in part if v is not None]) else 0.0 for part in parts]
    for row in range(len(group.rollouts)):
        cells = [part[row] for part in parts]
        is_judged = any(cell is not None for cell in cells)
        filled = (mean if cell is None else cell for cell, mean in zip(cells, means, strict=True))
        totals.append(sum(filled) if is_judged else None)
    return totals


def whole_view(group: ScoredGroup, weights: Mapping[str, float]) -> ScoredGroup:
    """The group with one reward, :data:`TOTAL`: the weighted sum (:func:`group_totals`), on the whole response.

    Args:
        group: a group of scored rollouts, with any rewards.
        weights: the weight of each reward by its name, for all of them.

    Example:
        Accuracy 1 on [2, 4) with weight 3 and format 1 with weight 1 become total 4 on [0, R).
    """
    return whole_responses(group, group_totals(group, weights))


def whole_responses(group: ScoredGroup, values: Sequence[float | None]) -> ScoredGroup:
    """The group with one reward, :data:`TOTAL`, of these values, on the whole response.

    Args:
        group: a group of scored rollouts, with any rewards.
        values: the value of each sibling.
    """
    return group.with_rollouts(
        ScoredRollout(
            rollout=rollout.rollout,
            rewards=(
                ScopedReward(
                    name=TOTAL,
                    value=value,
                    spans=(TokenSpan(start=0, stop=rollout.num_tokens),),
                    scope_found=True,
                ),
            ),
        )
        for rollout, value in zip(group.rollouts, values, strict=True)
    )
