"""Selection agrees with credit, and keeps the order."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from rsgrpo.algorithm.advantages import credit_groups
from rsgrpo.algorithm.selection import has_nonzero_variance, select_groups
from rsgrpo.config import CreditConfig, FilterConfig
from rsgrpo.types import ScoredGroup
from tests.examples import examples
from tests.oracles.upstream_objective import reference_keeps_group
from tests.unit.strategies import Step, scoped_reward, scored_group, scored_rollout, simple_group, steps


def named(names: Sequence[str]) -> list[ScoredGroup]:
    return [simple_group(name, "a", [1.0, 0.0], [1, 1]) for name in names]


def ids(groups: Sequence[ScoredGroup]) -> str:
    return "".join(group.sample_id for group in groups)


@examples(150)
@given(step=steps(values=(-1.0, 0.0, 0.5, 1.0, None)))
def test_a_group_has_signal_exactly_if_it_earns_credit(step: Step) -> None:
    # halves keep the means exact, so that a value on the mean is on it in both modules
    for group in step.groups:
        (credited,) = credit_groups([group], step.weights, CreditConfig())
        earns = any(rollout.positive_weights.any() or rollout.negative_weights.any() for rollout in credited.rollouts)
        assert has_nonzero_variance(group, step.weights) == earns


def test_a_scope_only_where_the_value_is_the_mean_gives_no_signal() -> None:
    # 0, 0.5, 1 vary, but the one sibling with tokens in scope lies on the mean
    rollouts = [
        scored_rollout("g", index, 2, [scoped_reward("a", value, *([(0, 2)] if value == 0.5 else []))])
        for index, value in enumerate((0.0, 0.5, 1.0))
    ]
    assert not has_nonzero_variance(scored_group("g", rollouts), {"a": 1.0})


def test_rounding_is_no_signal() -> None:
    assert not has_nonzero_variance(simple_group("g", "a", [0.1 + 0.2, 0.3], [1, 1]), {"a": 1.0})


@given(totals=st.lists(st.sampled_from((-1.0, 0.0, 0.02, 3.5, 6.9, 7.0)), min_size=2, max_size=5))
def test_mean_range_is_the_public_rule(totals: list[float]) -> None:
    groups = [simple_group("g", "a", totals, [1] * len(totals))]
    kept = select_groups(groups, FilterConfig(mode="mean_range"), {"a": 1.0}, CreditConfig())
    assert bool(kept) == reference_keeps_group(totals)


def test_kept_groups_stay_in_order() -> None:
    groups = [*named("ab"), simple_group("x", "a", [1.0, 1.0], [1, 1]), *named("c")]
    kept = select_groups(groups, FilterConfig(), {"a": 1.0}, CreditConfig())
    assert ids(kept) == "abc"
