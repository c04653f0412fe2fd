"""Signal and noise of credit: siblings that choose alike, pushed alike or not."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from random import Random

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from rsgrpo.algorithm.credit_signal import CreditSignal, credit_signal, signal_metrics
from rsgrpo.config import CreditConfig
from rsgrpo.types import ScoredGroup, TokenSpan
from tests.examples import examples
from tests.unit.strategies import scoped_reward, scored_group, scored_rollout

Sections = dict[tuple[str, int], dict[str, tuple[TokenSpan, ...]]]


def _group(
    responses: Sequence[Sequence[int]], values: Sequence[float | None], spans: Sequence[tuple[int, int]]
) -> ScoredGroup:
    """Siblings of these tokens, with one reward on one span of each."""
    rollouts = []
    for index, (tokens, value, span) in enumerate(zip(responses, values, spans, strict=True)):
        scored = scored_rollout("q", index, len(tokens), [scoped_reward("right", value, span)])
        rollouts.append(replace(scored, rollout=replace(scored.rollout, token_ids=np.array(tokens, np.int32))))
    return scored_group("q", rollouts)


def _halves(group: ScoredGroup) -> Sections:
    """The first two tokens are ``first``, all others ``second``."""
    return {
        rollout.key: {
            "first": (TokenSpan(start=0, stop=min(2, rollout.num_tokens)),),
            "second": (TokenSpan(start=min(2, rollout.num_tokens), stop=rollout.num_tokens),),
        }
        for rollout in group.rollouts
    }


def _whole(group: ScoredGroup) -> Sections:
    return {rollout.key: {"all": (TokenSpan(start=0, stop=rollout.num_tokens),)} for rollout in group.rollouts}


def _signal(responses: Sequence[Sequence[int]], values: Sequence[float | None]) -> CreditSignal | None:
    group = _group(responses, values, [(0, len(tokens)) for tokens in responses])
    return credit_signal([group], _whole(group), CreditConfig()).get(("right", "all"))


def test_a_reward_that_one_choice_decides_has_the_largest_signal() -> None:
    # phi is +-1/2 in each of two coordinates (token 3, token 7): |phi_i|^2 = 1/2, chance 8 / 2 = 4. All A_i phi_i are
    # equal, of length |A| / sqrt(2) with A^2 = 7 / 8: push = 64 * (7 / 8) / 2 = 28. Ratio 28 / 4 - 1 = 6 = n - 2.
    found = _signal([[5, 3]] * 4 + [[5, 7]] * 4, [0.0] * 4 + [1.0] * 4)
    assert found is not None
    assert (found.push, found.chance, found.ratio) == pytest.approx((28.0, 4.0, 6.0))


def test_a_reward_that_nothing_written_decides_pushes_nowhere() -> None:
    # Of either token two siblings are right and two wrong: the pushes cancel, and the ratio is -1.
    found = _signal([[5, 3]] * 4 + [[5, 7]] * 4, [0.0, 0.0, 1.0, 1.0] * 2)
    assert found is not None and found.ratio == pytest.approx(-1.0)


def test_tokens_that_have_nothing_to_do_with_the_reward_dilute_its_signal() -> None:
    # Each sibling ends on four tokens of its own: |phi_i|^2 grows by what they add, the push by its mean alone.
    rng = np.random.default_rng(0)
    responses = [[5, 3 if index < 4 else 7, *rng.integers(10, 99, 4).tolist()] for index in range(8)]
    short = _signal([tokens[:2] for tokens in responses], [0.0] * 4 + [1.0] * 4)
    long = _signal(responses, [0.0] * 4 + [1.0] * 4)
    assert short is not None and long is not None
    assert short.ratio == pytest.approx(6.0) and 0.0 < long.ratio < 2.0


def test_credit_that_changes_nothing_has_no_signal() -> None:
    assert _signal([[5, 3]] * 4, [0.0, 1.0, 0.0, 1.0]) is None  # all say the same
    assert _signal([[5, 3], [5, 7]] * 2, [1.0] * 4) is None  # no value differs
    assert _signal([[5, 3], [5, 7]] * 2, [1.0, 0.0, 1.0, None]) is None  # three are too few
    assert credit_signal([], {}, CreditConfig()) == {}


_TOKENS = st.lists(st.integers(0, 3), min_size=0, max_size=5)


@examples(60)
@given(st.lists(st.tuples(_TOKENS, st.sampled_from((0.0, 0.5, 1.0))), min_size=4, max_size=5))
def test_chance_is_the_mean_push_over_all_ways_to_deal_the_rewards(siblings: list[tuple[list[int], float]]) -> None:
    responses, values = [tokens for tokens, _ in siblings], [value for _, value in siblings]
    found = [_signal(responses, dealt) for dealt in itertools.permutations(values)]
    assume(found[0] is not None)
    pushes = [one.push for one in found if one is not None]
    assert len(pushes) == len(found)
    assert found[0] is not None and np.mean(pushes) == pytest.approx(found[0].chance)


@examples(60)
@given(
    st.lists(st.tuples(_TOKENS, st.sampled_from((0.0, 0.5, 1.0, None))), min_size=4, max_size=6),
    st.randoms(use_true_random=False),
)
def test_order_scale_and_siblings_without_a_value_do_not_matter(
    siblings: list[tuple[list[int], float | None]], random: Random
) -> None:
    found = _signal([tokens for tokens, _ in siblings], [value for _, value in siblings])
    shuffled = [(tokens, value) for tokens, value in siblings if value is not None]
    assume(shuffled)
    random.shuffle(shuffled)
    other = _signal([tokens for tokens, _ in shuffled], [3.0 * value - 1.0 for _, value in shuffled])
    assert (found is None) == (other is None)
    if found is not None and other is not None:
        assert (found.push, found.chance) == pytest.approx((other.push, other.chance))


def test_only_tokens_that_credit_reaches_count() -> None:
    responses = [[1, 2, 3, 4], [1, 9, 3, 8], [1, 2, 3, 8], [1, 9, 3, 4]]
    values = [1.0, 0.0, 1.0, 0.0]  # the second token decides, the fourth has nothing to do with it
    group = _group(responses, values, [(2, 4)] * 4)
    found = {
        name: credit_signal([group], _halves(group), config)
        for name, config in {
            "scope": CreditConfig(),
            "causal": CreditConfig(reach="causal"),
            "soft": CreditConfig(outside=0.2),
            "whole": CreditConfig(scoping="whole"),
        }.items()
    }
    # The fourth token stands behind contexts of its own, (2, 3) and (9, 3), in which either token is right or wrong by
    # itself: nothing that is written there goes with the reward.
    assert found["scope"].keys() == {("right", "second")}
    for name in ("causal", "soft", "whole"):
        assert found[name]["right", "first"].ratio == pytest.approx(2.0)  # n - 2
        assert found[name]["right", "second"] == found["scope"]["right", "second"]


def test_groups_add_up_and_metrics_name_reward_and_section() -> None:
    signal = _group([[5, 3]] * 4 + [[5, 7]] * 4, [0.0] * 4 + [1.0] * 4, [(0, 2)] * 8)
    noise = _group([[5, 3]] * 4 + [[5, 7]] * 4, [0.0, 0.0, 1.0, 1.0] * 2, [(0, 2)] * 8)
    # Pushes 28 and 0, chances 4 and 4: 28 / 8 - 1.
    assert signal_metrics([signal, noise], _whole(signal), CreditConfig()) == pytest.approx({"signal/right/all": 2.5})
