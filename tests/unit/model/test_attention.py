"""Attention over packed rows against plain causal attention of every response on its own."""

from __future__ import annotations

import dataclasses
import sys
import types

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch._dynamo.testing import CompileCounter
from torch.nn.attention.flex_attention import flex_attention

from rsgrpo.io.record_codec import from_plain, to_plain
from rsgrpo.model.attention import backend as attention
from rsgrpo.model.attention import flex, tiled, varlen
from rsgrpo.model.attention import tiled_plan as plans
from rsgrpo.model.attention.backend import (
    AttentionUnavailableError,
    BackendChoice,
    PassedOver,
    choose_backend,
    packed_attention,
)
from rsgrpo.model.attention.flex import flex_plan, padded_length
from rsgrpo.model.attention.tiled_plan import tiled_plan
from rsgrpo.model.attention.varlen import varlen_plan
from rsgrpo.model.micro_batches import PackedSequence, Segment, pack
from tests.examples import examples

HEADS, KEY_HEADS, WIDTH, SCALING = 4, 2, 3, 0.7
CPU = torch.device("cpu")

ROWS = st.lists(
    st.tuples(st.integers(1, 6), st.lists(st.integers(1, 5), min_size=1, max_size=4)), min_size=1, max_size=4
)


def _row(shapes: list[tuple[int, list[int]]]) -> PackedSequence:
    return pack(
        [
            Segment(
                group=i,
                responses=tuple(range(len(lengths))),
                num_prompt_tokens=prompt,
                response_lengths=tuple(lengths),
            )
            for i, (prompt, lengths) in enumerate(shapes)
        ]
    )


def _inputs(row: PackedSequence, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(1, heads, row.num_tokens, WIDTH, dtype=torch.float64, generator=generator).requires_grad_()
        for heads in (HEADS, KEY_HEADS, KEY_HEADS)
    ]


def _causal(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """[heads, L, D] plain causal attention whose last query sees all keys."""
    key, value = (x.repeat_interleave(HEADS // KEY_HEADS, dim=0) for x in (key, value))
    scores = query @ key.transpose(1, 2) * SCALING
    seen = torch.ones(scores.shape[1:], dtype=torch.bool).tril(scores.shape[2] - scores.shape[1])
    return torch.softmax(scores.masked_fill(~seen, -torch.inf), dim=-1) @ value


def _reference(row: PackedSequence, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Every response as a sequence of its own: prompt + response."""
    out = torch.zeros(row.num_tokens, HEADS, WIDTH, dtype=query.dtype)
    for index, (start, length) in enumerate(zip(row.response_starts, row.response_lengths, strict=True)):
        segment = row.response_segments[index]
        first = row.prompt_starts[segment]
        num_prompt = row.segments[segment].num_prompt_tokens
        where = torch.tensor([*range(first, first + num_prompt), *range(start, start + length)])
        alone = _causal(query[0][:, where], key[0][:, where], value[0][:, where]).transpose(0, 1)
        out = out.index_put((where,), alone)
    return out[None]


def _run(row: PackedSequence, inputs: list[torch.Tensor]) -> torch.Tensor:
    query, key, value = inputs
    plan = tiled_plan(row, device=CPU)
    out, weights = packed_attention(torch.nn.Identity(), query, key, value, None, scaling=SCALING, attention_plan=plan)
    assert weights is None
    return out


@pytest.mark.parametrize("tile_scores", [2**19, 200, 1], ids=["one tile", "some segments a tile", "stretches"])
@examples(30)
@given(shapes=ROWS, upstream_seed=st.integers(0, 100))
def test_values_and_gradients_equal_responses_on_their_own(tile_scores, shapes, upstream_seed):
    row = _row(shapes)
    inputs = _inputs(row)
    upstream = torch.randn(
        1, row.num_tokens, HEADS, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(upstream_seed)
    )
    expected = _reference(row, *inputs)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiled, "_TILE_SCORES", tile_scores)
        patch.setattr(tiled, "_MIN_QUERIES", 2)
        got = _run(row, inputs)
        torch.testing.assert_close(got, expected, atol=1e-12, rtol=0)
        grads = torch.autograd.grad(got, inputs, upstream)
    for grad, want in zip(grads, torch.autograd.grad(expected, inputs, upstream), strict=True):
        torch.testing.assert_close(grad, want, atol=1e-11, rtol=0)


def test_unlike_lengths_are_not_padded_to_each_other():
    # Padding three prompts of 10 to 3000 would cost 3 · 9e6 scores for 9e6 real ones, and a response of 4
    # beside one of 2000 would cost 2000 · 5000 instead of 4 · 3004.
    row = _row([(10, [4]), (3000, [4, 2000]), (10, [4, 4]), (10, [4])])
    plan = tiled_plan(row, device=CPU)
    shapes = [(b.prompts.count, b.prompts.width, [(r.count, r.width) for r in b.responses]) for b in plan.blocks]
    assert shapes == [(1, 3000, [(1, 2000), (1, 4)]), (3, 10, [(4, 4)])]
    # every row position stands in one slot, and that slot holds it
    assert torch.equal(plan.pad_index[plan.unpad_index], torch.arange(row.num_tokens))
    assert int(plan.is_real.sum()) == row.num_tokens == len(plan.unpad_index.unique())


@pytest.mark.parametrize("free_scores", [0, 30])
@examples(30)
@given(shapes=ROWS)
def test_many_small_blocks_give_the_same(free_scores, shapes):
    row = _row(shapes)
    inputs = _inputs(row)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plans, "_FREE_SCORES", free_scores)
        got = _run(row, inputs)
    expected = _reference(row, *inputs)
    torch.testing.assert_close(got, expected, atol=1e-12, rtol=0)
    for grad, want in zip(
        torch.autograd.grad(got.square().sum(), inputs),
        torch.autograd.grad(expected.square().sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(grad, want, atol=1e-11, rtol=0)


@examples(30)
@given(shapes=ROWS)
def test_varlen_plan_describes_the_same_attention(shapes):
    row = _row(shapes)
    query, key, value = _inputs(row)
    plan = varlen_plan(row, device=CPU)
    queries, keys = plan.query_offsets.tolist(), plan.key_offsets.tolist()
    assert plan.max_queries == max(np.diff(queries)) and plan.max_keys == max(np.diff(keys))
    parts = []
    for i in range(len(queries) - 1):
        index = plan.key_index[keys[i] : keys[i + 1]]
        # FlashAttention's causal mask lines the last query up with the last key, as _causal does.
        parts.append(_causal(query[0, :, queries[i] : queries[i + 1]], key[0][:, index], value[0][:, index]))
    got = torch.cat(parts, dim=1).transpose(0, 1)[None]
    torch.testing.assert_close(got, _reference(row, query, key, value), atol=1e-12, rtol=0)


@pytest.mark.parametrize("is_installed", [True, False])
def test_both_flash_backends_hand_their_kernel_the_same_attention(monkeypatch, is_installed):
    # The kernels are CUDA only: in their place stands their definition, so that what we hand to them is checked.
    row = _row([(5, [4, 3]), (2, [6])])
    query, key, value = _inputs(row)

    def by_definition(query, key, value, offsets_q, offsets_k, max_q, max_k, **options):
        if is_installed:
            assert options == {"softmax_scale": SCALING, "causal": True}
        else:
            assert options == {"scale": SCALING, "window_size": (-1, 0), "enable_gqa": True}
        assert (max_q, max_k) == (int(offsets_q.diff().max()), int(offsets_k.diff().max()))
        parts = zip(
            query.split(offsets_q.diff().tolist()),
            key.split(offsets_k.diff().tolist()),
            value.split(offsets_k.diff().tolist()),
            strict=True,
        )
        return torch.cat([_causal(*(x.transpose(0, 1) for x in part)).transpose(0, 1) for part in parts])

    if is_installed:
        package = types.SimpleNamespace(flash_attn_varlen_func=by_definition)
    else:
        package = types.SimpleNamespace()  # a build that does not load: nothing to import from it
        monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", by_definition)
    monkeypatch.setitem(sys.modules, "flash_attn", package)
    varlen._flash_attn_kernel.cache_clear()
    got, _ = packed_attention(
        torch.nn.Identity(), query, key, value, None, scaling=SCALING, attention_plan=varlen_plan(row, device=CPU)
    )
    varlen._flash_attn_kernel.cache_clear()
    inputs = (query, key, value)
    expected = _reference(row, *inputs)
    torch.testing.assert_close(got, expected, atol=1e-12, rtol=0)
    for grad, want in zip(
        torch.autograd.grad(got.sin().sum(), inputs), torch.autograd.grad(expected.sin().sum(), inputs), strict=True
    ):
        torch.testing.assert_close(grad, want, atol=1e-12, rtol=0)


@examples(3)
@given(shapes=ROWS)
def test_flex_sees_the_same(shapes):
    # torch has no backward pass of flex_attention on a CPU: gradients are tried where the backend is chosen, on a GPU
    row = _row([(140, [3, 2]), *shapes])  # more than one block of 128
    query, key, value = _inputs(row)
    with torch.no_grad():
        plan = flex_plan(row, device=CPU)
        got, _ = packed_attention(torch.nn.Identity(), query, key, value, None, scaling=SCALING, attention_plan=plan)
    torch.testing.assert_close(got, _reference(row, query, key, value), atol=1e-12, rtol=0)


def _seen(row: PackedSequence, num_padded: int) -> torch.Tensor:
    """[padded, padded] bool: which key a query sees, segment by segment; padding sees itself."""
    seen = torch.zeros(num_padded, num_padded, dtype=torch.bool)
    for start, segment in zip(row.prompt_starts, row.segments, strict=True):
        seen[start : start + segment.num_prompt_tokens, start : start + segment.num_prompt_tokens] = True
    for start, length, owner in zip(row.response_starts, row.response_lengths, row.response_segments, strict=True):
        first = row.prompt_starts[owner]
        seen[start : start + length, first : first + row.segments[owner].num_prompt_tokens] = True
        seen[start : start + length, start : start + length] = True
    return seen.tril() | torch.eye(num_padded, dtype=torch.bool)


@examples(20)
@given(
    shapes=st.lists(
        st.tuples(st.integers(1, 400), st.lists(st.integers(1, 300), min_size=1, max_size=4)), min_size=1, max_size=3
    )
)
def test_flex_blocks_are_those_that_are_seen(shapes):
    row = _row(shapes)
    mask = flex_plan(row, device=CPU).block_mask
    num_blocks = padded_length(row.num_tokens) // 128
    pairs = _seen(row, num_blocks * 128).view(num_blocks, 128, num_blocks, 128).sum((1, 3))  # of 16,384 each
    for counts, indexes, chosen in (
        (mask.kv_num_blocks, mask.kv_indices, (pairs > 0) & (pairs < 128 * 128)),
        (mask.full_kv_num_blocks, mask.full_kv_indices, pairs == 128 * 128),
    ):
        assert counts is not None and indexes is not None
        lists = [indexes[0, 0, i, : counts[0, 0, i]].tolist() for i in range(num_blocks)]
        assert lists == [blocks.nonzero()[:, 0].tolist() for blocks in chosen]


@given(st.integers(1, 200_000))
def test_padded_rows_are_of_few_lengths(num_tokens):
    padded = padded_length(num_tokens)
    assert padded % 128 == 0 and padded >= num_tokens
    assert padded == 128 or padded < 2 * num_tokens
    assert padded_length(padded) == padded
    # 128, 256, ... 262,144: twelve lengths whatever rows come
    assert padded in {128 << doubling for doubling in range(12)}


def test_flex_compiles_once_for_each_power_of_two(monkeypatch):
    """Any backend shows how often torch compiles anew; a GPU's kernels are only what it would do with each graph."""
    torch._dynamo.reset()
    counter = CompileCounter()
    monkeypatch.setattr(flex._Compiled, "kernel", torch.compile(flex_attention, dynamic=False, backend=counter))
    compiled = []
    for prompt, lengths in [(40, [30, 20]), (90, [7]), (128, [1]), (100, [60, 50, 46]), (10, [3] * 30), (300, [9])]:
        row = _row([(prompt, lengths)])
        query, key, value = _inputs(row)
        plan = dataclasses.replace(flex_plan(row, device=CPU), is_compiled=True)
        with torch.no_grad():
            got, _ = packed_attention(
                torch.nn.Identity(), query, key, value, None, scaling=SCALING, attention_plan=plan
            )
        torch.testing.assert_close(got, _reference(row, query, key, value), atol=1e-12, rtol=0)
        compiled.append(counter.frame_count)
    # 90, 97, 129, 256, 100 and 309 tokens stand in 128, 128, 256, 256, 128 and 512.
    assert compiled == [1, 1, 2, 2, 2, 3]
    torch._dynamo.reset()


def test_bfloat16_rows_are_summed_in_float32():
    row = _row([(40, [30, 20]), (33, [7])])
    inputs = [x.detach().to(torch.bfloat16).requires_grad_() for x in _inputs(row)]
    exact = [x.detach().double().requires_grad_() for x in inputs]
    got, expected = _run(row, inputs), _run(row, exact)
    assert got.dtype == torch.bfloat16
    # one rounding to 8 bits at the end, not one a score: half a unit of 2^-8 of the largest entry
    bound = float(expected.detach().abs().max()) * 2**-8
    assert float((got.double() - expected).detach().abs().max()) <= bound
    for grad, want in zip(
        torch.autograd.grad(got.sum(), inputs), torch.autograd.grad(expected.sum(), exact), strict=True
    ):
        assert grad.dtype == torch.bfloat16
        assert float((grad.double() - want).norm() / want.norm()) < 0.02


@pytest.mark.parametrize("working", [("varlen", "flex"), ("flex",), ()])
def test_auto_takes_the_first_attention_backend_that_works(monkeypatch, working):
    monkeypatch.setattr(attention, "backend_problem", lambda backend, **_: "" if backend in working else "no kernel")
    assert choose_backend("auto", device=CPU, dtype=torch.bfloat16).backend == (*working, "tiled")[0]
    assert choose_backend("sdpa", device=CPU, dtype=torch.bfloat16).backend == "tiled"
    if "varlen" not in working:
        with pytest.raises(AttentionUnavailableError, match=r"model\.attention=flash cannot be used: no kernel"):
            choose_backend("flash", device=CPU, dtype=torch.bfloat16)


def test_flash_is_refused_on_a_cpu_and_auto_falls_back():
    choice = choose_backend("auto", device=CPU, dtype=torch.bfloat16)
    assert choice.backend == "tiled"
    # A CPU has nothing faster: one line, no warning.
    assert choice.lines() == ("attention: sdpa on cpu; not flash: the device is cpu; not flex: the device is cpu",)
    assert choose_backend("sdpa", device=CPU, dtype=torch.float32).lines() == ("attention: sdpa on cpu",)
    with pytest.raises(
        AttentionUnavailableError, match=r"model\.attention=flash.*device is cpu.*model\.attention=auto"
    ):
        choose_backend("flash", device=CPU, dtype=torch.bfloat16)
    with pytest.raises(AttentionUnavailableError, match=r"model\.attention=flex.*device is cpu"):
        choose_backend("flex", device=CPU, dtype=torch.float32)


def _door_problems_on_a_gpu(monkeypatch, problems):
    monkeypatch.setattr(attention, "backend_problem", lambda backend, **_: problems.get(backend, ""))
    return torch.device("cuda", 0)


def test_what_auto_passed_over_is_said_with_its_reason(monkeypatch):
    device = _door_problems_on_a_gpu(monkeypatch, {"varlen": "its kernel does not run: ImportError: no flash"})
    choice = choose_backend("auto", device=device, dtype=torch.bfloat16)
    assert (choice.setting, choice.passed_over) == (
        "flex",
        (PassedOver(setting="flash", reason="its kernel does not run: ImportError: no flash"),),
    )
    assert choice.lines() == ("attention: flex on cuda; not flash: its kernel does not run: ImportError: no flash",)
    assert from_plain(BackendChoice, to_plain(choice)) == choice


def test_auto_that_ends_on_tiles_on_a_gpu_is_a_warning(monkeypatch):
    device = _door_problems_on_a_gpu(monkeypatch, {"varlen": "no kernel", "flex": "its kernel is off by 0.100"})
    first, warning = choose_backend("auto", device=device, dtype=torch.bfloat16).lines()
    assert first == "attention: sdpa on cuda; not flash: no kernel; not flex: its kernel is off by 0.100"
    assert warning.startswith("warning: model.attention=auto ended on sdpa")
    # What was asked for is no fallback.
    assert choose_backend("sdpa", device=device, dtype=torch.bfloat16).lines() == ("attention: sdpa on cuda",)


def test_the_kernel_of_flash_is_named(monkeypatch):
    device = _door_problems_on_a_gpu(monkeypatch, {})
    monkeypatch.setattr(attention, "flash_kernel_name", lambda: "torch")
    assert choose_backend("flash", device=device, dtype=torch.bfloat16).lines() == ("attention: flash (torch) on cuda",)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RuntimeError("CUDA error: no kernel image"), "its kernel does not run: RuntimeError: CUDA error: no kernel"),
        (ImportError("undefined symbol"), "its kernel does not run: ImportError: undefined symbol"),
    ],
)
def test_whatever_a_kernel_raises_is_the_reason(monkeypatch, error, said):
    def trial(backend, *_args, **_kwargs):
        if backend == "tiled":
            return [torch.zeros(2)]
        raise error

    monkeypatch.setattr(attention, "_trial", trial)
    problem = attention.backend_problem.__wrapped__
    assert problem("flex", device=torch.device("cuda", 0), dtype=torch.bfloat16).startswith(said)


@pytest.mark.parametrize(("off_by", "is_usable"), [(0.01, True), (0.1, False), (float("nan"), False)])
def test_a_kernel_that_computes_something_else_is_not_used(monkeypatch, off_by, is_usable):
    monkeypatch.setattr(
        attention, "_trial", lambda backend, *_, **__: [torch.full((2,), off_by * (backend != "tiled"))]
    )
    problem = attention.backend_problem.__wrapped__("flex", device=torch.device("cuda", 0), dtype=torch.bfloat16)
    assert (problem == "") == is_usable


def _repeated(grad: torch.Tensor, plan: varlen.VarlenPlan, num_tokens: int) -> torch.Tensor:
    row = torch.zeros(num_tokens, *grad.shape[1:], dtype=grad.dtype, requires_grad=True)
    keys = varlen._RepeatPrompts.apply(row, plan)
    return torch.autograd.grad(keys, row, grad)[0]


@examples(30)
@given(shapes=ROWS, seed=st.integers(0, 100))
def test_gradients_of_shared_keys_are_summed_in_float32_and_rounded_once(shapes, seed):
    row = _row(shapes)
    plan = varlen_plan(row, device=CPU)
    # Whole numbers up to 2^7 over 2^3: float32 adds them exactly in any order, bfloat16 (8 bits) does not.
    generator = torch.Generator().manual_seed(seed)
    grad = (torch.randint(-127, 128, (len(plan.key_index), 2, 3), generator=generator) / 8).bfloat16()
    exact = torch.zeros(row.num_tokens, 2, 3, dtype=torch.float64).index_add(0, plan.key_index, grad.double())
    got = _repeated(grad, plan, row.num_tokens)
    assert torch.equal(got, exact.bfloat16())


def test_a_prompt_of_many_responses_keeps_what_bfloat16_sums_would_lose():
    row = _row([(3, [1] * 301)])
    plan = varlen_plan(row, device=CPU)
    grad = torch.ones(len(plan.key_index), 1, 1, dtype=torch.bfloat16)
    # Every prompt position stands in its own segment and before 301 responses: 302, which bfloat16 (8 bits: steps of
    # 2) has. Added up in bfloat16 it stops at 256, where 256 + 1 rounds to 256.
    assert _repeated(grad, plan, row.num_tokens)[:3, 0, 0].tolist() == [302.0] * 3
    lossy = torch.zeros(row.num_tokens, 1, 1, dtype=torch.bfloat16)
    for at, position in enumerate(plan.key_index.tolist()):
        lossy[position] += grad[at]
    assert lossy[:3, 0, 0].tolist() == [256.0] * 3


@examples(20)
@given(shapes=ROWS)
def test_gradients_of_shared_keys_are_the_same_to_the_bit_every_time(shapes):
    row = _row(shapes)
    plan = varlen_plan(row, device=CPU)
    generator = torch.Generator().manual_seed(1)
    grad = torch.randn(len(plan.key_index), 2, 3, generator=generator).bfloat16()
    first = _repeated(grad, plan, row.num_tokens)
    # The order of the sum is the row's: own position first, then response by response, in float32.
    total = torch.zeros(row.num_tokens, 2, 3)
    for at, position in enumerate(plan.key_index.tolist()):
        total[position] += grad[at].float()
    assert torch.equal(first, total.bfloat16())
    assert all(torch.equal(first, _repeated(grad, plan, row.num_tokens)) for _ in range(3))
