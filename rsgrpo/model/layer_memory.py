"""What a block keeps for its backward pass, and what that pass takes beside it, in bytes, from the block's shapes.

Read off the operations of transformers' models and of this package; :mod:`rsgrpo.model.activation_memory` adds them up.
T tokens, H the stream's width, A and K those of queries and keys, I the MLP's, b bytes of the precision. A block keeps:

* two norms: the stream in float32 (4 T H), what the norm's weight multiplies (b T H, in float32 where the norm is
  centred; in LoRA the weight is frozen and nothing is kept) and the result (b T H), which is the input of the matrices
  behind it. torch's LayerNorm keeps the stream as it is and the result (2 b T H);
* attention: queries, keys and values (b T (A + 2 K)), output and the output matrix's input (2 b T A), one float32 a
  head and token. Heads that are normalised are kept in float32 and as their norm's weight multiplies them, a gated
  output with its gate's sigmoid (2 b T A);
* or a gated delta net (:func:`kept_by_delta_net`);
* the MLP: of one with a gate that, its SiLU, the other branch, and their product (4 b T I).

The backward pass is largest where the gate and the other branch meet: three gradients (3 b T I) beside what is kept,
the product gone, and the stream's gradient.
"""

from __future__ import annotations

from rsgrpo.model.families.family import DeltaNetShape
from rsgrpo.model.memory_bounds import DELTA_CHUNK, FP32
from rsgrpo.model.sizes import StackSizes


def kept_by_attention(stack: StackSizes, tokens: int, *, b: int, keeps_scaled: bool, num_keys: int = 0) -> int:
    """Bytes that a block that attends keeps for its backward pass.

    Args:
        stack: the sizes of the block.
        tokens: T, how many tokens, or patches, it computes.
        b: the bytes of a weight.
        keeps_scaled: whether the norms' weights are trained.
        num_keys: how many keys stand side by side where each response gets a copy of its prompt's; 0: T.
    """
    query, key = stack.query_width, stack.key_width
    attention = b * (3 * tokens * query + 2 * (num_keys or tokens) * key) + FP32 * tokens * stack.heads
    if stack.normalises_heads:
        attention += tokens * (query + key) * (FP32 + _scaled(stack, b) * keeps_scaled)
    if stack.gates_attention:
        attention += 2 * b * tokens * query
        if b == FP32:
            attention += b * tokens * query  # the gate, which is one tensor with the queries that their norm keeps
    return attention + _kept_around(stack, tokens, b=b, keeps_scaled=keeps_scaled)


def kept_by_delta_net(
    stack: StackSizes, net: DeltaNetShape, sizes: tuple[int, int, int], *, b: int, keeps_scaled: bool
) -> int:
    """Bytes that a block with a gated delta net keeps, where plain products compute its rule.

    The convolution keeps its inputs and results (2 b of each channel), the rule everything in float32: queries and
    keys as they come and in chunks, values, what tokens write and take (one right side each of values and keys), what
    they read and add (a key each for every head of values), the new values, six matrices of a chunk's tokens with one
    another (four a head of values, two a head of keys), and a state a chunk. The gated norm keeps its input, the gate
    and the gate's SiLU in float32, the normalised values and what its weight makes of them. A kernel on a GPU keeps
    less.

    Args:
        stack: the sizes of the block.
        net: the shape of its gated delta net.
        sizes: T, how many tokens; how many it computes with padding; and how many chunks these are.
        b: the bytes of a weight.
        keeps_scaled: whether the norms' weights are trained.
    """
    tokens, padded, chunks = sizes
    copied = net.value_heads * net.key_width  # a key for every head of values
    convolution = 2 * b * padded * net.channels
    normalised = FP32 * padded * (net.channels if b == FP32 else 2 * net.all_keys)
    rule = FP32 * padded * (2 * net.all_keys + 3 * net.all_values + 3 * copied)
    rule += FP32 * padded * DELTA_CHUNK * (4 * net.value_heads + 2 * net.key_heads)
    rule += FP32 * chunks * net.state_elements
    around = _kept_around(stack, tokens, b=b, keeps_scaled=keeps_scaled)
    return convolution + normalised + rule + _gated_norm(net, tokens, b=b, keeps_scaled=keeps_scaled) + around


def backward_of_attention(stack: StackSizes, tokens: int, *, b: int) -> int:
    """The most bytes that the backward pass of a block that attends takes beside what it keeps.

    Args:
        stack: the sizes of the block.
        tokens: T, how many tokens, or patches, it computes.
        b: the bytes of a weight.
    """
    # The backend that works in tiles holds queries, keys, values, their gradients and three widths of outputs.
    widths = 2 * (stack.query_width + 2 * stack.key_width) + 3 * stack.query_width
    in_attention = FP32 * tokens * widths - stack.mlp_keeps * b * tokens * stack.intermediate
    return b * tokens * stack.hidden + max(_in_mlp(stack, tokens, b=b), in_attention)


def backward_of_delta_net(
    stack: StackSizes, net: DeltaNetShape, sizes: tuple[int, int, int], *, b: int, keeps_scaled: bool
) -> int:
    """The same of a block with a gated delta net; takes what :func:`kept_by_delta_net` does."""
    tokens, padded, _ = sizes
    copied = net.value_heads * net.key_width
    # At the rule's first chunk the gradients of what all tokens read, take, add and write wait; MLP and norm are gone.
    gradients = FP32 * padded * (3 * copied + net.all_values + DELTA_CHUNK * net.value_heads)
    gone = stack.mlp_keeps * b * tokens * stack.intermediate + _gated_norm(net, tokens, b=b, keeps_scaled=keeps_scaled)
    return b * tokens * stack.hidden + max(_in_mlp(stack, tokens, b=b), gradients - gone)


def _scaled(stack: StackSizes, b: int) -> int:
    """Bytes of a number that a norm's weight multiplies."""
    return FP32 if stack.norm == "centred_rms" else b


def _kept_around(stack: StackSizes, tokens: int, *, b: int, keeps_scaled: bool) -> int:
    """Bytes of the two norms and the MLP, which all blocks have."""
    of_norm = 2 * b if stack.norm == "layer" else FP32 + _scaled(stack, b) * keeps_scaled + b
    return 2 * tokens * stack.hidden * of_norm + stack.mlp_keeps * b * tokens * stack.intermediate


def _gated_norm(net: DeltaNetShape, tokens: int, *, b: int, keeps_scaled: bool) -> int:
    """Bytes of the norm behind the gated delta rule, its gate and its result."""
    return tokens * net.all_values * (3 * FP32 + b * (2 + keeps_scaled))


def _in_mlp(stack: StackSizes, tokens: int, *, b: int) -> int:
    """Bytes of gradients in the MLP beside what it keeps: two tensors more where two branches meet, else one."""
    return (1 + (stack.mlp_keeps > 2)) * b * tokens * stack.intermediate
