"""From rewards to token credit: group normalisation, then two weights per token (RS-GRPO, arXiv 2510.09733).

For reward k and sibling i of a group, ``A_ik = (r_ik - mean r_k) / (std r_k + eps)`` (GRPO, arXiv 2402.03300
§4.1.2; unbiased std). The token weights hold what all rewards together give a token:

    P_it = (1/W) sum_k w_k M_kit max(A_ik, 0) / N_k        Q_it = (1/W) sum_k w_k M_kit max(-A_ik, 0) / N_k

M_kit says whether token t is in the scope of reward k, N_k counts those tokens over the whole optimizer step
(``aggregation.py`` has the other denominators), and W sums the weights of the rewards that vary in it.
With ``reach: causal`` M_kit is 1 for all tokens up to the scope's last one; with ``outside`` above 0 it is that share
for the tokens where it would be 0, and N_k sums it.
With ``scoping: whole`` there is one reward, the weighted sum, on the whole response: GRPO and its relatives.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from rsgrpo.algorithm.aggregation import token_weights
from rsgrpo.algorithm.credit_table import TOTAL, CreditTable, Matrix, credit_table, whole_view
from rsgrpo.algorithm.shrinkage import shrinkage
from rsgrpo.algorithm.zero_variance import ZERO_VARIANCE_SPREAD, has_zero_variance
from rsgrpo.config import CreditConfig
from rsgrpo.types import CreditedGroup, CreditedRollout, ResponseKey, RewardKey, ScoredGroup, TokenSpan

Partition = Sequence[Sequence[ResponseKey]]
"""Micro-batches as the public implementation cuts them: the sample id and response index of each response."""


def normalise(
    values: Matrix,
    config: CreditConfig,
    batch_std: Matrix | float = 1.0,
    batch_mean: Matrix | float = 0.0,
    shrinkage_weight: Matrix | float = 0.0,
) -> Matrix:
    """Advantages of one group.

    Args:
        values: [n] one reward of the n siblings, or [n, K] K rewards; NaN where a reward does not apply.
        config: baseline, scale and epsilon; ``compat: upstream`` overrules them all but epsilon.
        batch_std: [K], unbiased std of each reward over the step, for ``scale: batch_std``.
        batch_mean: [K], mean of each reward over the step for ``baseline: batch_mean``, over its other groups for
            ``shrunk_mean``; NaN where the reward has zero variance over the whole step.
        shrinkage_weight: [K], the share of ``batch_mean`` in the baseline for ``baseline: shrunk_mean``.

    Returns:
        An array of the shape of ``values``; exactly 0 where what is compared (the group; the step for ``batch_mean``
        and ``shrunk_mean``) has zero variance and where a reward does not apply.

    Example:
        ``[1, 0]`` with mean 0.5 and unbiased std 0.7071 gives ``[0.7071, -0.7071]``.
    """
    if config.compat == "upstream":
        return _reference_advantages(values, config.epsilon)
    applies = ~np.isnan(values)
    count = applies.sum(axis=0)
    others = np.maximum(count - 1, 1)
    total = np.where(applies, values, 0.0).sum(axis=0)
    if config.baseline == "batch_mean":
        varies = applies & ~np.isnan(batch_mean)
        baseline: Matrix | float = batch_mean
    elif config.baseline == "shrunk_mean":
        siblings_mean = (total - values) / others
        baseline = siblings_mean + shrinkage_weight * (batch_mean - siblings_mean)
        differs = np.abs(values - baseline) >= ZERO_VARIANCE_SPREAD * np.maximum(1.0, np.abs(values))
        varies = applies & ~np.isnan(batch_mean) & differs
    else:
        low = np.where(applies, values, np.inf).min(axis=0)
        high = np.where(applies, values, -np.inf).max(axis=0)
        # The same test as has_zero_variance; a reward that applies to no sibling has high - low = -inf.
        has_spread = high - low >= ZERO_VARIANCE_SPREAD * np.maximum(1.0, np.maximum(np.abs(low), np.abs(high)))
        varies = applies & (count > 1) & has_spread
        baseline = total / np.maximum(count, 1)
    centred: Matrix = np.where(varies, values - baseline, 0.0)
    if config.scale == "none":
        scale: Matrix | float = 1.0
    elif config.scale == "batch_std":
        scale = batch_std + config.epsilon
    else:
        scale = np.sqrt((centred**2).sum(axis=0) / others) + config.epsilon
    if config.baseline == "leave_one_out":
        # r_i - mean of the others = (r_i - mean) n / (n - 1)
        centred = centred * (count / others)
    # Where nothing varies the scale may be 0 (epsilon = 0); the advantage is 0 all the same.
    return np.divide(centred, scale, out=np.zeros_like(centred), where=centred != 0.0)


def _reference_advantages(values: Matrix, epsilon: float) -> Matrix:
    """The public code's arithmetic: float32, and no test for a group without variance (its defect D5).

    Its mean adds one value after the other, as here; numpy's own sum adds in pairs, which is exact for eight
    equal values and would hide the defect. Its std takes that float32 mean and adds squares in double.
    """
    applies = ~np.isnan(values)
    count = applies.sum(axis=0)
    single = np.where(applies, values, 0.0).astype(np.float32)
    mean = np.add.accumulate(single, axis=0)[-1] / np.maximum(count, 1).astype(np.float32)
    squares = np.where(applies, single.astype(np.float64) - mean.astype(np.float64), 0.0) ** 2
    std = np.sqrt(squares.sum(axis=0) / np.maximum(count - 1, 1)).astype(np.float32)
    with np.errstate(divide="ignore", invalid="ignore"):
        scaled = (single - mean) / (std + np.float32(epsilon))
    return np.where(applies & (count > 1) & (single != mean), scaled, np.float32(0.0)).astype(np.float64)


def _advantages(tables: Sequence[CreditTable], config: CreditConfig) -> list[Matrix]:
    """The advantages A of every group, [n, K] each; 0 where a sibling lacks the scope."""
    stds = [np.ones(len(table.keys)) for table in tables]
    means = [np.zeros(len(table.keys)) for table in tables]
    weights = [np.zeros(len(table.keys)) for table in tables]
    if config.scale == "batch_std" or config.compares_over_batch:
        for places in _places_by_reward(tables).values():
            parts = [_applying(tables[index].values[:, column]) for index, column in places]
            values = np.concatenate(parts)
            std = float(values.std(ddof=1)) if len(values) > 1 else 1.0
            shrunk = shrinkage(parts) if config.baseline == "shrunk_mean" else None
            mean = float("nan") if has_zero_variance(values) else float(values.mean())
            for number, (index, column) in enumerate(places):
                stds[index][column] = std
                means[index][column] = mean
                if shrunk is not None and not np.isnan(mean):
                    weights[index][column] = shrunk.weight[number]
                    means[index][column] = shrunk.others_mean[number]
    return [
        np.where((table.num_tokens > 0) | (config.outside > 0.0), normalise(table.values, config, *statistics), 0.0)
        for table, *statistics in zip(tables, stds, means, weights, strict=True)
    ]


def _places_by_reward(tables: Sequence[CreditTable]) -> Mapping[RewardKey, list[tuple[int, int]]]:
    """Where each reward stands: the group and its column there."""
    places: dict[RewardKey, list[tuple[int, int]]] = defaultdict(list)
    for index, table in enumerate(tables):
        for column, key in enumerate(table.keys):
            places[key].append((index, column))
    return places


def _applying(values: Matrix) -> Matrix:
    """The values of the responses that a reward applies to."""
    found: Matrix = values[~np.isnan(values)]
    return found


def _step_normaliser(
    tables: Sequence[CreditTable], advantages: Sequence[Matrix], weights: Mapping[str, float], config: CreditConfig
) -> float:
    """The normaliser 1/W of a step; 0 where no reward varies."""
    if config.normaliser == "all":
        total = sum(weights.values())
    else:
        varying = {
            name
            for table, matrix in zip(tables, advantages, strict=True)
            for name, has_nonzero_variance in zip(table.names, (matrix != 0.0).any(axis=0).tolist(), strict=True)
            if has_nonzero_variance
        }
        total = sum(weight for name, weight in weights.items() if name in varying)
    return 1.0 / total if total else 0.0


def _reference_normalisers(
    groups: Sequence[ScoredGroup],
    tables: Sequence[CreditTable],
    advantages: Sequence[Matrix],
    micro_batches: Partition | None,
) -> dict[tuple[int, int], float]:
    """1/K_m by (group, row): K_m counts the rewards whose loss is not zero in the rollout's micro-batch.

    With ratio 1 a reward's loss is minus its advantages, summed over tokens: that sum decides, so that a reward
    whose pushes cancel is not counted although it has a gradient, as in the public code (its defect D2). Where
    it divides 0 by 0 (K_m = 0, defect D3) the credit here is 0.
    """
    place = {
        rollout.key: (index, row) for index, group in enumerate(groups) for row, rollout in enumerate(group.rollouts)
    }
    batches: Partition = [list(place)] if micro_batches is None else micro_batches
    named = [member for batch in batches for member in batch]
    if sorted(named) != sorted(place) or len(place) != sum(len(group.rollouts) for group in groups):
        raise ValueError(
            f"micro_batches names {len(named)} rollouts, the step has {sum(len(group.rollouts) for group in groups)}: "
            "every (sample id, rollout index) of the step must be unique and stand in exactly one micro-batch"
        )
    result: dict[tuple[int, int], float] = {}
    for batch in batches:
        losses: dict[str, float] = defaultdict(float)
        for index, row in (place[member] for member in batch):
            table = tables[index]
            for name, loss in zip(table.names, advantages[index][row] * table.num_tokens[row], strict=True):
                losses[name] += float(loss)
        num_active = sum(loss != 0.0 for loss in losses.values())
        result |= {place[member]: 1.0 / num_active if num_active else 0.0 for member in batch}
    return result


def _check_weights(tables: Sequence[CreditTable], weights: Mapping[str, float]) -> None:
    unknown = {name for table in tables for name in table.names} - weights.keys()
    if unknown:
        raise ValueError(f"no weight is given for the rewards {', '.join(sorted(unknown))}; set rewards.<name>.weight")
    wrong = [f"{name}={weight}" for name, weight in weights.items() if not 0.0 <= weight < np.inf]
    if wrong:
        raise ValueError(f"weights must be finite and at least 0, got {', '.join(wrong)}; turn a reward's sign instead")


def credit_groups(
    groups: Sequence[ScoredGroup],
    weights: Mapping[str, float],
    config: CreditConfig,
    micro_batches: Partition | None = None,
) -> list[CreditedGroup]:
    """Turn one optimizer step's scored groups into per-token credit.

    Args:
        groups: everything that the optimizer step trains on: N_k and W are counted over it.
        weights: w_k by reward name, at least 0; they act after the normalisation.
        config: scoping, reach, baseline, scale, normaliser and aggregation. ``compat: upstream`` takes the public
            code's float32 arithmetic, ignores weights but 0 (they cancel in its z-scores) and divides by its K_m.
        micro_batches: only for ``compat: upstream``, whose K_m depends on how a step is cut; None: the
            whole step is one micro-batch.

    Returns:
        The groups, every rollout with its advantages (in the order of its rewards) and its token weights,
        float32, aligned with ``rollout.token_ids``, 0 outside every scope. With ``scoping: whole`` every
        reward with a weight carries the advantage of the weighted sum.

    Raises:
        ValueError: a reward without a weight, siblings with different rewards, a span beyond its response,
            or micro-batches that are no partition of the step.

    Example:
        Two siblings of 4 tokens, reward "answer" 1 and 0 on tokens [2, 4), weight 3, no other reward:
        N = 4, W = 3, so the first has P = [0, 0, 0.1768, 0.1768] (0.7071 / 4) and Q = 0, the second the
        same the other way round.
    """
    tables = [credit_table(group, config.reach) for group in groups]
    _check_weights(tables, weights)
    if config.scoping == "whole":
        views = [whole_view(group, weights) for group in groups]
        whole = _credit(views, [credit_table(view) for view in views], {TOTAL: 1.0}, config, None)
        return [_of_every_reward(group, view, weights) for group, view in zip(groups, whole, strict=True)]
    return _credit(groups, tables, weights, config, micro_batches)


def _of_every_reward(group: ScoredGroup, view: CreditedGroup, weights: Mapping[str, float]) -> CreditedGroup:
    """Give the credit of the weighted sum to every reward that the sum was made of."""
    return group.with_rollouts(
        CreditedRollout(
            rollout=scored.rollout,
            rewards=scored.rewards,
            advantages=tuple(credited.advantages[0] if weights[reward.name] else 0.0 for reward in scored.rewards),
            positive_weights=credited.positive_weights,
            negative_weights=credited.negative_weights,
        )
        for scored, credited in zip(group.rollouts, view.rollouts, strict=True)
    )


def _credit(
    groups: Sequence[ScoredGroup],
    tables: Sequence[CreditTable],
    weights: Mapping[str, float],
    config: CreditConfig,
    micro_batches: Partition | None,
) -> list[CreditedGroup]:
    advantages = _advantages(tables, config)
    by_place: Mapping[tuple[int, int], float] = {}
    if config.compat == "upstream":
        # Weights cancel in z-scores, but for 0: the z-score of 0 r is 0.
        step_normaliser, weights = 1.0, {name: float(weight > 0) for name, weight in weights.items()}
        for table, matrix in zip(tables, advantages, strict=True):
            matrix *= [weights[name] for name in table.names]
        by_place = _reference_normalisers(groups, tables, advantages, micro_batches)
    else:
        step_normaliser = _step_normaliser(tables, advantages, weights, config)
    credited: list[CreditedGroup] = []
    shares = token_weights(tables, config)
    for index, (group, table, matrix, share) in enumerate(zip(groups, tables, advantages, shares, strict=True)):
        by_reward = np.array([weights[name] for name in table.names])
        amounts = (matrix * share * by_reward * step_normaliser).tolist()
        values = matrix.tolist()
        rollouts: list[CreditedRollout] = []
        for row, rollout in enumerate(group.rollouts):
            positive_weights, negative_weights = _token_weights(
                amounts[row], table.spans[row], rollout.num_tokens, by_place.get((index, row), 1.0), config.outside
            )
            rollouts.append(
                CreditedRollout(
                    rollout=rollout.rollout,
                    rewards=rollout.rewards,
                    advantages=tuple(values[row]),
                    positive_weights=positive_weights,
                    negative_weights=negative_weights,
                )
            )
        credited.append(group.with_rollouts(rollouts))
    return credited


def _token_weights(
    amounts: Sequence[float], spans: Sequence[Sequence[TokenSpan]], num_tokens: int, factor: float, outside: float
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """P and Q of one response, [R] float32 each; summed in double, because very different N_k meet in a token."""
    token_weights = np.zeros((2, num_tokens), dtype=np.float64)
    for amount, cell in zip(amounts, spans, strict=True):
        if amount:
            weights_of_sign = token_weights[0] if amount > 0 else token_weights[1]
            if outside:
                weights_of_sign += abs(amount) * factor * outside
            for span in cell:
                weights_of_sign[span.start : span.stop] += abs(amount) * factor * (1.0 - outside)
    single = token_weights.astype(np.float32)
    return single[0], single[1]
