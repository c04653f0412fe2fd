"""Gated delta nets: the rule against its recurrence, and packed rows against every response on its own."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import Qwen3_5TextConfig
from transformers.models.qwen3_5 import modeling_qwen3_5 as reference

from rsgrpo.model.attention import delta_rule
from rsgrpo.model.attention.backend import BackendChoice
from rsgrpo.model.attention.delta_net import delta_plan, use_packed_delta_nets
from rsgrpo.model.attention.delta_rule import choose_rule, chunked_delta_rule, fla_delta_rule, rule_problem
from rsgrpo.model.micro_batches import PackedSequence, Segment, pack
from tests.examples import examples

CPU = torch.device("cpu")
SHAPES = st.lists(
    st.tuples(st.integers(1, 9), st.lists(st.integers(1, 7), min_size=1, max_size=4)), min_size=1, max_size=4
)


def _row(shapes: list[tuple[int, list[int]]]) -> PackedSequence:
    return pack(
        [
            Segment(
                group=i, responses=tuple(range(len(lengths))), num_prompt_tokens=prompt, response_lengths=tuple(lengths)
            )
            for i, (prompt, lengths) in enumerate(shapes)
        ]
    )


def _inputs(tokens: int, seed: int = 0) -> list[Tensor]:
    """Query and key of 2 heads, value of 4, decay, rate and a state to go on from, two rows, float64."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(2, *shape, dtype=torch.float64, generator=generator)

    drawn = [draw(tokens, 2, 3), draw(tokens, 2, 3), draw(tokens, 4, 5)]
    drawn += [-draw(tokens, 4).exp(), draw(tokens, 4).sigmoid(), draw(4, 3, 5)]
    return [tensor.requires_grad_() for tensor in drawn]


class _WrittenBytes(TorchDispatchMode):
    """Adds up the bytes of whatever operations make inside the block."""

    total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.total += sum(leaf.nbytes for leaf in tree_leaves(out) if isinstance(leaf, Tensor))
        return out


def _token_by_token(
    query: Tensor, key: Tensor, value: Tensor, decay: Tensor, rate: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """The definition, as the module's docstring writes it."""

    def unit(vectors: Tensor) -> Tensor:
        return vectors / (vectors.square().sum(-1, keepdim=True) + 1e-6).sqrt()

    outs = []
    for t in range(query.shape[1]):
        q, k = (unit(x[:, t]).repeat_interleave(2, dim=1) for x in (query, key))
        state = state * decay[:, t].exp()[..., None, None]
        wrong = value[:, t] - torch.einsum("nhkv,nhk->nhv", state, k)
        state = state + torch.einsum("nhk,nhv->nhkv", k, wrong * rate[:, t, :, None])
        outs.append(torch.einsum("nhkv,nhk->nhv", state, q) * 3**-0.5)
    return torch.stack(outs, dim=1), state


def _results(rule: Callable[..., tuple[Tensor, Tensor]], inputs: list[Tensor]) -> list[Tensor]:
    out, last = rule(*inputs)
    return [out, last, *torch.autograd.grad(out.sin().sum() + last.sin().sum(), inputs)]


@pytest.mark.parametrize("tokens", [1, 64, 131], ids=["one token", "a chunk", "two chunks and a part"])
def test_the_rule_in_chunks_is_its_recurrence_and_so_are_its_gradients(tokens: int) -> None:
    inputs = _inputs(tokens)
    for got, want in zip(_results(chunked_delta_rule, inputs), _results(_token_by_token, inputs), strict=True):
        torch.testing.assert_close(got, want, atol=1e-10, rtol=1e-8)


def test_padding_leaves_the_state_as_it_is() -> None:
    query, key, value, decay, rate, state = _inputs(9)
    is_real = (torch.arange(9) < 5)[None, :, None].double()
    _, padded = chunked_delta_rule(query, key, value, decay * is_real, rate * is_real, state)
    _, short = chunked_delta_rule(query[:, :5], key[:, :5], value[:, :5], decay[:, :5], rate[:, :5], state)
    torch.testing.assert_close(padded, short, atol=1e-12, rtol=0)


@given(SHAPES)
@examples(50)
def test_every_position_has_one_slot_and_responses_know_their_prompt(shapes: list[tuple[int, list[int]]]) -> None:
    row = _row(shapes)
    plan = delta_plan(row, device=CPU, dtype=torch.float32)
    is_real = plan.is_real[:, 0].bool()
    assert sorted(plan.pad_index[is_real].tolist()) == list(range(row.num_tokens))
    assert plan.pad_index[plan.unpad_index].tolist() == list(range(row.num_tokens))
    last = [
        start + segment.num_prompt_tokens - 1 for start, segment in zip(row.prompt_starts, row.segments, strict=True)
    ]
    number = {last.index(position): n for n, position in enumerate(plan.pad_index[plan.ends].tolist())}
    assert [row.segments[place].num_prompt_tokens for place in number] == plan.lengths.tolist()
    for rows in plan.responses:
        owners = [owner for owner, count in rows.owners for _ in range(count)]
        firsts = rows.cut(plan.pad_index)[:, 0].tolist()
        assert owners == [number[row.response_segments[row.response_starts.index(first)]] for first in firsts]


@pytest.fixture(scope="module")
def net() -> Any:
    torch.manual_seed(0)
    config = Qwen3_5TextConfig(
        hidden_size=16,
        linear_key_head_dim=4,
        linear_value_head_dim=4,
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        num_hidden_layers=2,
        layer_types=["linear_attention", "full_attention"],
    )
    found = reference.Qwen3_5GatedDeltaNet(config, 0)
    with torch.no_grad():
        for parameter in found.parameters():
            parameter.normal_(0.0, 0.5)
    return found


@given(SHAPES)
@examples(15)
def test_each_response_goes_on_from_its_own_prompt(net: Any, shapes: list[tuple[int, list[int]]]) -> None:
    # Prompts shorter than the convolution's four inputs among them. Of transformers' layer every prompt and response
    # is a row of its own.
    row = _row(shapes)
    hidden = torch.randn(1, row.num_tokens, 16, generator=torch.Generator().manual_seed(1)).requires_grad_()
    upstream = torch.randn(1, row.num_tokens, 16, generator=torch.Generator().manual_seed(2))
    wanted = torch.zeros(1, row.num_tokens, 16)
    for start, segment in zip(row.prompt_starts, row.segments, strict=True):
        wanted[:, start : start + segment.num_prompt_tokens] = net(hidden[:, start : start + segment.num_prompt_tokens])
    for start, owner, length in zip(row.response_starts, row.response_segments, row.response_lengths, strict=True):
        first, count = row.prompt_starts[owner], row.segments[owner].num_prompt_tokens
        whole = torch.cat([hidden[:, first : first + count], hidden[:, start : start + length]], dim=1)
        wanted[:, start : start + length] = net(whole)[:, count:]
    packed_net = SimpleNamespace(layers=[SimpleNamespace(linear_attn=net), SimpleNamespace()])
    inputs = [hidden, *net.parameters()]
    wanted_gradients = torch.autograd.grad((wanted * upstream).sum(), inputs)
    try:
        use_packed_delta_nets(packed_net, "linear_attn")  # type: ignore[arg-type]  # of a model only its layers count
        got = net(hidden, delta_plan=delta_plan(row, device=CPU, dtype=torch.float32))
    finally:
        del net.forward
    torch.testing.assert_close(got, wanted, atol=2e-5, rtol=1e-5)
    for gradient, want in zip(torch.autograd.grad((got * upstream).sum(), inputs), wanted_gradients, strict=True):
        assert float((gradient - want).norm()) < 1e-5 * float(want.norm() + hidden.detach().norm())


def test_the_call_of_the_kernel_is_that_of_its_interface(monkeypatch: pytest.MonkeyPatch) -> None:
    # transformers' function has the interface of fla's kernel, which runs on CUDA only.
    monkeypatch.setattr(delta_rule, "_fla_kernel", lambda: reference.torch_chunk_gated_delta_rule)
    assert rule_problem(fla_delta_rule, device=CPU, dtype=torch.float32) == ""


def test_a_kernel_that_forgets_what_a_row_goes_on_from_is_not_used() -> None:
    def forgets(
        query: Tensor, key: Tensor, value: Tensor, decay: Tensor, rate: Tensor, state: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        assert state is not None
        return chunked_delta_rule(query, key, value, decay, rate, 0.0 * state)

    def fails(*inputs: Any) -> tuple[Tensor, Tensor]:
        raise RuntimeError("no kernel image")

    assert "is off by" in rule_problem(forgets, device=CPU, dtype=torch.float32)
    problem = rule_problem(fails, device=CPU, dtype=torch.float32)
    assert problem == "its kernel does not run: RuntimeError: no kernel image"


def test_what_computes_delta_nets_is_said() -> None:
    choice = choose_rule(device=CPU, dtype=torch.float32)
    assert choice.rule is chunked_delta_rule
    whole = BackendChoice(setting="sdpa", device="cpu", delta_nets=choice)
    assert whole.lines()[1:] == ("gated delta nets: torch on cpu; not fla: the device is cpu",)


def test_responses_of_one_length_are_one_call() -> None:
    # A prompt of 2,048 with 8 responses of 256: one call for the prompt, one for all responses, nothing padded.
    plan = delta_plan(_row([(2048, [256] * 8)]), device=CPU, dtype=torch.float32)
    assert [(rows.count, rows.width) for rows in (*plan.prompts, *plan.responses)] == [(1, 2048), (8, 256)]
    assert np.array_equal(plan.pad_index.numpy(), np.arange(4096))
    # Beside a prompt of 2,000 one of 100 would be 20 times padded: a call of its own.
    plan = delta_plan(_row([(2000, [5]), (100, [9])]), device=CPU, dtype=torch.float32)
    assert [(rows.count, rows.width) for rows in (*plan.prompts, *plan.responses)] == [(1, 2000), (1, 100), (2, 9)]


def test_twice_the_tokens_take_no_more_than_twice_the_work() -> None:
    # With an index for each chunk, which writes a row of zeros for every one of them, it would be 2.9 times.
    written = []
    for tokens in (512, 1024):
        out, _ = chunked_delta_rule(*_inputs(tokens))
        with _WrittenBytes() as work:
            out.sum().backward()
        written.append(work.total)
    assert written[1] <= 2.05 * written[0]
