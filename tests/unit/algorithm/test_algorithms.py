"""Every algorithm's config against its paper's formula, written out here by itself, on drawn steps.

The oracles (``paper_objectives.py``) take each response's scalar reward and differentiate the paper's objective in
float64. The library goes its whole way: selection, credit, packed rows, loss.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from rsgrpo.algorithm.advantages import credit_groups
from rsgrpo.algorithm.aggregation import response_weights
from rsgrpo.algorithm.selection import select_groups
from rsgrpo.config import (
    Aggregation,
    Clipping,
    Config,
    ConfigError,
    CreditConfig,
    Estimator,
    FilterConfig,
    KlConfig,
    LossConfig,
    OldLogprobsFrom,
    Ratio,
)
from rsgrpo.trainer.objective import row_loss
from rsgrpo.types import CreditedGroup, ScoredGroup
from tests.examples import examples
from tests.unit.algorithm.paper_objectives import PAPERS, Tokens, drawn_tokens, oracle
from tests.unit.composition import ALGORITHMS, composed
from tests.unit.model.packed_sequences import micro_batch
from tests.unit.strategies import Step, partitions, scoped_reward, scored_group, scored_rollout, simple_group, steps

LAWS = examples(25)


def algorithm(name: str) -> Config:
    return composed(f"algorithm={name}")


def library(
    config: Config, step: Step, tokens: Tokens, beta: float, cut: Sequence[Sequence[tuple[str, int]]] | None = None
) -> Tensor:
    """The step's loss through selection, credit and rows; ``cut``: which responses share a row."""
    rl = config.rl
    kept = select_groups(step.groups, rl.filter, step.weights, rl.credit)
    credited = {
        rollout.key: rollout for group in credit_groups(kept, step.weights, rl.credit) for rollout in group.rollouts
    }
    shares = response_weights(kept, rl.credit)
    places = step.places
    loss = dataclasses.replace(rl.loss, kl=KlConfig(coefficient=beta, estimator="k3"))
    total = 0.0 * tokens.new.sum()
    for members in [list(places)] if cut is None else cut:
        row = [member for member in members if member in credited]
        if not row:
            continue
        chosen = torch.cat([torch.arange(places[member].start, places[member].stop) for member in row])
        batch = micro_batch(
            [credited[member] for member in row],
            old_logprobs=tokens.old[chosen],
            reference_logprobs=tokens.reference[chosen],
            kl_weights=[beta * shares[member] for member in row] if beta else None,
        )
        total = total + row_loss(batch, tokens.new[chosen], "policy", loss)[0]
    return total


def size_of_terms(name: str, step: Step, tokens: Tokens) -> float:
    """No less than what the terms of the loss add up to without their signs: they may cancel, their rounding not."""
    on_policy = dataclasses.replace(tokens, old=tokens.new.detach())
    credit = float(gradient(oracle(name, step, on_policy, 0.0), on_policy).abs().sum())
    new = tokens.new.detach()
    return credit * max(1.0, float((new - tokens.old).max().exp())) * max(1.0, float(new.abs().max()))


def gradient(loss: Tensor, tokens: Tokens) -> Tensor:
    return torch.autograd.grad(loss, tokens.new, retain_graph=True)[0]


STEPS = steps(
    values=(-1.0, 0.0, 0.1, 0.4, 1.0, 2.1), weights=(0.5, 1.0, 3.0), sibling_counts=(1, 2, 3, 4), has_images=False
)
"""Groups of different sizes, also of one response."""
DRIFTS = st.sampled_from((0.0, 3e-4, 0.3, 1.5))
"""Spread of the log-ratio: on-policy, about GSPO's bounds, some tokens clipped, most of them."""
SEEDS = st.integers(0, 2**16)
BETAS = st.sampled_from((0.0, 0.04))


def test_every_algorithm_has_an_oracle() -> None:
    # rs_grpo and upstream have theirs in test_laws (laws 1 and 6); here, that the configs are what those test
    assert sorted([*PAPERS, "rs_grpo", "causal_rs_grpo", "decoupled_grpo", "upstream"]) == ALGORITHMS
    assert algorithm("rs_grpo").rl.credit == CreditConfig()
    assert algorithm("rs_grpo").rl.loss == LossConfig()
    public = algorithm("upstream")
    assert public.rl.credit == CreditConfig(compat="upstream")
    assert public.rl.loss == LossConfig(importance_cap=0.0)
    assert public.rl.filter == FilterConfig(mode="mean_range", low=0.01, high=6.9, max_refills=19, keep_leftover=False)
    assert {reward.on_missing for reward in public.scored_rewards.values()} == {"whole"}
    assert {reward.on_missing for reward in algorithm("grpo").scored_rewards.values()} == {"skip"}


@pytest.mark.parametrize("name", list(PAPERS))
def test_the_config_is_the_papers_objective(name: str) -> None:
    config = algorithm(name)

    @LAWS
    @given(step=STEPS, seed=SEEDS, drift=DRIFTS, beta=BETAS)
    def holds(step: Step, seed: int, drift: float, beta: float) -> None:
        tokens = drawn_tokens(step, seed, drift)
        actual, expected = library(config, step, tokens, beta), oracle(name, step, tokens, beta)
        ours, papers = gradient(actual, tokens), gradient(expected, tokens)
        # the streams are float32: 6e-8 of what each token gets
        largest = float(papers.abs().max())
        assert float((ours - papers).abs().max()) <= 3e-7 * largest
        assert actual.item() == pytest.approx(expected.item(), rel=1e-6, abs=1e-7 * size_of_terms(name, step, tokens))

    holds()


@pytest.mark.parametrize("name", ALGORITHMS)
def test_gradients_do_not_depend_on_the_cut(name: str) -> None:
    config = algorithm(name)

    @LAWS
    @given(data=st.data(), step=STEPS, seed=SEEDS, drift=DRIFTS, beta=BETAS)
    def holds(data: st.DataObject, step: Step, seed: int, drift: float, beta: float) -> None:
        tokens = drawn_tokens(step, seed, drift)
        whole = gradient(library(config, step, tokens, beta), tokens)
        parts = gradient(library(config, step, tokens, beta, data.draw(partitions(step.members))), tokens)
        assert float((parts - whole).abs().max()) <= 1e-12 * float(whole.abs().max())

    holds()


def test_a_kl_term_needs_the_reference_models_log_probabilities() -> None:
    (credited,) = credit_groups([simple_group("g", "a", [1.0, 0.0], [2, 1])], {"a": 1.0}, CreditConfig())
    batch = micro_batch(credited.rollouts, kl_weights=[0.1, 0.1])
    with pytest.raises(ValueError, match="no reference_logprobs"):
        row_loss(batch, torch.zeros(3), "policy", LossConfig(kl=KlConfig(coefficient=0.1)))


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_the_kl_terms_estimator_is_the_configured_one_and_its_metric_k3(estimator: Estimator) -> None:
    # d = log 2 on three tokens of weight 0.1; k3 = exp(-d) - 1 + d = 0.1931 whatever the loss takes
    (credited,) = credit_groups([simple_group("g", "a", [1.0, 1.0], [2, 1])], {"a": 1.0}, CreditConfig())
    reference = torch.full((3,), -2.0, dtype=torch.float64)
    batch = micro_batch(credited.rollouts, reference_logprobs=reference, kl_weights=[0.1, 0.1])
    loss = LossConfig(importance_cap=0.0, kl=KlConfig(coefficient=0.1, estimator=estimator))
    value, totals = row_loss(batch, reference + 0.693147, "policy", loss)
    assert value.item() == pytest.approx(0.3 * {"k1": 0.693147, "k2": 0.240227, "k3": 0.193147}[estimator], rel=1e-5)
    assert totals.loss == value.item()
    assert totals.kl_reference_sum == pytest.approx(3 * 0.193147, rel=1e-5)


@pytest.mark.parametrize("old_logprobs", ["auto", "recompute", "engine"])
def test_a_response_that_is_far_off_has_no_gradient_but_stays_in_the_denominators(
    old_logprobs: OldLogprobsFrom,
) -> None:
    # responses of 2 tokens and 1, ratios trainer/engine 1.02 and 1.2
    (credited,) = credit_groups([simple_group("g", "a", [1.0, 0.0], [2, 1])], {"a": 1.0}, CreditConfig())
    new = torch.tensor([-1.0, -1.0, -1.0], dtype=torch.float64, requires_grad=True)
    engine = -1.0 - torch.tensor([1.02, 1.02, 1.2], dtype=torch.float64).log()
    old = new.detach() if old_logprobs == "recompute" else None
    batch = micro_batch(credited.rollouts, old_logprobs=old, rollout_logprobs=engine)

    def slopes(bound: float) -> tuple[list[float], int]:
        loss = LossConfig(old_logprobs=old_logprobs, response_ratio_bound=bound)
        value, totals = row_loss(batch, new, "policy", loss)
        return torch.autograd.grad(value, new)[0].tolist(), totals.num_masked

    whole, none_masked = slopes(0.0)
    assert none_masked == 0 and all(whole)
    assert slopes(1.05) == ([whole[0], whole[1], 0.0], 1)
    assert slopes(1.01) == ([0.0, 0.0, 0.0], 3)
    assert slopes(1.25) == (whole, 0)


@LAWS
@given(
    step=steps(),
    seed=SEEDS,
    drift=st.sampled_from((3e-4, 0.3)),
    aggregation=st.sampled_from(("scope_tokens", "token_mean", "sequence_mean", "constant")),
    ratio=st.sampled_from(("token", "sequence")),
    clipping=st.sampled_from(("ppo", "cispo")),
)
def test_scoped_credit_stays_in_its_scope_whatever_the_loss(
    step: Step, seed: int, drift: float, aggregation: Aggregation, ratio: Ratio, clipping: Clipping
) -> None:
    # law 5 for every combination: also a sequence's ratio moves only the tokens that have credit
    config = algorithm("rs_grpo")
    credit = CreditConfig(aggregation=aggregation, constant_tokens=8)
    rl = dataclasses.replace(config.rl, credit=credit, loss=LossConfig(ratio=ratio, clipping=clipping))
    rl = dataclasses.replace(rl, filter=dataclasses.replace(rl.filter, mode="none"))
    tokens = drawn_tokens(step, seed, drift)
    found = gradient(library(dataclasses.replace(config, rl=rl), step, tokens, 0.0), tokens)
    assert torch.isfinite(found).all()
    streams = [
        rollout.positive_weights + rollout.negative_weights
        for group in credit_groups(step.groups, step.weights, credit)
        for rollout in group.rollouts
    ]
    assert not found[torch.from_numpy(np.concatenate(streams)) == 0].any()


@LAWS
@given(step=steps(), aggregation=st.sampled_from(("token_mean", "sequence_mean", "constant")))
def test_every_aggregation_by_the_definition(step: Step, aggregation: Aggregation) -> None:
    # A is the same for all of them; a token's share is 1 / sum |o_i|, 1 / (R |M_i|) or 1 / (R L)
    config = CreditConfig(aggregation=aggregation, constant_tokens=7, normaliser="all")
    total_weight = sum(step.weights.values())
    assume(total_weight > 0)
    rollouts = [rollout for group in step.groups for rollout in group.rollouts]
    covered = [
        {
            name: np.any(
                [
                    mask(rollout.num_tokens, () if r.value is None else r.spans)
                    for r in rollout.rewards
                    if r.name == name
                ],
                axis=0,
            )
            for name in step.weights
            if any(r.name == name for r in rollout.rewards)
        }
        for rollout in rollouts
    ]
    num_responses = {name: sum(bool(c[name].any()) for c in covered if name in c) for name in step.weights}
    credited = [rollout for group in credit_groups(step.groups, step.weights, config) for rollout in group.rollouts]
    for rollout, masks in zip(credited, covered, strict=True):
        expected = np.zeros((2, rollout.num_tokens))
        for reward, advantage in zip(rollout.rewards, rollout.advantages, strict=True):
            tokens = {
                "token_mean": sum(
                    other.num_tokens
                    for other in rollouts
                    if any(r.name == reward.name and r.value is not None for r in other.rewards)
                ),
                "sequence_mean": num_responses[reward.name] * masks[reward.name].sum(),
                "constant": num_responses[reward.name] * 7,
            }[aggregation]
            amount = step.weights[reward.name] / total_weight * advantage / max(1, tokens)
            expected[0 if advantage > 0 else 1] += abs(amount) * mask(rollout.num_tokens, reward.spans)
        np.testing.assert_allclose(rollout.positive_weights, expected[0], rtol=1e-6, atol=1e-30)
        np.testing.assert_allclose(rollout.negative_weights, expected[1], rtol=1e-6, atol=1e-30)


def mask(num_tokens: int, spans) -> np.ndarray:
    found = np.zeros(num_tokens, bool)
    for span in spans:
        found[span.start : span.stop] = True
    return found


def test_credit_of_the_whole_response_ignores_scopes() -> None:
    # totals 3 · 1 + 0 = 3 and 0 + 1 = 1: mean 2, std 1.4142, A = ±0.7071, on 2 and on 4 tokens, R = 2
    group: ScoredGroup = scored_group(
        "g",
        [
            scored_rollout(
                "g", 0, 2, [scoped_reward("a", 1.0, (0, 1)), scoped_reward("b", 0.0), scoped_reward("c", 5.0)]
            ),
            scored_rollout(
                "g", 1, 4, [scoped_reward("a", 0.0), scoped_reward("b", 1.0, (2, 3)), scoped_reward("c", 0.0)]
            ),
        ],
    )
    weights = {"a": 3.0, "b": 1.0, "c": 0.0}
    credited: CreditedGroup
    (credited,) = credit_groups([group], weights, algorithm("grpo").rl.credit)
    first, second = credited.rollouts
    assert credited.sample is group.sample and [rollout.rollout for rollout in credited.rollouts] == [
        rollout.rollout for rollout in group.rollouts
    ]
    np.testing.assert_allclose(first.positive_weights, [0.70711 / 4] * 2, rtol=1e-5)
    np.testing.assert_allclose(second.negative_weights, [0.70711 / 8] * 4, rtol=1e-5)
    np.testing.assert_allclose(first.advantages, [0.70711, 0.70711, 0.0], rtol=1e-5)
    np.testing.assert_allclose(second.advantages, [-0.70711, -0.70711, 0.0], rtol=1e-5)


def test_rewards_that_cancel_in_the_sum_are_no_signal_for_the_whole_response() -> None:
    # a: 1 and 0, b: 0 and 1, equal weights: each varies, the sum is 1 for both
    group = scored_group(
        "g",
        [
            scored_rollout("g", index, 1, [scoped_reward("a", 1.0 - index, (0, 1)), scoped_reward("b", index, (0, 1))])
            for index in (0, 1)
        ],
    )
    weights = {"a": 1.0, "b": 1.0}
    assert len(select_groups([group], algorithm("rs_grpo").rl.filter, weights, CreditConfig())) == 1
    assert not select_groups([group], algorithm("dapo").rl.filter, weights, CreditConfig(scoping="whole"))


def test_a_response_without_siblings_is_compared_with_the_batch_only() -> None:
    # groups of one with rewards 1 and 0: no credit in a group; over the batch mean 0.5, std 0.7071, A = ±0.7071
    groups = [simple_group("g", "a", [1.0], [2]), simple_group("h", "a", [0.0], [2])]
    for name in ("grpo", "dr_grpo", "rloo", "rs_grpo"):
        credited = credit_groups(groups, {"a": 1.0}, algorithm(name).rl.credit)
        assert not any(rollout.advantages[0] for group in credited for rollout in group.rollouts)
    over_batch = credit_groups(groups, {"a": 1.0}, algorithm("reinforce_plus_plus").rl.credit)
    np.testing.assert_allclose(
        [group.rollouts[0].advantages[0] for group in over_batch], [0.70711, -0.70711], rtol=1e-5
    )
    # equal up to rounding over the whole batch: exactly nothing
    flat = [simple_group("g", "a", [0.1 + 0.2], [2]), simple_group("h", "a", [0.3], [2])]
    for group in credit_groups(flat, {"a": 1.0}, algorithm("reinforce_plus_plus").rl.credit):
        assert group.rollouts[0].advantages == (0.0,)


@pytest.mark.parametrize("recipe", ["quickstart", "evisrag_7b", "evisrag_3b"])
def test_dapo_finds_the_overlong_reward_in_the_recipes(recipe: str) -> None:
    config = composed(f"recipe={recipe}", "algorithm=dapo")
    overlong = config.rewards["overlong"]
    assert overlong.weight > 0
    assert overlong.kwargs["max_response_tokens"] == config.rollout.sampling.max_response_tokens


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["rl.credit.aggregation=constant"], "rl.credit.constant_tokens=0"),
        (["rl.credit.baseline=batch_mean", "rl.filter.mode=none"], "rl.credit.scale to batch_std"),
        (["rl.credit.baseline=batch_mean", "rl.credit.scale=none"], "rl.filter.mode=none"),
        (["algorithm=rs_grpo", "rl.credit.compat=upstream", "rl.credit.scoping=whole"], "rl.credit.scoping=scoped"),
        (
            ["algorithm=rs_grpo", "rl.credit.compat=upstream", "rl.credit.aggregation=token_mean"],
            "rl.credit.aggregation=scope_tokens",
        ),
        (
            ["algorithm=rs_grpo", "rl.credit.compat=upstream", "rl.credit.baseline=leave_one_out"],
            "rl.credit.baseline=group_mean",
        ),
        (["algorithm=rs_grpo", "rl.credit.compat=upstream", "rl.loss.ratio=sequence"], "rl.loss.ratio=token"),
        (["algorithm=upstream", "rl.loss.clipping=cispo"], "rl.loss.clipping=ppo"),
        (["algorithm=grpo", "rl.samples_per_prompt=1"], "rl.credit.baseline=batch_mean"),
        (["rl.loss.kl.target=0.1"], "rl.loss.kl.coefficient, which is 0"),
        (["rl.loss.kl.estimator=k4"], "k1, k2, k3"),
        (["rl.loss.kl.coefficient=-1"], "rl.loss.kl.coefficient=-1"),
        (["rl.loss.dual_clip=1.1"], "rl.loss.dual_clip=1.1"),
        (["rl.loss.clip_low=1.5"], "rl.loss.clip_low=1.5"),
        (["rl.credit.scoping=half"], "scoped, whole"),
        (["rl.loss.ratio=word"], "token, sequence"),
        (["rl.loss.clipping=none"], "ppo, cispo"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(overrides: list[str], named: str) -> None:
    with pytest.raises(ConfigError, match=named.replace(".", r"\.")):
        composed(*overrides)


def test_one_response_a_question_is_fine_for_reinforce_plus_plus() -> None:
    assert composed("algorithm=reinforce_plus_plus", "rl.samples_per_prompt=1").rl.samples_per_prompt == 1


def test_denominators_in_tokens_follow_the_longest_response() -> None:
    config = composed("algorithm=dr_grpo", "recipe=evisrag_7b")
    assert config.rl.credit.constant_tokens == config.rollout.sampling.max_response_tokens == 1536
