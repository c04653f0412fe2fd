"""From rewards to token credit: group normalisation, then two streams a token (rs_grpo, "Credit", "Loss").

For reward k and sibling i of a group, ``A_ik = (r_ik - mean r_k) / (std r_k + eps)`` (GRPO, arXiv 2402.03300
§4.1.2; unbiased std). The streams hold what all rewards together give a token:

    P_it = (1/W) sum_k w_k M_kit max(A_ik, 0) / N_k        Q_it = (1/W) sum_k w_k M_kit max(-A_ik, 0) / N_k

M_kit says whether token t is in the scope of reward k, N_k counts those tokens over the whole optimizer step,
and W sums the weights of the rewards that have signal in it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from rsgrpo.config import CreditConfig
from rsgrpo.types import CreditedGroup, CreditedRollout, ScopedReward, ScoredGroup, ScoredRollout, TokenSpan

FLAT_SPREAD = 1.0e-6
"""Values of a group that lie closer together than this, relative to their size, are equal: the difference is
rounding, which must never become a gradient."""

Partition = Sequence[Sequence[tuple[str, int]]]
"""Micro-batches as the public implementation cuts them: (sample id, rollout index)."""


def is_flat(values: NDArray[np.float64]) -> bool:
    """Whether all values are equal up to rounding.

    Example:
        ``[2.1] * 8`` is flat, ``[0.0, 1.0]`` is not; so is a single value.
    """
    if len(values) < 2:
        return True
    return bool(np.ptp(values) <= FLAT_SPREAD * max(1.0, float(np.abs(values).max())))


def normalise(values: NDArray[np.float64], config: CreditConfig, batch_std: float = 1.0) -> NDArray[np.float64]:
    """Advantages of one group for one reward.

    Args:
        values: [n] rewards of the siblings.
        config: baseline, scale and epsilon.
        batch_std: unbiased std of the reward over the step, for ``scale: batch_std``.

    Returns:
        [n]; exactly 0 where the group is flat.

    Example:
        ``[1, 0]`` with mean 0.5 and unbiased std 0.7071 gives ``[0.7071, -0.7071]``.
    """
    if config.compat == "reference":
        return _reference_advantages(values, config.epsilon)
    if is_flat(values):
        return np.zeros_like(values)
    centred: NDArray[np.float64] = values - values.mean()
    if config.baseline == "leave_one_out":
        # r_i - mean of the others = (r_i - mean) n / (n - 1)
        centred = centred * len(values) / (len(values) - 1)
    if config.scale == "none":
        return centred
    scale = float(values.std(ddof=1)) if config.scale == "group_std" else batch_std
    return np.divide(centred, scale + config.epsilon)


def _reference_advantages(values: NDArray[np.float64], epsilon: float) -> NDArray[np.float64]:
    """The public code's arithmetic: float32 throughout, and no test for a flat group (its defect D5)."""
    single = values.astype(np.float32)
    if len(single) < 2:
        return np.zeros_like(values)
    centred = single - single.mean(dtype=np.float32)
    scaled = centred / (single.std(ddof=1, dtype=np.float32) + np.float32(epsilon))
    return np.asarray(scaled, dtype=np.float64)


@dataclass(slots=True)
class _Column:
    """One reward key over the whole step: values of every group, and the advantages they turn into."""

    values: list[NDArray[np.float64]] = field(default_factory=list)
    places: list[list[tuple[int, int]]] = field(default_factory=list)


def _columns(groups: Sequence[ScoredGroup]) -> dict[tuple[str, int], _Column]:
    """Values by reward key, one array a group; None is left out."""
    columns: dict[tuple[str, int], _Column] = defaultdict(_Column)
    for group_index, group in enumerate(groups):
        by_key: dict[tuple[str, int], list[tuple[int, float]]] = defaultdict(list)
        for rollout_index, rollout in enumerate(group.rollouts):
            for reward in rollout.rewards:
                if reward.value is not None:
                    by_key[reward.key].append((rollout_index, reward.value))
        for key, found in by_key.items():
            columns[key].values.append(np.array([value for _, value in found], dtype=np.float64))
            columns[key].places.append([(group_index, rollout_index) for rollout_index, _ in found])
    return columns


Advantages = dict[tuple[int, int, tuple[str, int]], float]


def _advantages(groups: Sequence[ScoredGroup], config: CreditConfig) -> Advantages:
    """A by (group, rollout, reward key) over the step."""
    result: Advantages = {}
    for key, column in _columns(groups).items():
        pooled = np.concatenate(column.values)
        batch_std = float(pooled.std(ddof=1)) if len(pooled) > 1 else 1.0
        for values, places in zip(column.values, column.places, strict=True):
            for place, advantage in zip(places, normalise(values, config, batch_std), strict=True):
                result[(*place, key)] = float(advantage)
    return result


def merged(spans: Iterable[TokenSpan]) -> list[TokenSpan]:
    """Non-empty spans in order, overlapping ones joined, so that no token counts twice.

    Example:
        ``[2, 5)`` and ``[4, 6)`` become ``[2, 6)``.
    """
    joined: list[TokenSpan] = []
    for span in sorted(spans, key=lambda one: one.start):
        if span.stop <= span.start:
            continue
        if joined and span.start <= joined[-1].stop:
            joined[-1] = TokenSpan(start=joined[-1].start, stop=max(joined[-1].stop, span.stop))
        else:
            joined.append(span)
    return joined


def scope_token_counts(groups: Sequence[ScoredGroup]) -> dict[str, int]:
    """N_k: tokens in the scope of each reward over the step, whether or not they earn anything.

    The images of a per-image reward count together.
    """
    counts: dict[str, int] = defaultdict(int)
    for group in groups:
        for rollout in group.rollouts:
            spans: dict[str, list[TokenSpan]] = defaultdict(list)
            for reward in rollout.rewards:
                spans[reward.name].extend(reward.spans)
            for name, found in spans.items():
                counts[name] += sum(span.stop - span.start for span in merged(found))
    return counts


def _check_spans(group: ScoredGroup, rollout: ScoredRollout, reward: ScopedReward) -> None:
    for span in reward.spans:
        if not 0 <= span.start <= span.stop <= rollout.num_tokens:
            raise ValueError(
                f"reward {reward.name!r} has the span [{span.start}, {span.stop}) in sample {group.sample_id!r} "
                f"rollout {rollout.rollout.rollout_index}, whose response has {rollout.num_tokens} tokens; "
                "spans must lie inside the response"
            )


def _normalisers(
    groups: Sequence[ScoredGroup],
    weights: Mapping[str, float],
    config: CreditConfig,
    advantages: Advantages,
    micro_batches: Partition | None,
) -> Mapping[tuple[str, int], float]:
    """1/W of each rollout: one number for the whole step, or the public code's 1/K_m of its micro-batch."""
    members = [(group.sample_id, one.rollout.rollout_index) for group in groups for one in group.rollouts]
    if config.compat != "reference":
        signal = {
            key[0]
            for (group, index, key), value in advantages.items()
            if value and _is_credited(groups, group, index, key)
        }
        active = [weight for name, weight in weights.items() if config.normaliser == "all" or name in signal]
        total = sum(active)
        return dict.fromkeys(members, 1.0 / total if total else 0.0)
    result: dict[tuple[str, int], float] = {}
    place = {
        (group.sample_id, one.rollout.rollout_index): (group_index, index)
        for group_index, group in enumerate(groups)
        for index, one in enumerate(group.rollouts)
    }
    for batch in micro_batches if micro_batches is not None else [members]:
        inside = {place[member] for member in batch}
        sums: dict[str, float] = defaultdict(float)
        for (group_index, index, key), value in advantages.items():
            if (group_index, index) in inside:
                spans = _reward(groups[group_index].rollouts[index], key).spans
                sums[key[0]] += value * sum(span.stop - span.start for span in merged(spans))
        num_active = sum(1 for value in sums.values() if value != 0.0)
        result |= dict.fromkeys(batch, 1.0 / num_active if num_active else 0.0)
    return result


def _reward(rollout: ScoredRollout, key: tuple[str, int]) -> ScopedReward:
    return next(reward for reward in rollout.rewards if reward.key == key)


def _is_credited(groups: Sequence[ScoredGroup], group: int, index: int, key: tuple[str, int]) -> bool:
    return any(span.stop > span.start for span in _reward(groups[group].rollouts[index], key).spans)


def credit_groups(
    groups: Sequence[ScoredGroup],
    weights: Mapping[str, float],
    config: CreditConfig,
    micro_batches: Partition | None = None,
) -> list[CreditedGroup]:
    """Turn one optimizer step's scored groups into per-token credit.

    Args:
        groups: everything that the optimizer step trains on: N_k and W are counted over it.
        weights: w_k by reward name; they act after the normalisation.
        config: baseline, scale and normaliser.
        micro_batches: only for ``compat: reference``, whose 1/K depends on how a step is cut.

    Returns:
        The groups, every rollout with its advantages (in the order of its rewards) and its two streams,
        float32, aligned with ``rollout.token_ids``, 0 outside every scope.

    Raises:
        ValueError: a reward without a weight, or a span beyond its response.

    Example:
        Two siblings of 4 tokens, reward "answer" 1 and 0 on tokens [2, 4), weight 3, no other reward:
        N = 4, W = 3, so the first has P = [0, 0, 0.1768, 0.1768] (0.7071 / 4) and Q = 0, the second the
        same the other way round.
    """
    advantages = _advantages(groups, config)
    counts = scope_token_counts(groups)
    unknown = counts.keys() - weights.keys()
    if unknown:
        raise ValueError(f"no weight is given for the rewards {', '.join(sorted(unknown))}")
    # The public weights cancel in its z-scores, so that its rewards count alike.
    effective = dict.fromkeys(weights, 1.0) if config.compat == "reference" else weights
    normalisers = _normalisers(groups, effective, config, advantages, micro_batches)
    credited: list[CreditedGroup] = []
    for group_index, group in enumerate(groups):
        rollouts: list[CreditedRollout] = []
        for index, rollout in enumerate(group.rollouts):
            streams = np.zeros((2, rollout.num_tokens), dtype=np.float64)
            values: list[float] = []
            normaliser = normalisers[(group.sample_id, rollout.rollout.rollout_index)]
            for reward in rollout.rewards:
                _check_spans(group, rollout, reward)
                advantage = advantages.get((group_index, index, reward.key), 0.0)
                values.append(advantage)
                if advantage:
                    amount = normaliser * effective[reward.name] * abs(advantage) / max(1, counts[reward.name])
                    row = streams[0 if advantage > 0 else 1]
                    for span in merged(reward.spans):
                        row[span.start : span.stop] += amount
            rollouts.append(
                CreditedRollout(
                    scored=rollout,
                    advantages=tuple(values),
                    positive=streams[0].astype(np.float32),
                    negative=streams[1].astype(np.float32),
                )
            )
        credited.append(CreditedGroup(scored=group, rollouts=tuple(rollouts)))
    return credited
