"""The loss by hand: clip regions, importance weights, likelihood, KL estimates, and the public formula."""

from __future__ import annotations

import math

import pytest
import torch

from rsgrpo.algorithm.losses import (
    adapted_kl_coefficient,
    clipped_policy_loss,
    importance_weights,
    kl_estimate,
    nll_loss,
    response_mask,
)
from tests.oracles.upstream_objective import (
    ReferenceBatch,
    reference_advantages,
    reference_keeps_group,
    reference_loss,
    reference_scope,
    reference_token_losses,
)
from tests.unit.strategies import CLIP


def vector(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_the_documented_example() -> None:
    logprobs = vector(-1.0, -2.0).requires_grad_()
    result = clipped_policy_loss(logprobs, logprobs.detach(), vector(0.5, 0.0), vector(0.0, 0.25), **CLIP)
    assert result.loss.item() == -0.25
    assert torch.autograd.grad(result.loss, logprobs)[0].tolist() == [-0.5, 0.25]


@pytest.mark.parametrize(
    ("ratio", "value", "slope", "is_clipped"),
    # both streams at once, P = 2 and Q = 1: value = max(rho, rhobar, capped at 3) - 2 min(rho, rhobar)
    [
        (0.5, 0.8 - 2 * 0.5, -2 * 0.5, True),  # Q clipped below, P still pulls up
        (1.0, 1.0 - 2 * 1.0, 1.0 - 2.0, False),
        (1.28, 1.28 - 2 * 1.28, 1.28 - 2 * 1.28, False),  # on the bound itself nothing is clipped
        (2.0, 2.0 - 2 * 1.28, 2.0, True),  # P clipped above, Q still pushes down
        (5.0, 3.0 - 2 * 1.28, 0.0, True),  # both
    ],
)
def test_a_token_under_both_streams(ratio: float, value: float, slope: float, is_clipped: bool) -> None:
    # the bound in the arithmetic of the loss, log and back
    logprobs = vector(math.log(1.0 + 0.28) if ratio == 1.28 else math.log(ratio)).requires_grad_()
    result = clipped_policy_loss(logprobs, vector(0.0), vector(2.0), vector(1.0), **CLIP)
    assert result.loss.item() == pytest.approx(value)
    assert torch.autograd.grad(result.loss, logprobs)[0].item() == pytest.approx(slope)
    assert bool(result.clipped) is is_clipped


def test_uncredited_tokens_are_not_counted_as_clipped() -> None:
    result = clipped_policy_loss(vector(2.0, 2.0), vector(0.0, 0.0), vector(0.0, 1.0), vector(0.0, 0.0), **CLIP)
    assert result.clipped.tolist() == [False, True]
    assert result.num_clipped == 1


def test_extreme_ratios_stay_finite_in_single_precision() -> None:
    # exp(200) overflows float32; -P·min(inf, 1.28) would be fine, but 0·inf on the other stream is NaN
    logprobs = torch.tensor([200.0, -200.0], requires_grad=True)
    result = clipped_policy_loss(logprobs, torch.zeros(2), torch.tensor([1.0, 1.0]), torch.zeros(2), **CLIP)
    assert result.loss.item() == pytest.approx(-1.28)
    assert torch.autograd.grad(result.loss, logprobs)[0].tolist() == [0.0, 0.0]


def test_importance_weights_scale_tokens_and_carry_no_gradient() -> None:
    trainer = vector(-1.0, -1.0, -1.0).requires_grad_()
    weights = importance_weights(trainer, vector(-1.0, -1.5, -9.0), cap=2.0)
    assert not weights.requires_grad
    # exp(0), exp(0.5), exp(8) cut at 2
    torch.testing.assert_close(weights, vector(1.0, math.exp(0.5), 2.0))
    loss = clipped_policy_loss(
        trainer, trainer.detach(), vector(1.0, 1.0, 1.0), vector(0.0, 0.0, 0.0), importance_weights=weights, **CLIP
    ).loss
    torch.testing.assert_close(torch.autograd.grad(loss, trainer)[0], -weights)


def test_a_response_is_masked_by_the_geometric_mean_of_its_ratios() -> None:
    # ratios [1.1, 1.1], [4, 1], [1/4, 1] and [8, 1/8]: geometric means 1.1, 2, 1/2 and 1
    ratios = vector(1.1, 1.1, 4.0, 1.0, 0.25, 1.0, 8.0, 0.125)
    trainer = ratios.log().requires_grad_()
    mask = response_mask(trainer, vector(*[0.0] * 8), [2, 2, 2, 2], 1.5)
    assert not mask.requires_grad
    assert mask.tolist() == [1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 1.0]
    # as long as four: the mean of a long response is judged, not its product of 1.1^8 = 2.1
    assert response_mask(vector(*[1.1] * 8).log(), vector(*[0.0] * 8), [8], 1.5).tolist() == [1.0] * 8
    with pytest.raises(ValueError, match="responses of 3 tokens"):
        response_mask(trainer, vector(*[0.0] * 8), [3], 1.5)


def test_the_old_policy_carries_no_gradient() -> None:
    old = vector(-1.0).requires_grad_()
    logprobs = vector(-1.1).requires_grad_()
    clipped_policy_loss(logprobs, old, vector(1.0), vector(0.0), **CLIP).loss.backward()
    assert old.grad is None
    assert logprobs.grad is not None


def test_supervised_loss_is_the_weighted_likelihood() -> None:
    logprobs = vector(-1.0, -3.0).requires_grad_()
    loss = nll_loss(logprobs, vector(0.5, 0.25))
    assert loss.item() == 1.25
    assert torch.autograd.grad(loss, logprobs)[0].tolist() == [-0.5, -0.25]


def test_vectors_of_different_length_are_refused() -> None:
    short, long = vector(-1.0), vector(-1.0, -1.0)
    with pytest.raises(ValueError, match=r"'positive_weights': \(1,\)"):
        clipped_policy_loss(long, long, short, long, **CLIP)
    with pytest.raises(ValueError, match="one entry per token"):
        nll_loss(long, short)
    with pytest.raises(ValueError, match="one entry per token"):
        importance_weights(long, short, 2.0)
    with pytest.raises(ValueError, match="one entry per token"):
        kl_estimate(long, short, "k3")


def test_kl_estimates_average_to_the_divergence() -> None:
    # p = (0.5, 0.3, 0.2), q = (0.25, 0.25, 0.5): E_p of k1 and of k3 is KL(p, q) exactly, E_p k3 - k1 = sum q - 1 = 0
    p, q = vector(0.5, 0.3, 0.2), vector(0.25, 0.25, 0.5)
    divergence = (p * (p / q).log()).sum()
    for estimator in ("k1", "k3"):
        torch.testing.assert_close((p * kl_estimate(p.log(), q.log(), estimator)).sum(), divergence)
    k2 = kl_estimate(p.log(), q.log(), "k2")
    torch.testing.assert_close(k2, 0.5 * (p / q).log().square())
    assert (kl_estimate(p.log(), q.log(), "k3") >= 0).all()
    assert kl_estimate(vector(math.log(0.5)), vector(math.log(0.25)), "k3").item() == pytest.approx(0.19315, abs=1e-5)
    with pytest.raises(ValueError, match="k4"):
        kl_estimate(p, q, "k4")


def test_gradients_of_the_kl_estimates() -> None:
    # over a softmax, E_p grad k2 is the KL's own gradient p_v (log p_v/q_v - KL); E_p grad k1 is 0
    logits = vector(0.3, -0.2, 1.0).requires_grad_()
    q = vector(0.25, 0.25, 0.5)
    p = logits.softmax(0)
    (expected,) = torch.autograd.grad((p * (p / q).log()).sum(), logits, retain_graph=True)
    gradients = {}
    for estimator in ("k1", "k2"):
        sampled = (p.detach() * kl_estimate(p.log(), q.log(), estimator)).sum()
        (gradients[estimator],) = torch.autograd.grad(sampled, logits, retain_graph=True)
    torch.testing.assert_close(gradients["k2"], expected)
    torch.testing.assert_close(gradients["k1"], torch.zeros(3, dtype=torch.float64), atol=1e-15, rtol=0)


def test_a_vanishing_policy_does_not_overflow_the_kl() -> None:
    logprobs = torch.tensor([-300.0], requires_grad=True)
    value = kl_estimate(logprobs, torch.tensor([0.0]), "k3")
    assert torch.isfinite(value).all()
    assert torch.isfinite(torch.autograd.grad(value.sum(), logprobs)[0]).all()


@pytest.mark.parametrize(
    ("measured", "factor"),
    # 1 + 0.1 clip(measured / target - 1, -0.2, 0.2) at a target of 0.1
    [(0.1, 1.0), (0.11, 1.01), (0.095, 0.995), (0.2, 1.02), (9.0, 1.02), (0.0, 0.98), (math.inf, 1.0), (math.nan, 1.0)],
)
def test_the_kl_controller_moves_by_at_most_a_fiftieth(measured: float, factor: float) -> None:
    assert adapted_kl_coefficient(0.05, measured, 0.1) == pytest.approx(0.05 * factor)
    assert adapted_kl_coefficient(0.05, measured, 0.0) == 0.05


@pytest.mark.parametrize(
    ("advantage", "ratio", "expected"),
    [
        (1.0, 0.5, -0.5),
        (1.0, 2.0, -1.28),
        (-1.0, 0.5, 0.8),
        (-1.0, 2.0, 2.0),
        (-1.0, 4.0, 3.0),  # dual clip
        (0.0, 9.0, 0.0),
    ],
)
def test_public_token_loss(advantage: float, ratio: float, expected: float) -> None:
    actual = reference_token_losses(vector(math.log(ratio)), vector(advantage), **CLIP)
    assert actual.item() == pytest.approx(expected)


def test_public_advantages_by_group() -> None:
    # group 0: 1 and 0, group 1: 5 and 5
    rewards = torch.tensor([[1.0], [5.0], [0.0], [5.0]])
    actual = reference_advantages(rewards, torch.tensor([0, 1, 0, 1]))[:, 0]
    torch.testing.assert_close(actual, torch.tensor([0.70711, 0.0, -0.70711, 0.0]), atol=1e-5, rtol=0)


def test_public_loss_depends_on_the_cut_and_can_be_nan() -> None:
    # rewards a: on rollout 0 only (1 token), b: on both (1 and 2 tokens); A = 0.7071, -0.7071; ratio 1
    batch = ReferenceBatch(
        rewards=torch.tensor([[1.0, 1.0], [0.0, 0.0]]),
        group_ids=torch.tensor([0, 0]),
        scope_mask=torch.tensor([[[True, False], [True, False]], [[False, False], [True, True]]]),
        old_logprobs=torch.zeros(2, 2),
    )
    logprobs = torch.zeros(2, 2)
    a = 0.70711
    # one micro-batch: K = 2, N_a = 1, N_b = 3: (-a + (-a + 2a) / 3) / 2
    whole = reference_loss(logprobs, batch, [[0, 1]], **CLIP)
    assert whole.item() == pytest.approx((-a + a / 3) / 2, abs=1e-5)
    # apart: (-a - a / 3) / 2 for the first (K = 2), and 2a / 3 / 1 for the second (K = 1)
    apart = reference_loss(logprobs, batch, [[0], [1]], **CLIP)
    assert apart.item() == pytest.approx((-a - a / 3) / 2 + 2 * a / 3, abs=1e-5)
    equal = ReferenceBatch(
        rewards=torch.ones(2, 2), group_ids=batch.group_ids, scope_mask=batch.scope_mask, old_logprobs=logprobs
    )
    assert math.isnan(reference_loss(logprobs, equal, [[0, 1]], **CLIP).item())


def test_public_scopes_and_filter() -> None:
    assert reference_scope(12, None, 40) == (12, 40)
    assert reference_scope(None, 7, 40) == (0, 7)
    assert reference_scope(None, None, 40) == (0, 40)
    assert reference_scope(9, 3, 40) == (9, 9)
    assert reference_keeps_group([0.0, 7.0])
    assert not reference_keeps_group([7.0, 7.0])
    assert not reference_keeps_group([0.0, 0.02])  # a mean of 0.01 is not inside
    assert reference_keeps_group([4.0] * 8)  # no sibling differs, kept all the same
