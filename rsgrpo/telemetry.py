"""What a step tells the people who watch it, by topic: reward, scope, policy, engine, response."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from rsgrpo.advantages import is_flat, merged
from rsgrpo.errors import RsgrpoError
from rsgrpo.types import CreditedGroup, CreditedRollout, ResponseStats


class StaleWeightsError(RsgrpoError):
    """Engine and trainer disagree too much for their weights to be the same."""


@dataclass(slots=True)
class _Scope:
    """Sums over one reward's scope."""

    num_rollouts: int = 0
    num_found: int = 0
    num_tokens: int = 0
    num_clipped: float = 0.0
    entropy_sum: float = 0.0
    values: list[float] = field(default_factory=list)
    num_groups: int = 0
    num_flat_groups: int = 0


def _mean(values: NDArray[np.float32]) -> float:
    return float(values.mean(dtype=np.float64)) if len(values) else 0.0


def step_telemetry(
    credited: Sequence[CreditedGroup], responses: Sequence[ResponseStats], weights: Mapping[str, float]
) -> dict[str, float]:
    """Numbers of one step.

    Args:
        credited: what was trained on.
        responses: what the trainer saw of it, in any order.
        weights: by reward name.

    Returns:
        Metric name to value. ``engine/logprob_gap_*`` is |engine - trainer| in nats over all response
        tokens, ``engine/kl`` the k3 estimate of KL(engine, trainer).
    """
    stats = {(one.sample_id, one.response_index): one for one in responses}
    scopes = _scope_sums(credited, stats)
    pairs = [
        (one, stats[(group.scored.sample_id, one.scored.rollout.rollout_index)])
        for group in credited
        for one in group.rollouts
    ]
    metrics: dict[str, float] = {}
    for name, scope in scopes.items():
        metrics |= {
            f"reward/{name}/mean": float(np.mean(scope.values)) if scope.values else 0.0,
            f"reward/{name}/std": float(np.std(scope.values)) if scope.values else 0.0,
            f"scope/{name}/found_frac": scope.num_found / max(1, scope.num_rollouts),
            f"scope/{name}/mean_tokens": scope.num_tokens / max(1, scope.num_rollouts),
            f"scope/{name}/flat_groups_frac": scope.num_flat_groups / max(1, scope.num_groups),
            f"scope/{name}/entropy": scope.entropy_sum / max(1, scope.num_tokens),
        }
    metrics["reward/total"] = sum(weights[name] * metrics[f"reward/{name}/mean"] for name in scopes)
    metrics["scope/sign_conflict_frac"] = _sign_conflicts(credited)
    lengths = [one.scored.num_tokens for one, _ in pairs]
    metrics |= {
        "response/mean_tokens": float(np.mean(lengths)) if lengths else 0.0,
        "response/max_tokens": float(max(lengths, default=0)),
        "response/truncated_frac": float(np.mean([one.scored.rollout.finish_reason == "length" for one, _ in pairs])),
    }
    return metrics | _policy_and_engine(pairs)


def _policy_and_engine(pairs: Sequence[tuple[CreditedRollout, ResponseStats]]) -> dict[str, float]:
    newest = max((one.scored.rollout.policy_version for one, _ in pairs), default=0)
    # Groups carried over were sampled by older weights: their gap is honest staleness, not disagreement.
    fresh = [(one, seen) for one, seen in pairs if one.scored.rollout.policy_version == newest]
    gap = np.concatenate([one.scored.rollout.logprobs - seen.logprobs for one, seen in fresh])
    difference = -gap.astype(np.float64)
    return {
        "policy/entropy": _mean(np.concatenate([seen.entropy for _, seen in pairs])),
        "engine/logprob_gap_mean": _mean(np.abs(gap)),
        "engine/logprob_gap_max": float(np.abs(gap).max()) if len(gap) else 0.0,
        "engine/kl": float(np.mean(np.expm1(difference) - difference)) if len(gap) else 0.0,
        "engine/stale_frac": 1.0 - len(fresh) / max(1, len(pairs)),
    }


def _scope_sums(credited: Sequence[CreditedGroup], stats: Mapping[tuple[str, int], ResponseStats]) -> dict[str, _Scope]:
    scopes: dict[str, _Scope] = defaultdict(_Scope)
    for group in credited:
        values: dict[tuple[str, int], list[float]] = defaultdict(list)
        for one in group.rollouts:
            entropy = stats[(group.scored.sample_id, one.scored.rollout.rollout_index)].entropy
            entropy_before = np.concatenate(([0.0], np.cumsum(entropy, dtype=np.float64)))
            for reward in one.scored.rewards:
                scope = scopes[reward.name]
                if reward.image_index <= 0:
                    scope.num_rollouts += 1
                    scope.num_found += reward.scope_found
                for span in merged(reward.spans):
                    scope.num_tokens += span.stop - span.start
                    scope.entropy_sum += float(entropy_before[span.stop] - entropy_before[span.start])
                if reward.value is not None:
                    scope.values.append(reward.value)
                    values[reward.key].append(reward.value)
        for (name, _), found in values.items():
            scopes[name].num_groups += 1
            scopes[name].num_flat_groups += is_flat(np.array(found))
    return scopes


def _sign_conflicts(credited: Sequence[CreditedGroup]) -> float:
    """Share of credited tokens that one reward pulls up and another down."""
    num_conflicts = num_credited = 0
    for group in credited:
        for one in group.rollouts:
            up, down = one.positive > 0, one.negative > 0
            num_conflicts += int((up & down).sum())
            num_credited += int((up | down).sum())
    return num_conflicts / max(1, num_credited)


def check_logprob_gap(mean_gap: float, limit: float) -> None:
    """Stop where engine and trainer cannot hold the same weights.

    Args:
        mean_gap: mean |engine - trainer| log-probability gap of a step, nats.
        limit: ``rl.max_logprob_gap``.

    Raises:
        StaleWeightsError: the gap is larger, or not a number.
    """
    if not mean_gap <= limit:
        raise StaleWeightsError(
            f"engine and trainer log-probabilities differ by {mean_gap:.4f} nats on average, more than "
            f"rl.max_logprob_gap={limit}: the engine samples from stale or broken weights; look at the weight "
            "update (checksum in the engine's log), at model.dtype, and at the sampling settings"
        )
