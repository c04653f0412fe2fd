"""Which groups to train on: those in which siblings differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from rsgrpo.algorithm.credit_table import TOTAL, group_totals, whole_view
from rsgrpo.algorithm.zero_variance import has_zero_variance
from rsgrpo.config import CreditConfig, FilterConfig
from rsgrpo.types import RewardKey, ScoredGroup


def has_nonzero_variance(group: ScoredGroup, weights: Mapping[str, float], outside: float = 0.0) -> bool:
    """Whether any reward with a weight gives some token of the group credit.

    That is: its values differ among siblings, and one that is off the mean has a token in scope; any token where
    those ``outside`` get a share.

    Example:
        Accuracy 1, 1, 0 has; 1, 1, 1 has not, nor has a reward whose scope no sibling contains.
    """
    values: dict[RewardKey, list[float]] = {}
    has_tokens: dict[RewardKey, list[bool]] = {}
    for rollout in group.rollouts:
        for reward in rollout.rewards:
            if reward.value is None or weights.get(reward.name, 0.0) <= 0.0:
                continue
            values.setdefault(reward.key, []).append(reward.value)
            has_scope = any(span.stop > span.start for span in reward.spans)
            has_tokens.setdefault(reward.key, []).append(has_scope or (outside > 0.0 and rollout.num_tokens > 0))
    for key, found in values.items():
        array = np.array(found, dtype=np.float64)
        if any(has_tokens[key]) and not has_zero_variance(array) and (array != array.mean())[has_tokens[key]].any():
            return True
    return False


def _has_credit(group: ScoredGroup, weights: Mapping[str, float], credit: CreditConfig) -> bool:
    if credit.scoping == "whole":
        return has_nonzero_variance(whole_view(group, weights), {TOTAL: 1.0})
    return has_nonzero_variance(group, weights, credit.outside)


def mean_total(group: ScoredGroup, weights: Mapping[str, float]) -> float:
    """Mean over siblings of the weighted sum of rewards: what the public filter looks at; 0 where none applies.

    Example:
        Accuracy 1 and 0 with weight 3, format 1 and 1 with weight 1: (4 + 1) / 2 = 2.5.
    """
    totals = [total for total in group_totals(group, weights) if total is not None]
    return float(np.mean(totals)) if totals else 0.0


def select_groups(
    groups: Sequence[ScoredGroup], config: FilterConfig, weights: Mapping[str, float], credit: CreditConfig
) -> tuple[ScoredGroup, ...]:
    """Keep the groups that the settings ask for.

    Args:
        groups: the groups, freshly scored.
        config: ``nonzero_variance`` keeps groups in which any reward varies; ``mean_range`` is the public rule
            ``low < mean weighted sum < high``; ``none`` keeps all.
        weights: the weight of each reward by its name.
        credit: to which tokens rewards give credit; where it is given for the weighted sum (``scoping: whole``),
            ``nonzero_variance`` asks whether that varies.

    Returns:
        The groups to train on, in the order given; there may be none.

    Example:
        Of one group with accuracies 1, 0 and one with 1, 1, ``nonzero_variance`` keeps the first.
    """

    def is_kept(group: ScoredGroup) -> bool:
        match config.mode:
            case "nonzero_variance":
                return _has_credit(group, weights, credit)
            case "mean_range":
                return config.low < mean_total(group, weights) < config.high
            case _:
                return True

    return tuple(filter(is_kept, groups))
