"""Windows of the vision tower in few calls against one call a window."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rsgrpo.model.attention.windows import grouped_window_attention
from tests.examples import examples

HEADS, WIDTH, SCALING = 2, 3, 0.6


def _one_by_one(inputs: list[torch.Tensor], lengths: list[int]) -> torch.Tensor:
    parts = zip(*(tensor.split(lengths, dim=2) for tensor in inputs), strict=True)
    alone = [torch.softmax(q @ k.transpose(2, 3) * SCALING, dim=-1) @ v for q, k, v in parts]
    return torch.cat(alone, dim=2).transpose(1, 2)


@examples(30)
@given(lengths=st.lists(st.sampled_from([1, 2, 4, 16]), min_size=1, max_size=12))
def test_grouped_windows_equal_one_call_a_window(lengths):
    generator = torch.Generator().manual_seed(len(lengths))
    inputs = [
        torch.randn(1, HEADS, sum(lengths), WIDTH, dtype=torch.float64, generator=generator).requires_grad_()
        for _ in range(3)
    ]
    query, key, value = inputs
    offsets = torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32)
    got, weights = grouped_window_attention(
        torch.nn.Identity(), query, key, value, None, scaling=SCALING, cu_seq_lens_q=offsets, max_length_q=max(lengths)
    )
    expected = _one_by_one(inputs, lengths)
    assert weights is None
    torch.testing.assert_close(got, expected, atol=1e-12, rtol=0)
    upstream = torch.randn(got.shape, dtype=torch.float64, generator=generator)
    for grad, want in zip(
        torch.autograd.grad(got, inputs, upstream), torch.autograd.grad(expected, inputs, upstream), strict=True
    ):
        torch.testing.assert_close(grad, want, atol=1e-11, rtol=0)


@pytest.mark.parametrize(("lengths", "num_calls"), [([4] * 6, 1), ([4, 2, 4, 2, 1], 3)])
def test_windows_of_one_length_are_one_kernel_call(monkeypatch, lengths, num_calls):
    calls = []
    kernel = torch.nn.functional.scaled_dot_product_attention

    def counting(*args, **kwargs):
        calls.append(args[0].shape)
        return kernel(*args, **kwargs)

    monkeypatch.setattr("torch.nn.functional.scaled_dot_product_attention", counting)
    query, key, value = (torch.randn(1, HEADS, sum(lengths), WIDTH) for _ in range(3))
    offsets = torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32)
    grouped_window_attention(torch.nn.Identity(), query, key, value, None, scaling=SCALING, cu_seq_lens_q=offsets)
    assert len(calls) == num_calls
