"""Log-probabilities of targets without all logits."""

from __future__ import annotations

import math

import pytest
import torch

from rsgrpo.model import memory_bounds
from rsgrpo.model.logprobs import LogprobHead, response_logprobs
from tests.live_bytes import LiveBytes


def _inputs(dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(7, 5, dtype=dtype, generator=generator).requires_grad_()
    weight = torch.randn(11, 5, dtype=dtype, generator=generator).requires_grad_()
    return hidden, weight, torch.randint(0, 11, (7,), generator=generator)


def test_uniform_distribution():
    # 4 equal logits: p = 1/4, log p = -log 4, H = log 4
    logprobs, entropy = response_logprobs(torch.zeros(2, 3), torch.ones(4, 3), torch.tensor([0, 3]), with_entropy=True)
    torch.testing.assert_close(logprobs, torch.full((2,), -math.log(4)))
    torch.testing.assert_close(entropy, torch.full((2,), math.log(4)))


@pytest.mark.parametrize("chunk_tokens", [0, 1, 3, 7, 100])
def test_values_and_gradients_equal_log_softmax(chunk_tokens):
    hidden, weight, targets = _inputs(torch.float32)
    distribution = torch.log_softmax(hidden @ weight.T, dim=-1)
    expected = distribution.gather(-1, targets[:, None])[:, 0]
    logprobs, entropy = response_logprobs(hidden, weight, targets, chunk_tokens=chunk_tokens, with_entropy=True)
    torch.testing.assert_close(logprobs, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(entropy, -(distribution.exp() * distribution).sum(-1), atol=1e-5, rtol=0)
    assert entropy is not None and not entropy.requires_grad
    # without the entropy everything else is the same to the bit
    alone, nothing = response_logprobs(hidden, weight, targets, chunk_tokens=chunk_tokens)
    assert nothing is None and torch.equal(alone, logprobs)
    upstream = torch.linspace(-1, 2, 7)
    grads = torch.autograd.grad(logprobs, [hidden, weight], upstream)
    for grad, other in zip(grads, torch.autograd.grad(alone, [hidden, weight], upstream), strict=True):
        assert torch.equal(grad, other)
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
    logits = torch.nn.functional.linear(hidden.float(), weight.float())
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


@pytest.mark.parametrize("block_weights", [2**22, 7 * 32], ids=["one block", "blocks of seven words"])
def test_a_bfloat16_head_computes_and_keeps_its_logits_in_float32(monkeypatch, block_weights):
    monkeypatch.setitem(memory_bounds.BLOCK_WEIGHTS, "cpu", block_weights)
    generator = torch.Generator().manual_seed(2)
    hidden = torch.randn(40, 32, generator=generator).bfloat16().requires_grad_()
    weight = torch.randn(101, 32, generator=generator).bfloat16().requires_grad_()
    targets = torch.randint(0, 101, (40,), generator=generator)
    logprobs, entropy = response_logprobs(hidden, weight, targets, chunk_tokens=16, with_entropy=True)
    assert entropy is not None and logprobs.dtype == entropy.dtype == torch.float32
    # bfloat16 operands are exact in float64; only the sum of 32 products, of size 5, is rounded to float32.
    exact_inputs = [x.detach().double().requires_grad_() for x in (hidden, weight)]
    exact = torch.log_softmax(exact_inputs[0] @ exact_inputs[1].T, dim=-1).gather(-1, targets[:, None])[:, 0]
    torch.testing.assert_close(logprobs.double(), exact, atol=2e-5, rtol=0)
    # Logits rounded to bfloat16 would be off by up to 2^-5 at sizes from 8 to 16.
    rounded = torch.log_softmax((hidden @ weight.T).float(), dim=-1).gather(-1, targets[:, None])[:, 0]
    assert float((rounded.double() - exact).detach().abs().max()) > 0.01
    upstream = torch.linspace(-1, 2, 40)
    got = torch.autograd.grad(logprobs, [hidden, weight], upstream)
    for grad, want in zip(got, torch.autograd.grad(exact, exact_inputs, upstream.double()), strict=True):
        assert grad.dtype == torch.bfloat16
        # Gradients of logits are rounded to bfloat16 once (2^-9), and so is the sum: no more than that in the norm.
        assert float((grad.double() - want).norm() / want.norm()) < 2**-8


def test_the_weights_gradient_is_not_rounded_between_chunks():
    # Two words, hidden 1: each of 600 tokens adds -p = -1/2 for the word that it is not, 300 in all. Chunks of one
    # token added up in bfloat16 would stop at 128, where 128.5 rounds to 128.
    hidden = torch.zeros(600, 1).bfloat16()
    hidden[:] = 1.0
    weight = torch.zeros(2, 1).bfloat16().requires_grad_()
    logprobs, _ = response_logprobs(hidden, weight, torch.zeros(600, dtype=torch.int64), chunk_tokens=1)
    (grad,) = torch.autograd.grad(logprobs.sum(), weight)
    assert grad[:, 0].tolist() == [300.0, -300.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_more_logits_than_a_chunk_and_no_more_float32_weights_than_a_block_exist(monkeypatch, dtype):
    monkeypatch.setitem(memory_bounds.CHUNK_LOGITS, "cpu", 2**15)  # 128 KiB, 8 rows
    monkeypatch.setitem(memory_bounds.BLOCK_WEIGHTS, "cpu", 2**15)  # 128 KiB, 512 words
    hidden = torch.randn(128, 64).to(dtype).requires_grad_()
    weight = torch.randn(4096, 64).to(dtype).requires_grad_()
    targets = torch.randint(0, 4096, (128,))
    with LiveBytes() as live:
        logprobs, _ = response_logprobs(hidden, weight, targets)
        grads = torch.autograd.grad(logprobs.sum(), [hidden, weight])
    # Inputs and both gradients stay, that of the weight in float32 until it is whole; and 4 numbers a row.
    stays = (
        sum(tensor.nbytes for tensor in (hidden, weight, *grads))
        + (dtype == torch.bfloat16) * weight.numel() * 4
        + 4 * 4 * 128
    )
    # A few times a chunk of logits (exp of it, its gradient) and of a block's products. All logits would take 2 MiB.
    assert live.peak < stays + 5 * 2**17 + 3 * 2**17


def test_a_float32_head_brings_engine_and_trainer_closer():
    """Hidden states that differ by bfloat16 noise; only the head's precision differs."""
    generator = torch.Generator().manual_seed(0)
    true = torch.randn(300, 512, generator=generator)
    weight = (torch.randn(2000, 512, generator=generator) * 0.16).bfloat16()  # logits with a deviation of 3.6
    engine, trainer = ((true * (1 + 1e-3 * torch.randn(300, 512, generator=generator))).bfloat16() for _ in range(2))
    targets = torch.multinomial(torch.softmax(true @ weight.float().T, -1), 1, generator=generator)[:, 0]

    def in_bfloat16(hidden: torch.Tensor) -> torch.Tensor:
        return torch.log_softmax((hidden @ weight.T).float(), -1).gather(-1, targets[:, None])[:, 0]

    def gap(ours: torch.Tensor, theirs: torch.Tensor) -> float:
        return float((ours - theirs).abs().quantile(0.99))

    exact = torch.log_softmax(engine.float() @ weight.float().T, -1).gather(-1, targets[:, None])[:, 0]
    now = gap(response_logprobs(trainer, weight, targets)[0], exact)
    before = gap(in_bfloat16(trainer), in_bfloat16(engine))
    assert now < before / 2


def test_head_keeps_the_parameter_and_the_plain_call():
    plain = torch.nn.Linear(5, 11, bias=False)
    head = LogprobHead(plain)
    assert head.weight is plain.weight
    hidden = torch.randn(3, 5)
    torch.testing.assert_close(head(hidden), plain(hidden))
    logprobs, _ = head(hidden, torch.tensor([1, 2, 3]))
    assert logprobs.shape == (3,)
