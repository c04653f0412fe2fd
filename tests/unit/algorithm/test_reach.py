"""Which tokens a reward credits: its scope, all that stands in front too, or the others by a share."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rsgrpo.algorithm.advantages import credit_groups
from rsgrpo.algorithm.selection import has_nonzero_variance
from rsgrpo.config import Aggregation, ConfigError, CreditConfig, Reach
from rsgrpo.types import CreditedGroup, ScoredGroup, ScoredRollout, TokenSpan
from tests.examples import examples
from tests.unit.strategies import Step, scoped_reward, scored_group, scored_rollout, steps

AGGREGATIONS: tuple[Aggregation, ...] = ("scope_tokens", "token_mean", "sequence_mean", "constant")
REACHES: tuple[Reach, ...] = ("scope", "causal")


def _signed(groups: Sequence[CreditedGroup]) -> np.ndarray:
    """P - Q of all tokens, and P + Q: two numbers that say what P and Q are."""
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    up = np.concatenate([rollout.positive_weights for rollout in rollouts]).astype(np.float64)
    down = np.concatenate([rollout.negative_weights for rollout in rollouts]).astype(np.float64)
    return np.stack([up - down, up + down])


def _with_spans(groups: Sequence[ScoredGroup], reach: str) -> list[ScoredGroup]:
    """The groups with the spans written out that a reach or ``everywhere`` stands for."""

    def changed(rollout: ScoredRollout, spans: Sequence[TokenSpan]) -> tuple[TokenSpan, ...]:
        if reach == "everywhere":
            return (TokenSpan(start=0, stop=rollout.num_tokens),)
        stops = [span.stop for span in spans if span.stop > span.start]
        return (TokenSpan(start=0, stop=max(stops)),) if stops else ()

    return [
        group.with_rollouts(
            replace(
                rollout,
                rewards=tuple(replace(reward, spans=changed(rollout, reward.spans)) for reward in rollout.rewards),
            )
            for rollout in group.rollouts
        )
        for group in groups
    ]


@examples(80)
@given(step=steps(), aggregation=st.sampled_from(AGGREGATIONS))
def test_causal_reach_is_the_scope_from_the_first_token_on(step: Step, aggregation: Aggregation) -> None:
    config = CreditConfig(aggregation=aggregation, constant_tokens=7)
    found = credit_groups(step.groups, step.weights, replace(config, reach="causal"))
    expected = credit_groups(_with_spans(step.groups, "causal"), step.weights, config)
    np.testing.assert_array_equal(_signed(found), _signed(expected))


@examples(80)
@given(step=steps(), aggregation=st.sampled_from(AGGREGATIONS), reach=st.sampled_from(REACHES))
def test_a_whole_share_outside_is_each_reward_on_the_whole_response(
    step: Step, aggregation: Aggregation, reach: Reach
) -> None:
    config = CreditConfig(aggregation=aggregation, constant_tokens=7)
    found = credit_groups(step.groups, step.weights, replace(config, outside=1.0, reach=reach))
    expected = credit_groups(_with_spans(step.groups, "everywhere"), step.weights, config)
    np.testing.assert_allclose(_signed(found), _signed(expected), rtol=1e-6, atol=1e-9)


@examples(80)
@given(step=steps(), share=st.sampled_from((0.2, 0.5, 0.9)), reach=st.sampled_from(REACHES))
def test_a_share_outside_lies_between_scope_and_whole_response(step: Step, share: float, reach: Reach) -> None:
    # The token mean divides by all tokens of the responses, whatever the share: then credit is linear in it.
    config = CreditConfig(aggregation="token_mean", normaliser="all", reach=reach)
    none, part, whole = (
        _signed(credit_groups(step.groups, step.weights, replace(config, outside=outside)))
        for outside in (0.0, share, 1.0)
    )
    np.testing.assert_allclose(part, (1 - share) * none + share * whole, rtol=1e-5, atol=1e-7)


def test_the_share_counts_in_the_mean_over_the_tokens_of_a_scope() -> None:
    # Four tokens, [1, 3) in scope, a quarter outside: N = 2 · (2 + 2 · 0.25) = 5; A = ±0.70711, so a token of the scope
    # weighs 0.70711 / 5 = 0.14142, one outside a quarter of that, 0.03536.
    rollouts = [scored_rollout("g", row, 4, [scoped_reward("a", 1.0 - row, (1, 3))]) for row in (0, 1)]
    (group,) = credit_groups([scored_group("g", rollouts)], {"a": 2.0}, CreditConfig(outside=0.25))
    expected = [0.03536, 0.14142, 0.14142, 0.03536]
    np.testing.assert_allclose(group.rollouts[0].positive_weights, expected, atol=1e-5)
    np.testing.assert_allclose(group.rollouts[1].negative_weights, expected, atol=1e-5)


@examples(100)
@given(
    step=steps(values=(-1.0, 0.0, 0.5, 1.0, None)), reach=st.sampled_from(REACHES), outside=st.sampled_from((0, 0.5))
)
def test_a_group_is_kept_exactly_if_it_earns_credit(step: Step, reach: Reach, outside: float) -> None:
    for group in step.groups:
        (credited,) = credit_groups([group], step.weights, CreditConfig(reach=reach, outside=outside))
        earns = any(rollout.positive_weights.any() or rollout.negative_weights.any() for rollout in credited.rollouts)
        assert has_nonzero_variance(group, step.weights, outside) == earns


# A policy over three binary tokens in a table: the probability of a 1 after every prefix.
_TABLE = {(): 0.3, (0,): 0.6, (1,): 0.2, (0, 0): 0.5, (0, 1): 0.9, (1, 0): 0.4, (1, 1): 0.7}
_PREFIXES = list(_TABLE)
_RESPONSES = list(itertools.product((0, 1), repeat=3))


def _probability(response: Sequence[int]) -> float:
    return float(
        np.prod(
            [
                _TABLE[tuple(response[:t])] if token else 1 - _TABLE[tuple(response[:t])]
                for t, token in enumerate(response)
            ]
        )
    )


def _score(response: Sequence[int], t: int) -> np.ndarray:
    """Gradient of a token's log-probability by the logits of all prefixes: token - p at its own prefix."""
    gradient = np.zeros(len(_PREFIXES))
    prefix = tuple(response[:t])
    gradient[_PREFIXES.index(prefix)] = response[t] - _TABLE[prefix]
    return gradient


def _reward(response: Sequence[int]) -> float:
    """What the first two tokens decide together; the scope that declares it is the second alone."""
    return {(0, 0): 0.0, (0, 1): 1.0, (1, 0): 3.0, (1, 1): 0.5}[response[0], response[1]]


def _estimates(config: CreditConfig) -> Iterator[tuple[float, np.ndarray]]:
    """Probability and estimate of the gradient for every group of two."""
    for pair in itertools.product(_RESPONSES, repeat=2):
        rollouts = [
            scored_rollout("g", row, 3, [scoped_reward("a", _reward(response), (1, 2))])
            for row, response in enumerate(pair)
        ]
        (credited,) = credit_groups([scored_group("g", rollouts)], {"a": 1.0}, config)
        estimate = np.zeros(len(_PREFIXES))
        for rollout, response in zip(credited.rollouts, pair, strict=True):
            for t, weight in enumerate(rollout.positive_weights - rollout.negative_weights):
                estimate += float(weight) * _score(response, t)
        yield _probability(pair[0]) * _probability(pair[1]), estimate


def _mean_and_variance(config: CreditConfig) -> tuple[np.ndarray, float]:
    weights, estimates = map(np.array, zip(*_estimates(config), strict=True))
    mean = weights @ estimates
    return mean, float(weights @ ((estimates - mean) ** 2).sum(axis=1))


def test_causal_reach_is_unbiased_with_less_variance_and_a_scope_of_its_own_is_not() -> None:
    # The gradient of the expected reward, exactly: sum over responses of p(o) r(o) times the gradient of log p(o).
    exact = np.zeros(len(_PREFIXES))
    for response in _RESPONSES:
        for t in range(3):
            exact += _probability(response) * _reward(response) * _score(response, t)
    # Leave-one-out without a scale is the unbiased estimator; two responses, 1 / (R L) with L = 1 is their mean.
    config = CreditConfig(baseline="leave_one_out", scale="none", aggregation="constant", constant_tokens=1)
    causal, causal_variance = _mean_and_variance(replace(config, reach="causal"))
    whole, whole_variance = _mean_and_variance(replace(config, outside=1.0))
    scope, _ = _mean_and_variance(config)
    np.testing.assert_allclose(causal, exact, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(whole, exact, rtol=1e-5, atol=1e-7)
    assert causal_variance < whole_variance  # the third token adds nothing but noise
    first = _PREFIXES.index(())
    assert scope[first] == 0.0 and abs(exact[first]) > 0.1  # what the first token does for the reward is lost


def test_settings_that_would_do_nothing_are_refused() -> None:
    for settings in ({"reach": "causal"}, {"outside": 0.2}):
        with pytest.raises(ConfigError, match=r"rl\.credit\.scoping=whole .* would do nothing"):
            CreditConfig(scoping="whole", **settings)
    with pytest.raises(ConfigError, match=r"rl\.credit\.outside"):
        CreditConfig(outside=1.5)
    with pytest.raises(ConfigError, match=r"compat=upstream .* has rl\.credit\.reach=scope, not causal"):
        CreditConfig(compat="upstream", reach="causal")
