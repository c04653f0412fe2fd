"""What a step tells the people who watch it, by topic: reward, scope, policy, engine, response."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field

import numpy as np
from numpy.typing import NDArray

from rsgrpo.algorithm.credit_table import merged
from rsgrpo.algorithm.staleness import StaleWeightsError
from rsgrpo.algorithm.update_metrics import UpdateMetrics
from rsgrpo.algorithm.zero_variance import has_zero_variance
from rsgrpo.config import LossConfig
from rsgrpo.types import (
    CreditedGroup,
    CreditedRollout,
    ResponseStats,
    RewardKey,
    Rollout,
    ScopedReward,
    ScoredGroup,
)


@dataclass(slots=True)
class _Scope:
    """Sums over one reward's scope; a per-image reward has one entry per image."""

    num_rollouts: int = 0
    num_entries: int = 0
    num_found: int = 0
    num_tokens: int = 0
    num_credited: int = 0
    num_clipped: float = 0.0
    entropy_sum: float = 0.0
    values: list[float] = field(default_factory=list)
    num_groups: int = 0
    num_zero_variance_groups: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class _Seen:
    """A rollout, and what the trainer saw of its tokens.

    Attributes:
        credited: the rollout with its credit.
        stats: the log-probabilities and entropies of its tokens under the batch's policy.
        entropy: [R] float32, nats, the entropy of each token's distribution.
        entropy_before: [R + 1] float64, the sum of the entropies of the tokens in front of each position.
        clipped_before: [2, R + 1] int64, how many tokens in front of each position are clipped for positive credit, and
            for negative credit; None if clipping is not asked for.
    """

    credited: CreditedRollout
    stats: ResponseStats
    entropy: NDArray[np.float32]
    entropy_before: NDArray[np.float64]
    clipped_before: NDArray[np.int64] | None


def _mean(values: NDArray[np.float32] | Sequence[float]) -> float:
    return float(np.mean(values, dtype=np.float64)) if len(values) else 0.0


def _joined(arrays: Iterable[NDArray[np.float32]]) -> NDArray[np.float32]:
    return np.concatenate([np.zeros(0, np.float32), *arrays])


def step_telemetry(
    credited: Sequence[CreditedGroup],
    responses: Sequence[ResponseStats],
    weights: Mapping[str, float],
    *,
    updated: Sequence[ResponseStats] = (),
    loss: LossConfig | None = None,
    is_on_policy: bool = True,
) -> dict[str, float]:
    """The metrics of one training step.

    Args:
        credited: what was trained on; may be empty.
        responses: what the trainer saw of it under the batch's policy, in any order.
        weights: the weight of each reward by its name.
        updated: what the trainer saw during the updates, where a batch is used for several; empty: the
            same as ``responses``.
        loss: the clip bounds, for ``scope/<name>/clip_frac``; None leaves that metric out.
        is_on_policy: whether ``responses`` were seen under the batch's newest weights.

    Returns:
        The value of each metric by its name, never NaN. ``scope/<name>/found_frac`` is the share of responses with the
        scope (of images with a line, for a per-image reward), ``zero_variance_groups_frac`` that of groups in which all
        values are equal, ``clip_frac`` that of the tokens credited by the reward on which clipping was active;
        ``scope/sign_conflict_frac`` the share of credited tokens that one reward pulls up and another down;
        ``engine/kl`` is the k3 estimate of KL(engine, trainer) over the response tokens of the newest weights,
        ``engine/logprob_gap_*`` |engine - trainer| in nats there, left out off policy: it would be what the policy
        learned since.

    Raises:
        ValueError: a trained response is missing from ``responses``, its lengths differ, or its entropy is missing.

    Example:
        Engine log-probabilities 0 and 0, trainer 0 and -0.4: ``engine/logprob_gap_mean`` = 0.2 and
        ``engine/kl`` = (exp(-0.4) - 1 + 0.4) / 2 = 0.0352.
    """
    seen = _seen(credited, responses, updated, loss)
    metrics: dict[str, float] = {}
    scopes = _scope_sums(credited, seen)
    for name, scope in scopes.items():
        metrics |= {
            f"reward/{name}/mean": _mean(scope.values),
            f"reward/{name}/std": float(np.std(scope.values)) if scope.values else 0.0,
            f"scope/{name}/found_frac": scope.num_found / max(1, scope.num_entries),
            f"scope/{name}/mean_tokens": scope.num_tokens / max(1, scope.num_rollouts),
            f"scope/{name}/zero_variance_groups_frac": scope.num_zero_variance_groups / max(1, scope.num_groups),
            f"scope/{name}/entropy": scope.entropy_sum / max(1, scope.num_tokens),
        }
        if loss is not None:
            metrics[f"scope/{name}/clip_frac"] = scope.num_clipped / max(1, scope.num_credited)
    metrics["reward/total"] = float(sum(weights[name] * metrics[f"reward/{name}/mean"] for name in scopes))
    metrics["scope/sign_conflict_frac"] = _sign_conflicts(credited)
    lengths = [response.credited.num_tokens for response in seen]
    metrics |= {
        "response/mean_tokens": _mean(lengths),
        "response/max_tokens": float(max(lengths, default=0)),
        "response/truncated_frac": _mean(
            [float(response.credited.rollout.finish_reason == "length") for response in seen]
        ),
    }
    return metrics | _policy_and_engine(seen, is_on_policy=is_on_policy)


def _seen(
    credited: Sequence[CreditedGroup],
    responses: Sequence[ResponseStats],
    updated: Sequence[ResponseStats],
    loss: LossConfig | None,
) -> list[_Seen]:
    """Put each rollout beside its statistics."""
    by_key = {response.key: response for response in responses}
    updated_by_key = {update.key: update for update in updated}
    seen: list[_Seen] = []
    for group in credited:
        for rollout in group.rollouts:
            stats = by_key.get(rollout.key)
            if stats is None or len(stats.logprobs) != rollout.num_tokens:
                found = "nothing" if stats is None else f"{len(stats.logprobs)} tokens"
                raise ValueError(
                    f"the trainer reported {found} for sample {rollout.key[0]!r} rollout {rollout.key[1]}, which has "
                    f"{rollout.num_tokens} tokens; pass the statistics of every response that was trained on"
                )
            if stats.entropy is None:
                raise ValueError(
                    f"the trainer reported no entropy for sample {rollout.key[0]!r} rollout {rollout.key[1]}; ask for "
                    "it with Policy.score(groups, with_entropy=True)"
                )
            clipped: NDArray[np.int64] | None = None
            if loss is not None:
                old = rollout.rollout.logprobs if loss.old_logprobs == "engine" else stats.logprobs
                clipped = _clipped_before(updated_by_key.get(rollout.key, stats).logprobs - old, loss)
            entropy_before = np.concatenate(([0.0], np.cumsum(stats.entropy, dtype=np.float64)))
            seen.append(
                _Seen(
                    credited=rollout,
                    stats=stats,
                    entropy=stats.entropy,
                    entropy_before=entropy_before,
                    clipped_before=clipped,
                )
            )
    return seen


def _clipped_before(log_ratio: NDArray[np.float32], loss: LossConfig) -> NDArray[np.int64]:
    """[2, R + 1] int64, how many tokens ``clipped_policy_loss`` clips in front of each position, by sign of credit."""
    if loss.ratio == "sequence":
        log_ratio = np.full_like(log_ratio, log_ratio.mean())
    above = log_ratio > np.log1p(loss.clip_high)
    below = log_ratio < (np.log1p(-loss.clip_low) if loss.clip_low < 1.0 else -np.inf)
    far_above = log_ratio > (np.log(loss.dual_clip) if loss.dual_clip else np.inf)
    both = (above | below, above | below)
    clipped = both if loss.clipping == "cispo" else (above, below | far_above)
    return np.concatenate((np.zeros((2, 1), np.int64), np.cumsum(clipped, axis=1)), axis=1)


def _policy_and_engine(seen: Sequence[_Seen], *, is_on_policy: bool) -> dict[str, float]:
    rollouts = [response.credited.rollout for response in seen]
    newest = max((rollout.newest_version for rollout in rollouts), default=0)
    # What older weights sampled (groups carried over, the first tokens of responses that went on under new weights) is
    # off by honest staleness, not by disagreement.
    gap = _joined(_gap(response.credited.rollout, response.stats.logprobs, newest) for response in seen)
    num_tokens = sum(len(rollout.token_ids) for rollout in rollouts)
    difference = -gap.astype(np.float64)
    metrics = gap_metrics(gap) if is_on_policy else {}
    return metrics | {
        "policy/entropy": _mean(_joined(response.entropy for response in seen)),
        "engine/kl": float(np.mean(np.expm1(difference) - difference)) if len(gap) else 0.0,
        "engine/stale_frac": 1.0 - len(gap) / num_tokens if num_tokens else 0.0,
        "engine/mixed_versions_frac": _mean([rollout.newest_version > rollout.policy_version for rollout in rollouts]),
    }


def gap_metrics(gap: NDArray[np.float32]) -> dict[str, float]:
    """``engine/logprob_gap_mean`` and ``engine/logprob_gap_max``, nats.

    Args:
        gap: [T] float32, engine minus trainer, of tokens whose weights both hold.
    """
    return {
        "engine/logprob_gap_mean": _mean(np.abs(gap)),
        "engine/logprob_gap_max": float(np.abs(gap).max()) if len(gap) else 0.0,
    }


def _scope_sums(credited: Sequence[CreditedGroup], seen: Sequence[_Seen]) -> dict[str, _Scope]:
    scopes: dict[str, _Scope] = defaultdict(_Scope)
    for response in seen:
        for name in {reward.name for reward in response.credited.rewards}:
            scopes[name].num_rollouts += 1
        for reward, advantage in zip(response.credited.rewards, response.credited.advantages, strict=True):
            _add_entry(scopes[reward.name], reward, advantage, response)
    for group in credited:
        values: dict[RewardKey, list[float]] = defaultdict(list)
        for rollout in group.rollouts:
            for reward in rollout.rewards:
                if reward.value is not None:
                    values[reward.key].append(reward.value)
        for (name, _), found in values.items():
            scopes[name].num_groups += 1
            scopes[name].num_zero_variance_groups += has_zero_variance(np.array(found))
    return scopes


def _add_entry(scope: _Scope, reward: ScopedReward, advantage: float, response: _Seen) -> None:
    scope.num_entries += 1
    scope.num_found += reward.scope_found
    if reward.value is not None:
        scope.values.append(reward.value)
    for span in merged(reward.spans):
        scope.num_tokens += span.stop - span.start
        scope.entropy_sum += float(response.entropy_before[span.stop] - response.entropy_before[span.start])
        if advantage and response.clipped_before is not None:
            clipped_before = response.clipped_before[0 if advantage > 0 else 1]
            scope.num_credited += span.stop - span.start
            scope.num_clipped += int(clipped_before[span.stop] - clipped_before[span.start])


def _sign_conflicts(credited: Sequence[CreditedGroup]) -> float:
    """Share of credited tokens that one reward pulls up and another down."""
    num_conflicts = num_credited = 0
    for group in credited:
        for rollout in group.rollouts:
            up, down = rollout.positive_weights > 0, rollout.negative_weights > 0
            num_conflicts += int((up & down).sum())
            num_credited += int((up | down).sum())
    return num_conflicts / max(1, num_credited)


_LAST = ("learning_rate",)
_ADDED = (
    "is_skipped",
    "num_response_tokens",
    "num_forward_tokens",
    "num_images",
    "num_micro_batches",
    "num_cached_images",
    "forward_backward_seconds",
    "optimizer_seconds",
    "process_seconds",
)
_SHOWN_BY_UPDATE = ("loss", "grad_norm", "clip_fraction", "kl_old", "is_skipped")


def policy_metrics(updates: Sequence[UpdateMetrics]) -> dict[str, float]:
    """What all updates of a batch say together, and each of them where there are several.

    Args:
        updates: the updates of the step, in order; none where nothing was trained on.

    Returns:
        Metrics ``policy/<name>``: sums of counts and seconds (``is_skipped`` counts skipped steps), the last learning
        rate, means of all others; with several updates ``policy/update_<i>/<name>`` as well, from 1, for loss, gradient
        norm, clip fraction, ``kl_old`` and ``is_skipped``.

    Example:
        Losses 0.2 and 0.4 give ``policy/loss`` = 0.3, ``policy/update_1/loss`` = 0.2, ``policy/update_2/loss`` = 0.4.
    """
    if not updates:
        return {}
    rows = [{name: float(value) for name, value in asdict(update).items()} for update in updates]
    metrics: dict[str, float] = {}
    for name in rows[0]:
        values = [row[name] for row in rows]
        if name in _LAST:
            metrics[f"policy/{name}"] = values[-1]
        else:
            metrics[f"policy/{name}"] = sum(values) / (1 if name in _ADDED else len(values))
    if len(rows) > 1:
        for number, row in enumerate(rows, start=1):
            metrics |= {f"policy/update_{number}/{name}": row[name] for name in _SHOWN_BY_UPDATE}
    return metrics


def newest_version(groups: Iterable[ScoredGroup | CreditedGroup]) -> int:
    """The newest version of the weights that sampled any of the groups; 0 for none."""
    return max((rollout.rollout.newest_version for group in groups for rollout in group.rollouts), default=0)


def logprob_gap(groups: Sequence[CreditedGroup], responses: Sequence[ResponseStats], version: int) -> float | None:
    """Mean |engine - trainer| log-probability gap in nats; ``engine/logprob_gap_mean`` of a batch with one update.

    Args:
        groups: the groups that are trained on.
        responses: what the trainer sees of it.
        version: the version of the weights whose responses count; those of older ones differ because the weights do.

    Returns:
        The mean over the tokens that these weights sampled; None where there are none.
    """
    seen = {response.key: response.logprobs for response in responses}
    gaps = _joined(_gap(rollout.rollout, seen[rollout.key], version) for group in groups for rollout in group.rollouts)
    return _mean(np.abs(gaps)) if len(gaps) else None


def _gap(rollout: Rollout, logprobs: NDArray[np.float32], version: int) -> NDArray[np.float32]:
    """Engine minus trainer log-probability in nats, of the tokens that weights of that version sampled."""
    return (rollout.logprobs - logprobs)[rollout.is_of_version(version)]


def check_logprob_gap(mean_gap: float, limit: float) -> None:
    """Stop where engine and trainer cannot hold the same weights.

    Args:
        mean_gap: mean |engine - trainer| log-probability gap of a step, nats.
        limit: the largest mean gap that is accepted, in nats (``rl.max_logprob_gap``).

    Raises:
        StaleWeightsError: the mean gap is larger than the limit, or not a number.

    Example:
        ``check_logprob_gap(1e-6, 0.5)`` passes, ``check_logprob_gap(0.7, 0.5)`` raises.
    """
    if not mean_gap <= limit:
        raise StaleWeightsError(
            f"engine and trainer log-probabilities differ by {mean_gap:.4f} nats on average, more than "
            f"rl.max_logprob_gap={limit}: the engine samples from stale or broken weights; look at the weight "
            "update (checksum in the engine's log), at model.dtype, and at the sampling settings"
        )
