"""The study of scopes: gradients of steps by stretches, the yardstick, and the samples that a cosine needs."""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rsgrpo.config import CreditConfig
from rsgrpo.errors import RsgrpoError
from rsgrpo.io.atomic_files import write_json
from rsgrpo.types import ScoredGroup
from tests.unit.composition import composed
from tests.unit.strategies import scoped_reward, scored_group, scored_rollout

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
NUM_TOKENS = 3


@pytest.fixture(scope="module")
def estimators() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        yield importlib.import_module("scoping_estimators")


def _reward(response: tuple[int, ...]) -> float:
    return {(0, 0): 0.0, (0, 1): 1.0, (1, 0): 3.0, (1, 1): 0.5}[response[0], response[1]]


def _scored(pair: tuple[tuple[int, ...], ...], name: str = "g") -> ScoredGroup:
    """Two responses of three binary tokens; the second token is the scope of a reward that the first two decide."""
    return scored_group(
        name,
        [
            scored_rollout(name, row, NUM_TOKENS, [scoped_reward("a", _reward(response), (1, 2))])
            for row, response in enumerate(pair)
        ],
    )


def _pool_group(estimators: ModuleType, pair: tuple[tuple[int, ...], ...]) -> Any:
    """Every token a stretch; its gradient by one logit a position, of a policy that draws 1 with probability 1/2."""
    stretches = tuple(estimators.Stretch(start=t, stop=t + 1, section=f"s{t}") for t in range(NUM_TOKENS))
    return estimators.PoolGroup(
        scored=_scored(pair),
        stretches=(stretches,) * len(pair),
        gradients=tuple(np.diag([token - 0.5 for token in response]).astype(np.float32) for response in pair),
    )


def _all_pairs() -> list[tuple[tuple[int, ...], ...]]:
    responses = list(itertools.product((0, 1), repeat=NUM_TOKENS))
    return list(itertools.product(responses, repeat=2))


def test_the_yardstick_is_the_gradient_of_the_expected_reward(estimators: ModuleType) -> None:
    # All 64 pairs are equally likely. d/dlogit_t E[r] = E[r (o_t - 1/2)]: for the first token
    # (-0 - 1 + 3 + 0.5) / 4 / 2 = 0.3125, for the second (-0 + 1 - 3 + 0.5) / 4 / 2 = -0.1875, for the third 0.
    pool = [_pool_group(estimators, pair) for pair in _all_pairs()]
    by_section = estimators.yardstick(pool, {"a": 1.0})
    np.testing.assert_allclose(sum(by_section.values()), [0.3125, -0.1875, 0.0], atol=1e-6)
    assert "s2" not in by_section  # no credit behind the scope, so no noise either


def test_a_step_is_the_sum_of_what_its_tokens_weigh(estimators: ModuleType) -> None:
    # Rewards 3 and 0 on the second tokens: A = ±0.70711, N = 2, so ±0.35355 times the gradients -0.5 and -0.5: they
    # cancel. With 3 and 1 (0, 1): 0.35355 · (-0.5) - 0.35355 · 0.5 = -0.35355.
    scope = estimators.Estimator(credit=CreditConfig())
    same = estimators.step_gradients([_pool_group(estimators, ((1, 0, 0), (0, 0, 0)))], {"a": 1.0}, scope)
    np.testing.assert_allclose(same["s1"], 0.0, atol=1e-6)
    other = estimators.step_gradients([_pool_group(estimators, ((1, 0, 0), (0, 1, 0)))], {"a": 1.0}, scope)
    np.testing.assert_allclose(other["s1"], [0.0, -0.35355, 0.0], atol=1e-4)
    assert set(other) == {"s1"}


def test_a_scope_that_cuts_a_stretch_is_refused(estimators: ModuleType) -> None:
    pair = ((1, 0, 0), (0, 1, 0))
    whole = (estimators.Stretch(start=0, stop=NUM_TOKENS, section="s"),)
    group = estimators.PoolGroup(scored=_scored(pair), stretches=(whole, whole), gradients=(np.ones((1, 2)),) * 2)
    with pytest.raises(ValueError, match="a scope cuts the stretch"):
        estimators.step_gradients([group], {"a": 1.0}, estimators.Estimator(credit=CreditConfig()))
    everywhere = estimators.Estimator(credit=CreditConfig(outside=1.0))
    assert estimators.step_gradients([group], {"a": 1.0}, everywhere)


def test_rewards_change_scopes_and_get_noise_that_depends_on_the_response_alone(estimators: ModuleType) -> None:
    rewards = [scoped_reward("a", 1.0, (0, 1)), scoped_reward("b", 0.0, (1, 3))]
    group = scored_group("g", [scored_rollout("g", row, 3, rewards) for row in (0, 1)])
    changed = estimators.with_scopes_of({"a": "b"})(group).rollouts[0].rewards
    assert [reward.spans for reward in changed] == [rewards[1].spans] * 2
    noisy = estimators.with_noise("a", 0.5, seed=1)
    values = [[reward.value for reward in rollout.rewards] for rollout in noisy(group).rollouts]
    assert values == [[reward.value for reward in rollout.rewards] for rollout in noisy(group).rollouts]
    assert values[0][0] != values[1][0] != 1.0 and values[0][1] == values[1][1] == 0.0


def test_the_signal_of_gradients_is_push_over_chance(estimators: ModuleType) -> None:
    # Rewards 3 and 1: A = ±0.70711. Gradients ±0.5 of the first token, ∓0.5 of the second, equal ones of the third:
    # push (2 · 0.70711 · 0.5)² = 0.5 and chance 2 · 0.5² = 0.5 each: with two siblings push is always chance.
    signals = importlib.import_module("scoping_signals")
    found = signals.gradient_signal([_pool_group(estimators, ((1, 0, 0), (0, 1, 0)))])
    assert {key: (signal.push, signal.chance) for key, signal in found.items()} == {
        ("a", "s0"): pytest.approx((0.5, 0.5)),
        ("a", "s1"): pytest.approx((0.5, 0.5)),
    }


def test_a_reward_that_two_of_three_tokens_decide_has_its_signal_there(estimators: ModuleType) -> None:
    # Siblings draw all eight responses. Push over chance is (n - 1) times the squared correlation of reward and token.
    # The reward (0, 1, 3, 0.5) has the variance 1.296875, means 1.75 and 0.5 by the first token, 0.75 and 1.5 by the
    # second, the same by the third: (7 · 0.625² , 7 · 0.375², 0) / 1.296875 - 1.
    signals = importlib.import_module("scoping_signals")
    pool = [_pool_group(estimators, tuple(itertools.product((0, 1), repeat=NUM_TOKENS)))]
    found = {section: signal.ratio for (_, section), signal in signals.gradient_signal(pool).items()}
    assert found == pytest.approx({"s0": 1.10843, "s1": -0.24096, "s2": -1.0}, abs=1e-4)


def test_two_yardsticks_say_how_well_they_know_the_truth(estimators: ModuleType) -> None:
    # Both are the truth (1, 0, 0, …) and noise of half its length each, along axes of its own: cosine 1 / sqrt(1.25).
    study = importlib.import_module("scoping_study")
    first, second = np.array([1.0, 0.5, 0.0]), np.array([1.0, 0.0, 0.5])
    assert study.trust_of(first, second) == pytest.approx(1 / np.sqrt(1.25))
    assert np.isnan(study.trust_of(first, -second))


def test_there_is_nothing_to_compare_with_where_grpo_does_not_point_along_the_yardstick(estimators: ModuleType) -> None:
    study = importlib.import_module("scoping_study")
    better = estimators.Quality(cosine=0.4, limit=1.0, noise=10.0)
    grpo = estimators.Quality(cosine=0.2, limit=1.0, noise=96.0)
    lost = estimators.Quality(cosine=-0.1, limit=-0.2, noise=96.0)
    # With 4 groups GRPO has the cosine 1 / sqrt(1 + 96 / 4) = 0.2; the other needs 10 / (1 / 0.2² - 1) = 10 / 24.
    found = {("grpo", "all"): [grpo] * 3, ("causal", "all"): [better] * 3, ("wrong", "all"): [lost] * 3}
    assert study.ratios(found, "causal", "all", 4) == pytest.approx((0.104167,) * 3, abs=1e-6)
    assert study.ratios(found, "wrong", "all", 4) == (study.MOST,) * 3
    unclear = {("grpo", "all"): [lost] * 3, ("causal", "all"): [better] * 3}
    row = dict(point="p", name="causal", section="all", cosine=0.1, limit=0.2, trust=0.5)
    ratio, low, high = study.ratios(unclear, "causal", "all", 4)
    assert study.told_ratio(study.Row(ratio=ratio, low=low, high=high, **row)) == "unclear"
    assert study.told_ratio(study.Row(ratio=0.5, low=0.25, high=study.MOST, **row)) == "0.50 [0.25, never]"


def test_the_sweep_takes_groups_by_their_pages_and_rewards_by_their_names(estimators: ModuleType) -> None:
    study = importlib.import_module("scoping_study")
    pair = ((1, 0, 0), (0, 1, 0))
    pool = [replace(_pool_group(estimators, pair), num_pages=num_pages) for num_pages in (2, 3, 2)]
    config = composed("recipe=quickstart")
    points = {point.name: point for point in study.points_of(pool, config, seed=0)}
    assert list(points) == [
        "group size 2",
        "2 pages, 3 tokens",
        "3 pages, 3 tokens",
        "accuracy alone",
        "evidence alone",
        "accuracy and evidence alone",
        "noise of 0.5 in accuracy",
        "noise of 0.5 in evidence",
    ]
    assert points["2 pages, 3 tokens"].groups == [pool[0], pool[2]]
    given = {name for name, weight in points["evidence alone"].weights.items() if weight}
    assert given == {"evidence"} < set(points["group size 2"].weights)
    assert "wrong scopes" in points["evidence alone"].estimators
    assert {"by line", "wrong scopes"} - points["noise of 0.5 in accuracy"].estimators.keys() == {"wrong scopes"}
    assert {"by line", "causal"} - points["noise of 0.5 in evidence"].estimators.keys() == {"by line"}


def test_a_share_of_the_evidence_goes_by_line_and_the_yardstick_does_not_see_it(estimators: ModuleType) -> None:
    study = importlib.import_module("scoping_study")
    weights = {name: reward.weight for name, reward in study.with_lines(composed("recipe=quickstart")).rewards.items()}
    assert (weights["evidence"], weights[estimators.LINES]) == (3.0, 0.0)
    half = estimators.Estimator(credit=CreditConfig(), by_line=0.5).weights(weights)
    assert (half["evidence"], half[estimators.LINES]) == (1.5, 1.5)
    assert sum(half.values()) == sum(weights.values())
    assert estimators.Estimator(credit=CreditConfig()).weights(weights) == weights


def test_gradients_of_other_stretches_are_refused(estimators: ModuleType, tmp_path: Path) -> None:
    gradients = importlib.import_module("scoping_gradients")
    with pytest.MonkeyPatch.context() as patch:
        group = _scored(((1, 0, 0), (0, 1, 0)))
        sampled = SimpleNamespace(sample=SimpleNamespace(images=()))
        patch.setattr(gradients, "scored_groups", lambda run, config: iter([(sampled, group)]))
        stored = [np.ones((1, 2), np.float16), np.ones((3, 2), np.float16)]
        np.savez(tmp_path / "00000.npz", *stored)
        with pytest.raises(RsgrpoError, match="other scopes; delete"):
            gradients.make_pool(tmp_path, tmp_path, composed("recipe=quickstart"), tmp_path, 1, 0)


def test_where_there_is_no_number_the_file_holds_none(estimators: ModuleType, tmp_path: Path) -> None:
    # Yardsticks that point away from one another know nothing: their cosine with the truth is no number.
    study = importlib.import_module("scoping_study")
    trust = study.trust_of(np.array([1.0, 0.0]), np.array([-1.0, 0.5]))
    told = study.known_numbers({"point": "group size 2", "trust": trust, "cosine": 0.5})
    assert told == {"point": "group size 2", "trust": None, "cosine": 0.5}
    write_json(tmp_path / "study.json", told)


@given(bias=st.floats(0.0, 2.0), noise=st.floats(0.1, 3.0), num_groups=st.integers(1, 16))
def test_the_cosine_of_a_larger_step_follows_from_small_ones(
    estimators: ModuleType, bias: float, noise: float, num_groups: int
) -> None:
    # Steps 1 along the yardstick, ``bias`` across it, and noise along an axis of each step's own: the mean step has
    # the squared length 1 + bias², a step of b groups the variance noise² / b.
    number = 6
    deviation = noise / np.sqrt(num_groups)
    steps = np.concatenate([np.tile([1.0, bias], (number, 1)), np.eye(number) * deviation], axis=1)
    found = estimators.quality(steps[:, 0], steps @ steps.T, np.arange(number), num_groups)
    assert found.limit == pytest.approx(1 / np.sqrt(1 + bias**2))
    assert found.noise == pytest.approx(noise**2 / (1 + bias**2))
    assert found.cosine == pytest.approx(1 / np.sqrt(1 + bias**2 + noise**2 / num_groups))
    assert found.cosine_of(num_groups) == pytest.approx(found.cosine)
    assert found.groups_for(found.cosine) == pytest.approx(num_groups)
    assert found.groups_for(found.limit * 1.01) == np.inf
