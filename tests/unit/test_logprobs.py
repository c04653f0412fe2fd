"""Log-probabilities of targets without all logits."""

from __future__ import annotations

import math

import pytest
import torch

from rsgrpo.logprobs import LogprobHead, response_logprobs


def _inputs(dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(7, 5, dtype=dtype, generator=generator).requires_grad_()
    weight = torch.randn(11, 5, dtype=dtype, generator=generator).requires_grad_()
    return hidden, weight, torch.randint(0, 11, (7,), generator=generator)


def test_uniform_distribution():
    # 4 equal logits: p = 1/4, log p = -log 4, H = log 4
    logprobs, entropy = response_logprobs(torch.zeros(2, 3), torch.ones(4, 3), torch.tensor([0, 3]))
    torch.testing.assert_close(logprobs, torch.full((2,), -math.log(4)))
    torch.testing.assert_close(entropy, torch.full((2,), math.log(4)))


@pytest.mark.parametrize("chunk_tokens", [0, 1, 3, 7, 100])
def test_values_and_gradients_equal_log_softmax(chunk_tokens):
    hidden, weight, targets = _inputs(torch.float32)
    distribution = torch.log_softmax(hidden @ weight.T, dim=-1)
    expected = distribution.gather(-1, targets[:, None])[:, 0]
    logprobs, entropy = response_logprobs(hidden, weight, targets, chunk_tokens=chunk_tokens)
    torch.testing.assert_close(logprobs, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(entropy, -(distribution.exp() * distribution).sum(-1), atol=1e-5, rtol=0)
    assert not entropy.requires_grad
    upstream = torch.linspace(-1, 2, 7)
    grads = torch.autograd.grad(logprobs, [hidden, weight], upstream)
    for grad, want in zip(grads, torch.autograd.grad(expected, [hidden, weight], upstream), strict=True):
        torch.testing.assert_close(grad, want, atol=1e-5, rtol=0)


@pytest.mark.parametrize("chunk_tokens", [0, 2])
def test_values_and_gradients_at_a_temperature_equal_those_of_logits_over_it(chunk_tokens):
    hidden, weight, targets = _inputs(torch.float32)
    temperatures = torch.tensor([0.3, 0.6, 1.0, 1.0, 1.3, 2.0, 0.7])
    expected = torch.log_softmax(hidden @ weight.T / temperatures[:, None], dim=-1).gather(-1, targets[:, None])[:, 0]
    logprobs, _ = response_logprobs(hidden, weight, targets, temperatures=temperatures, chunk_tokens=chunk_tokens)
    torch.testing.assert_close(logprobs, expected, atol=1e-5, rtol=0)
    upstream = torch.linspace(-1, 2, 7)
    grads = torch.autograd.grad(logprobs, [hidden, weight], upstream)
    for grad, want in zip(grads, torch.autograd.grad(expected, [hidden, weight], upstream), strict=True):
        torch.testing.assert_close(grad, want, atol=1e-5, rtol=0)


@pytest.mark.parametrize("temperature", [0.6, 0.7, 0.9, 1.2])
def test_a_bfloat16_model_means_the_engines_distribution_at_any_temperature(temperature):
    # The engine divides float32 logits. Dividing bfloat16 states by a bfloat16 temperature was 0.027 nats off.
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(400, 512, generator=generator).bfloat16()
    weight = (torch.randn(2000, 512, generator=generator) * 0.16).bfloat16()  # logits with a deviation of 3.6
    targets = torch.randint(0, 2000, (400,), generator=generator)
    logits = torch.nn.functional.linear(hidden, weight).float()
    engine = torch.log_softmax(logits / temperature, -1).gather(-1, targets[:, None])[:, 0]
    trainer, _ = response_logprobs(hidden, weight, targets, temperatures=torch.full((400,), temperature))
    assert float((trainer - engine).abs().mean()) < 1e-5


def test_frozen_weight_gets_no_gradient_and_hidden_still_does():
    hidden, weight, targets = _inputs(torch.float32)
    weight.requires_grad_(False)
    logprobs, _ = response_logprobs(hidden, weight, targets)
    logprobs.sum().backward()
    assert weight.grad is None
    assert hidden.grad is not None and float(hidden.grad.abs().sum()) > 0


def test_softmax_is_float32_for_bfloat16_models():
    hidden, weight, targets = _inputs(torch.bfloat16)
    logprobs, entropy = response_logprobs(hidden, weight, targets)
    assert logprobs.dtype == entropy.dtype == torch.float32
    exact = torch.log_softmax((hidden @ weight.T).float(), dim=-1).gather(-1, targets[:, None])[:, 0]
    torch.testing.assert_close(logprobs, exact, atol=1e-6, rtol=0)


def test_head_keeps_the_parameter_and_the_plain_call():
    plain = torch.nn.Linear(5, 11, bias=False)
    head = LogprobHead(plain)
    assert head.weight is plain.weight
    hidden = torch.randn(3, 5)
    torch.testing.assert_close(head(hidden), plain(hidden))
    logprobs, _ = head(hidden, torch.tensor([1, 2, 3]))
    assert logprobs.shape == (3,)
