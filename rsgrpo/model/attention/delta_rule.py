"""The gated delta rule over rows of tokens, each going on from a state: torch's own products, or fla's kernel.

For a head with keys and queries of width K and values of width V the state is a matrix S, [K, V], and a token with
decay a = exp(g) and rate b changes and reads it (Yang et al., arXiv 2412.06464, §3.1)::

    S <- a (I - b k k^T) S + b k v^T        out = S^T q / sqrt(K)

Tokens are taken 64 at a time: within a chunk everything is a product of matrices (§3.3, the UT transform), and only
the state is handed from chunk to chunk.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from rsgrpo.errors import shown
from rsgrpo.model.memory_bounds import DELTA_CHUNK

_EPSILON = 1e-6
_MOST_APART = 0.05  # relative, of the kernel's results: bfloat16 has three digits

# Kernels fail in their own ways where the machine or the build does not have them.
_KERNEL_ERRORS = (ImportError, NotImplementedError, RuntimeError, TypeError, AttributeError)

DeltaRule = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None], tuple[Tensor, Tensor]]
"""Takes and returns what :func:`chunked_delta_rule` does."""


def chunked_delta_rule(
    query: Tensor, key: Tensor, value: Tensor, decay: Tensor, rate: Tensor, state: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The gated delta rule in plain products, differentiable in all arguments, on any device.

    transformers' own function computes the same. It writes each chunk's output into one tensor, so that its backward
    pass copies all of a row for every chunk: 16,384 tokens would move 256 times their outputs.

    Args:
        query: [N, W, key heads, K], not normalised.
        key: [N, W, key heads, K], not normalised.
        value: [N, W, value heads, V]; a key head serves as many value heads as come on it, side by side.
        decay: [N, W, value heads] float32, g: logarithms of what is kept of the state, at most 0.
        rate: [N, W, value heads], b: how much of a token is written, 0 to 1. A token with decay and rate 0 leaves the
            state as it is: so is padding.
        state: [N, value heads, K, V] float32, what each row goes on from; None: zeros.

    Returns:
        The outputs [N, W, value heads, V] in the precision of ``query``, and the states behind the last token, in
        float32 (float64 where the inputs are).
    """
    num_rows, width, key_heads, key_width = key.shape
    value_heads, value_width = value.shape[2:]
    exact = torch.promote_types(query.dtype, torch.float32)
    size = min(DELTA_CHUNK, width)
    num_chunks = -(-width // size)

    def chunks(tokens: Tensor, heads: tuple[int, int]) -> Tensor:
        """[N, W, heads, x] -> [N, key heads, value heads of each, chunks, size, x]; zeros behind the last token."""
        tokens = functional.pad(tokens.to(exact), (0, 0, 0, 0, 0, num_chunks * size - width))
        return tokens.view(num_rows, num_chunks, size, *heads, -1).permute(0, 3, 4, 1, 2, 5).contiguous()

    of_keys, of_values = (key_heads, 1), (key_heads, value_heads // key_heads)
    queries = chunks(_normalised(query.to(exact)) * key_width**-0.5, of_keys)
    keys = chunks(_normalised(key.to(exact)), of_keys)
    values = chunks(value, of_values)
    rates = chunks(rate[..., None], of_values)
    decays = chunks(decay[..., None], of_values)[..., 0].cumsum(-1)  # from the chunk's start up to each token

    is_future = torch.ones(size, size, dtype=torch.bool, device=query.device).triu(1)
    between = (decays[..., :, None] - decays[..., None, :]).masked_fill(is_future, -torch.inf).exp()
    transposed = keys.transpose(-1, -2)
    own = (queries @ transposed) * between
    system = (keys @ transposed) * between * rates  # what a token's write finds of those before it in its chunk
    kept = decays.exp()[..., None]
    # Both right sides in one call: what tokens write on their own, and what they take back of the state before.
    wanted = torch.cat([values * rates, keys * (rates * kept)], dim=-1)
    written, taken = torch.linalg.solve_triangular(system, wanted, upper=False, unitriangular=True).split(
        [value_width, key_width], dim=-1
    )
    reading = queries * kept
    adding = (keys * (decays[..., -1:] - decays).exp()[..., None]).transpose(-1, -2)
    outlasting = kept[..., -1:, :]

    shape = (num_rows, *of_values, key_width, value_width)
    current = key.new_zeros(shape, dtype=exact) if state is None else state.to(exact).view(shape)
    outs = []
    # Cut at once: of an index for each chunk, the backward pass would write a whole row of zeros for every chunk.
    parts = [part.unbind(3) for part in (written, taken, reading, own, adding, outlasting)]
    for own_writes, takes, reads, sees, adds, outlasts in zip(*parts, strict=True):
        new = own_writes - takes @ current
        outs.append(reads @ current + sees @ new)
        current = current * outlasts + adds @ new
    out = torch.stack(outs, dim=1).permute(0, 1, 4, 2, 3, 5).reshape(num_rows, -1, value_heads, value_width)
    return out[:, :width].to(query.dtype), current.view(num_rows, value_heads, key_width, value_width)


def _normalised(vectors: Tensor) -> Tensor:
    return vectors * torch.rsqrt(vectors.square().sum(-1, keepdim=True) + _EPSILON)


def fla_delta_rule(
    query: Tensor, key: Tensor, value: Tensor, decay: Tensor, rate: Tensor, state: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The same with the kernel of flash-linear-attention (CUDA). Takes and returns what the other does."""
    repeats = value.shape[2] // key.shape[2]
    out, last = _fla_kernel()(
        query.repeat_interleave(repeats, dim=2),
        key.repeat_interleave(repeats, dim=2),
        value.contiguous(),
        g=decay.contiguous(),
        beta=rate.contiguous(),
        initial_state=state,
        output_final_state=True,
        use_qk_l2norm_in_kernel=True,
    )
    return out, last


def _fla_kernel() -> Any:
    from fla.ops.gated_delta_rule import chunk_gated_delta_rule

    return chunk_gated_delta_rule


def _trial(rule: DeltaRule, device: torch.device, dtype: torch.dtype) -> list[Tensor]:
    """Outputs, states and all gradients on given random inputs, float32."""
    generator = torch.Generator(device).manual_seed(0)
    tokens, heads, width = 70, 4, 64  # more than a chunk

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, device=device, generator=generator)

    query, key = (draw(2, tokens, heads // 2, width).to(dtype).requires_grad_() for _ in range(2))
    value = draw(2, tokens, heads, width).to(dtype).requires_grad_()
    decay = (-draw(2, tokens, heads).exp()).requires_grad_()
    rate = draw(2, tokens, heads).sigmoid().to(dtype).requires_grad_()
    state = draw(2, heads, width, width).requires_grad_()
    inputs = (query, key, value, decay, rate, state)
    out, last = rule(*inputs)
    total = out.float().sin().sum() + last.float().sin().sum()
    return [part.detach().float() for part in (out, last, *torch.autograd.grad(total, inputs))]


def rule_problem(rule: DeltaRule, *, device: torch.device, dtype: torch.dtype) -> str:
    """Why a kernel cannot be used here; empty if it can.

    It is tried on small rows against :func:`chunked_delta_rule`: outputs, states and gradients, that of the state
    which a row goes on from among them.

    Args:
        rule: what calls the kernel.
        device: the device that the model is on.
        dtype: the precision of the computation.
    """
    expected = _trial(chunked_delta_rule, device, dtype)
    try:
        got = _trial(rule, device, dtype)
    except _KERNEL_ERRORS as error:
        return f"its kernel does not run: {type(error).__name__}: {shown(error)}"
    gap = max(float((a - b).norm() / b.norm()) for a, b in zip(got, expected, strict=True))
    # A gap that is not a number is none, too.
    return "" if gap < _MOST_APART else f"its kernel is off by {gap:.1%} on rows that go on from a state"


@functools.cache
def fla_problem(*, device: torch.device, dtype: torch.dtype) -> str:
    """Why fla's kernel cannot be used here; empty if it can.

    Args:
        device: the device that the model is on.
        dtype: the precision of the computation.
    """
    if device.type != "cuda":
        return f"the device is {device.type}"
    try:
        _fla_kernel()
    except _KERNEL_ERRORS as error:
        return f"flash-linear-attention does not load: {type(error).__name__}: {shown(error)}"
    return rule_problem(fla_delta_rule, device=device, dtype=dtype)


@dataclass(frozen=True, kw_only=True, slots=True)
class RuleChoice:
    """What gated delta nets are computed with, and why.

    Attributes:
        kernel: ``fla`` or ``torch``.
        device: the kind of device, ``cuda`` or ``cpu``.
        problem: why it is not ``fla``; empty if it is.
    """

    kernel: str
    device: str
    problem: str = ""

    @property
    def rule(self) -> DeltaRule:
        """The function itself."""
        return fla_delta_rule if self.kernel == "fla" else chunked_delta_rule

    def lines(self) -> tuple[str, ...]:
        """What a person should read.

        Example:
            ``gated delta nets: torch on cpu; not fla: the device is cpu``.
        """
        reasons = [f"not fla: {self.problem}"] if self.problem else []
        lines = ["; ".join([f"gated delta nets: {self.kernel} on {self.device}", *reasons])]
        if self.problem and self.device != "cpu":
            lines.append("warning: gated delta nets run as plain products; pip install flash-linear-attention")
        return tuple(lines)


def choose_rule(*, device: torch.device, dtype: torch.dtype) -> RuleChoice:
    """What computes gated delta nets here: fla's kernel where it works, else torch's products.

    Args:
        device: the device that the model is on.
        dtype: the precision of the computation.
    """
    problem = fla_problem(device=device, dtype=dtype)
    return RuleChoice(kernel="torch" if problem else "fla", device=device.type, problem=problem)
