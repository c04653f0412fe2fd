"""Which groups to train on: those in which siblings differ (rs_grpo, "Which groups to train on")."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from rsgrpo.advantages import is_flat
from rsgrpo.config import FilterConfig
from rsgrpo.types import ScoredGroup


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Selection:
    """What to train on.

    Attributes:
        kept: in the order given.
        dropped: how many groups were left out, by reason.
    """

    kept: tuple[ScoredGroup, ...]
    dropped: Mapping[str, int]


def has_signal(group: ScoredGroup, weights: Mapping[str, float]) -> bool:
    """Whether any reward with a weight varies among siblings and has a token to credit.

    Example:
        Accuracy 1, 1, 0 has signal; 1, 1, 1 has none, nor has a reward whose scope no sibling contains.
    """
    values: dict[tuple[str, int], list[float]] = {}
    has_tokens: set[tuple[str, int]] = set()
    for rollout in group.rollouts:
        for reward in rollout.rewards:
            if reward.value is None or weights.get(reward.name, 0.0) <= 0.0:
                continue
            values.setdefault(reward.key, []).append(reward.value)
            if any(span.stop > span.start for span in reward.spans):
                has_tokens.add(reward.key)
    return any(key in has_tokens and not is_flat(np.array(found)) for key, found in values.items())


def mean_total(group: ScoredGroup, weights: Mapping[str, float]) -> float:
    """Mean over siblings of the weighted sum of rewards: what the public filter looks at."""
    totals = [
        sum(weights[reward.name] * reward.value for reward in rollout.rewards if reward.value is not None)
        for rollout in group.rollouts
    ]
    return float(np.mean(totals))


def select_groups(groups: Sequence[ScoredGroup], config: FilterConfig, weights: Mapping[str, float]) -> Selection:
    """Keep the groups that the settings ask for.

    Args:
        groups: freshly scored.
        config: ``signal`` keeps groups in which any reward varies; ``mean_range`` is the public rule
            ``low < mean weighted sum < high``; ``none`` keeps all.
        weights: by reward name.

    Returns:
        Kept groups and reasons for the others; an empty ``kept`` is no error.
    """
    kept: list[ScoredGroup] = []
    dropped: Counter[str] = Counter()
    for group in groups:
        if config.mode == "signal" and not has_signal(group, weights):
            dropped["no_signal"] += 1
        elif config.mode == "mean_range" and not config.low < mean_total(group, weights) < config.high:
            dropped["mean_out_of_range"] += 1
        else:
            kept.append(group)
    return Selection(kept=tuple(kept), dropped=dict(dropped))
