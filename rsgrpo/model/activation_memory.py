"""How many bytes a packed sequence takes in a forward and backward pass, from the model's shapes.

Read off the operations of transformers' models and of this package, and checked against a count of live tensors
(tests/unit/model/test_activation_memory.py); what a block keeps is in :mod:`rsgrpo.model.layer_memory`. T tokens, R
response tokens, H the stream's width, V the vocabulary, b bytes of the precision.

With recomputation a layer keeps its input only (b T H), and one layer at a time is computed again. A tied head's
gradient (b V H) waits all the while for the embedding's.

The head holds a chunk of logits in float32 (and, in bfloat16, a copy), and its gradient in float32.
"""

from __future__ import annotations

from dataclasses import dataclass

from rsgrpo.model.layer_memory import (
    backward_of_attention,
    backward_of_delta_net,
    kept_by_attention,
    kept_by_delta_net,
)
from rsgrpo.model.memory_bounds import BLOCK_WEIGHTS, CHUNK_LOGITS, DELTA_CHUNK, FP32
from rsgrpo.model.sizes import ModelSizes


@dataclass(frozen=True, kw_only=True, slots=True)
class PackedSize:
    """The sizes of a packed sequence that its memory and time depend on.

    Attributes:
        num_tokens: T, how many tokens the sequence has.
        num_response_tokens: R, how many of them are response tokens.
        num_patches: how many patches all its pages have, each page once; 0 where their features are stored.
        num_stored: how many image tokens come with stored features, each page once.
        num_pairs: how many pairs there are of a query and a key that it sees.
        num_image_pairs: how many pairs there are of patches of the same page, both ways.
        num_keys: how many keys there are where each response gets a copy of its prompt's; 0: none does.
        num_padded: how many tokens a gated delta net computes, padding included; 0: no more than T.
        num_chunks: how many chunks it cuts them into; 0: as many as one sequence has.
    """

    num_tokens: int
    num_response_tokens: int
    num_patches: int = 0
    num_stored: int = 0
    num_pairs: int = 0
    num_image_pairs: int = 0
    num_keys: int = 0
    num_padded: int = 0
    num_chunks: int = 0

    @property
    def delta_sizes(self) -> tuple[int, int, int]:
        """T, the tokens that a gated delta net computes, and their chunks."""
        return (
            self.num_tokens,
            self.num_padded or self.num_tokens,
            self.num_chunks or -(-self.num_tokens // DELTA_CHUNK),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class ActivationMemory:
    """Bytes of a sequence, beside weights and their gradients.

    Attributes:
        pixels: bytes of the pixels of its pages, float32, or of their stored features.
        kept: bytes of the layers' inputs or, without recomputation, of all that layers keep; a trained tower's are in
            ``vision_kept``.
        vision_kept: bytes that a trained vision tower keeps; 0 for a frozen one.
        vision: the most bytes that the tower takes while it runs.
        layer: the most bytes that a layer's backward pass takes beside what is kept.
        head: the most bytes that the head takes beside what is kept.
    """

    pixels: int
    kept: int
    vision_kept: int
    vision: int
    layer: int
    head: int

    @property
    def peak(self) -> int:
        """The most bytes at a time: tower, layers and head come one after the other."""
        return self.pixels + self.vision_kept + max(self.vision, self.kept + max(self.layer, self.head))


def activation_memory(
    model: ModelSizes, packed: PackedSize, *, weight_bytes: int, recomputes: bool, device: str = "gpu"
) -> ActivationMemory:
    """Compute the bytes that a packed sequence takes.

    Args:
        model: the sizes of the model.
        packed: the sizes of the packed sequence.
        weight_bytes: b, the bytes of a weight.
        recomputes: whether activations are computed again in the backward pass (``model.gradient_checkpointing``).
        device: ``gpu`` or ``cpu``: the head's chunks are larger on a GPU.

    Example:
        A sequence of 16,384 tokens, 4,096 of them of responses, of Qwen2.5-VL-7B in bfloat16 with recomputation: 3.1
        GiB of layers' inputs, 4.8 GiB for one layer.
    """
    b, tokens = weight_bytes, packed.num_tokens
    language = model.language
    stream = b * tokens * language.hidden
    layers = _layers(model, packed, b=b, device=device)
    angles = 2 * b * tokens * language.head_size
    head_gradient = b * model.vocabulary * language.hidden if model.is_head_trained else 0
    waiting = head_gradient if model.is_tied else 0
    return ActivationMemory(
        pixels=FP32 * packed.num_patches * model.patch_values + b * packed.num_stored * model.feature_width,
        kept=angles + sum(count * (stream if recomputes else kept) for count, kept, _ in layers),
        vision_kept=_vision_kept(model, packed.num_patches, b=b, recomputes=recomputes),
        vision=stream + _vision_runs(model, packed.num_patches, b=b),
        layer=max((kept if recomputes else 0) + backward for _, kept, backward in layers) + waiting,
        head=_head(model, packed, b=b, device=device),
    )


def _layers(model: ModelSizes, packed: PackedSize, *, b: int, device: str) -> list[tuple[int, int, int]]:
    """Each kind of layer: how many there are, the bytes that one keeps, and what its backward pass takes beside."""
    stack, tokens = model.language, packed.num_tokens
    is_trained, adapters = not model.adapter_rank, _adapters(model, tokens, b)
    # FlashAttention, which computes bfloat16 on a GPU, takes a copy of its prompt's keys for each response.
    num_keys = packed.num_keys if device == "gpu" and b < FP32 else 0
    found = []
    if stack.attending_layers:
        kept = kept_by_attention(stack, tokens, b=b, keeps_scaled=is_trained, num_keys=num_keys)
        found.append((stack.attending_layers, kept + adapters, backward_of_attention(stack, tokens, b=b)))
    if stack.delta_nets is not None:
        net, sizes = stack.delta_nets, packed.delta_sizes
        kept = kept_by_delta_net(stack, net, sizes, b=b, keeps_scaled=is_trained)
        backward = backward_of_delta_net(stack, net, sizes, b=b, keeps_scaled=is_trained)
        found.append((net.layers, kept + adapters, backward))
    return found


def _adapters(model: ModelSizes, tokens: int, b: int) -> int:
    """Bytes that the adapters of a layer keep: the narrow result of A, of all seven matrices at most."""
    return 7 * b * tokens * model.adapter_rank


def _head(model: ModelSizes, packed: PackedSize, *, b: int, device: str) -> int:
    """Bytes of the last norm, of the responses' states and their gradients, and of the larger pass over the chunks."""
    hidden, is_narrow = model.language.hidden, b < FP32
    logits = min(packed.num_response_tokens * model.vocabulary, max(CHUNK_LOGITS[device], model.vocabulary))
    forward = 2 * FP32 * logits  # and their exponentials
    weights = model.vocabulary * hidden
    block = min(weights, BLOCK_WEIGHTS[device]) if is_narrow else 0
    tokens = logits // model.vocabulary  # of a chunk
    # A CPU multiplies bfloat16 as float32 copies, a block of the head's words at a time.
    copies = FP32 * (block + tokens * (block // hidden + hidden)) if is_narrow and device == "cpu" else 0
    forward += copies
    # What the tower made of pages is let go of behind the forward pass: features, and those of levels in their places.
    forward += b * packed.num_patches // model.patches_a_token * (model.feature_width + model.num_levels * hidden)
    backward = (FP32 + b * is_narrow) * logits
    if is_narrow:
        backward = max(backward, b * logits + copies)
    if model.is_head_trained:
        # In float32 while it is summed, a block's product beside it; then in the weights' precision as well.
        backward = FP32 * weights + max(backward, b * logits + copies + FP32 * block, b * is_narrow * weights)
    norm = (FP32 + b) * packed.num_tokens * hidden
    return norm + 2 * b * packed.num_response_tokens * hidden + max(forward, backward)


def _vision_kept(model: ModelSizes, patches: int, *, b: int, recomputes: bool) -> int:
    """Bytes that a trained tower keeps until the language model's backward pass is through."""
    if not model.is_vision_trained:
        return 0
    tower = model.vision
    block = b * patches * tower.hidden if recomputes else kept_by_attention(tower, patches, b=b, keeps_scaled=True)
    # A norm, and the input, GELU and its result of two matrices; of each level as well.
    projector = patches * tower.hidden * ((1 + model.num_levels) * 3 * b + (b if tower.norm == "layer" else FP32 + b))
    return tower.layers * block + projector + _vision_inputs(model, patches, b=b)


def _vision_inputs(model: ModelSizes, patches: int, *, b: int) -> int:
    """Bytes of pixels in the tower's precision where that is not float32, and of rows' and columns' float32 angles."""
    copied = b * patches * model.patch_values if b < FP32 else 0
    return copied + 2 * FP32 * patches * model.vision.head_size


def _vision_runs(model: ModelSizes, patches: int, *, b: int) -> int:
    """The most bytes that the tower takes at a time."""
    tower = model.vision
    # A block turns queries and keys by their angles in float32: six widths at a time, beside five in its precision
    # (in float32 the copies are the tensors themselves: eleven in all).
    turning = patches * tower.hidden * (5 * b + 6 * FP32)
    forward = max(turning, b * patches * (2 * tower.hidden + 3 * tower.intermediate))
    if not model.is_vision_trained:
        return forward + _vision_inputs(model, patches, b=b)
    backward = kept_by_attention(tower, patches, b=b, keeps_scaled=True) + backward_of_attention(tower, patches, b=b)
    waiting = b * model.vocabulary * model.language.hidden if model.is_tied and model.is_head_trained else 0
    return max(forward, backward + waiting)
