"""Selection agrees with credit, and surplus groups wait in order."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rsgrpo.algorithm.advantages import credit_groups
from rsgrpo.algorithm.selection import CarryOver, has_nonzero_variance, select_groups
from rsgrpo.config import CreditConfig, FilterConfig
from rsgrpo.io.record_codec import Arrays, from_plain, to_plain
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
        earns = any(one.positive_weights.any() or one.negative_weights.any() for one in credited.rollouts)
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
    selection = select_groups(groups, FilterConfig(mode="mean_range"), {"a": 1.0})
    assert bool(selection.kept) == reference_keeps_group(totals)


def test_kept_groups_stay_in_order_and_every_group_is_accounted_for() -> None:
    groups = [*named("ab"), simple_group("x", "a", [1.0, 1.0], [1, 1]), *named("c")]
    selection = select_groups(groups, FilterConfig(), {"a": 1.0})
    assert ids(selection.kept) == "abc"
    assert len(selection.kept) + sum(selection.dropped.values()) == 4


def test_surplus_groups_go_into_the_next_step_oldest_first() -> None:
    waiting = CarryOver().add(named("abc"))
    taken, left = waiting.take(2)
    assert (ids(taken), ids(left.groups)) == ("ab", "c")
    taken, left = left.add(named("de")).take(2)
    assert (ids(taken), ids(left.groups)) == ("cd", "e")
    # too few: the step takes what there is
    taken, left = left.take(5)
    assert (ids(taken), ids(left.groups)) == ("e", "")
    # the states are values: the first one still waits with all three
    assert ids(waiting.groups) == "abc"
    with pytest.raises(ValueError, match="-1 groups"):
        waiting.take(-1)


@given(
    rounds=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), max_size=6),
    resumes=st.lists(st.booleans(), min_size=6, max_size=6),
)
def test_carrying_over_loses_and_repeats_nothing(rounds: list[tuple[int, int]], resumes: list[bool]) -> None:
    state, given_names, trained = CarryOver(), "", ""
    for (num_new, num_wanted), resume in zip(rounds, resumes, strict=False):
        names = [chr(ord("a") + len(given_names) + index) for index in range(num_new)]
        given_names += "".join(names)
        state = state.add(named(names))
        if resume:  # a checkpoint between sampling and training
            arrays: Arrays = {}
            state = from_plain(CarryOver, to_plain(state, arrays), arrays)
        taken, state = state.take(num_wanted)
        trained += ids(taken)
    assert trained + ids(state.groups) == given_names
