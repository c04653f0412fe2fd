"""How old the weights are that sampled what a step trains on."""

from __future__ import annotations

from collections.abc import Sequence

from rsgrpo.errors import RsgrpoError
from rsgrpo.types import ScoredGroup


class StaleWeightsError(RsgrpoError):
    """Engine and trainer disagree too much for their weights to be the same."""


def sampled_version(group: ScoredGroup) -> int:
    """The version of the weights that sampled a group: its oldest rollout's stamp."""
    return min(scored.rollout.policy_version for scored in group.rollouts)


def check_staleness(groups: Sequence[ScoredGroup], *, trained_version: int, max_age: int) -> None:
    """Refuse groups that were sampled under weights too old, or newer than the policy's.

    Args:
        groups: the groups, whose tokens carry the version of the weights that drew them.
        trained_version: the policy's version when it trains on them.
        max_age: how many updates older their weights may be.

    Raises:
        StaleWeightsError: a group's weights are too old or too new; the message names the first such group.

    Example:
        Version 7 with ``max_age=1`` accepts groups of versions 6 and 7.
    """
    for group in groups:
        age = trained_version - sampled_version(group)
        if not 0 <= age <= max_age:
            raise StaleWeightsError(
                f"sample {group.sample_id!r} was sampled under weights of version {sampled_version(group)}, the policy "
                f"trains on it at version {trained_version}; at most {max_age} updates may lie between them "
                "(rl.max_staleness_steps, rl.filter.keep_leftover): the engines missed a weight update"
            )
