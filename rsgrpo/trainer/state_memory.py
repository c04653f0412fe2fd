"""How many bytes a rank keeps between two sequences of an update: weights, gradients, master weights, moments, buffers.

P trained and F frozen elements, N ranks, b bytes an element of the weights (bfloat16: 2, float32: 4). What DeepSpeed
0.19.8 holds under the settings of ``deepspeed_engine.py``, gradients summed in float32:

=============  ==================  ===================  =====================================================
part           ZeRO 1              ZeRO 2               ZeRO 3 (each parameter in N parts, rounded up)
=============  ==================  ===================  =====================================================
weights        b (P + F)           b (P + F)            b (P + F) / N, and small parameters whole
gradients      4 P, and in         4 P / N, in float32  4 P / N
               bfloat16 2 P more   of whole parameters
masters        4 P / N             4 P / N              4 P / N
moments        8 P / N             8 P / N              8 P / N
=============  ==================  ===================  =====================================================

ZeRO 1 in bfloat16 is DeepSpeed's BF16_Optimizer: it adds each backward pass's bfloat16 gradients to whole float32 ones.
In float32 ZeRO 2 keeps the gradients of a rank's share as whole parameters, those at its ends included. Master weights
are there in float32 as well: DeepSpeed copies its share. On one rank ZeRO 3 splits nothing and copies nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rsgrpo.model.memory_bounds import FP32, bucket_elements
from rsgrpo.model.sizes import ParameterSize

# DeepSpeed's defaults, which engine_settings.py leaves alone: bounds that allocate nothing by themselves; elements.
_PERSISTENT = 100_000  # parameters up to this size stay whole under ZeRO 3
_LIVE = 1_000_000_000  # whole parameters that ZeRO 3 keeps at a time
_SUB_GROUP = 1_000_000_000  # that ZeRO 3's optimizer steps through at a time


@dataclass(frozen=True, kw_only=True, slots=True)
class StateMemory:
    """Bytes that one rank keeps between two sequences.

    Attributes:
        weights: bytes of the weights on the device.
        gradients: bytes of the gradients on the device, those of ZeRO 1's backward pass included.
        masters: bytes of the float32 master weights on the device.
        moments: bytes of AdamW's moments on the device.
        gathered: ZeRO 3: the most bytes of whole parameters while they are used; else 0.
        buckets: bytes of the buffers through which gradients are summed over ranks, and of their copies in float32.
        step: bytes that the optimizer step takes beside its states, while no activations are there.
        host: bytes that offloading keeps in the host's memory.
    """

    weights: int
    gradients: int
    masters: int
    moments: int
    gathered: int
    buckets: int
    step: int
    host: int


def split_elements(parameters: Iterable[ParameterSize], num_ranks: int) -> int:
    """How many elements a rank's parts have under ZeRO 3: each parameter is padded to a multiple of the ranks.

    Example:
        Parameters of 10 and 3 elements on 4 ranks: 3 + 1 = 4.
    """
    return sum(-(-parameter.num_elements // num_ranks) for parameter in parameters)


def aligned_share(parameters: Iterable[ParameterSize], num_ranks: int) -> int:
    """How many elements a rank's share has under ZeRO 1 and 2: one flat buffer, padded to two elements a rank.

    Example:
        Parameters of 10 and 3 elements on 4 ranks: 13 become 16, 4 each.
    """
    total = sum(parameter.num_elements for parameter in parameters)
    return -(-total // (2 * num_ranks)) * 2


def touched_elements(parameters: Sequence[ParameterSize], num_ranks: int) -> int:
    """Elements of all parameters that a rank's share of the flat buffer touches, for the rank with most of them.

    Example:
        Parameters of 10 and 3 elements on 4 ranks, 4 elements each: the third rank has the end of the first parameter
        and the beginning of the second, which are 13 elements.
    """
    share = aligned_share(parameters, num_ranks)
    touched = [0] * num_ranks
    start = 0
    for parameter in parameters:
        stop = start + parameter.num_elements
        for rank in range(start // share, -(-stop // share)):
            touched[rank] += parameter.num_elements
        start = stop
    return max(touched)


def kept_whole(parameters: Iterable[ParameterSize]) -> int:
    """How many elements the small parameters have, which ZeRO 3 leaves whole on every rank."""
    return sum(parameter.num_elements for parameter in parameters if parameter.num_elements <= _PERSISTENT)


def state_memory(
    parameters: Sequence[ParameterSize],
    *,
    num_ranks: int,
    zero_stage: int,
    weight_bytes: int,
    offload_optimizer: bool = False,
    offload_parameters: bool = False,
) -> StateMemory:
    """Compute the bytes of one rank; the formulas stand at the top of this module.

    Args:
        parameters: the parameters of the model that DeepSpeed gets.
        num_ranks: N, how many ranks there are.
        zero_stage: 1, 2 or 3.
        weight_bytes: b, the bytes of a weight.
        offload_optimizer: whether gradients, masters and moments lie in the host's memory.
        offload_parameters: whether ZeRO 3's parts of the weights lie in the host's memory.

    Example:
        10⁹ trained elements in bfloat16 on 4 ranks, ZeRO 2: 2 GB of weights, 1 GB of gradients, 1 GB of masters, 2 GB
        of moments.
    """
    trained = [
        parameter for parameter in parameters if parameter.is_trained
    ]  # in the model's order, which is the flat buffer's
    num_trained = sum(parameter.num_elements for parameter in trained)
    num_frozen = sum(parameter.num_elements for parameter in parameters) - num_trained
    is_alone = num_ranks == 1
    whole = 0 if is_alone else kept_whole(parameters) * weight_bytes
    if zero_stage == 3:
        share = split_elements(trained, num_ranks)
        parts = split_elements(parameters, num_ranks) * weight_bytes
        weights = whole + parts
        gathered = 0 if is_alone else max(0, min(num_trained + num_frozen, _LIVE) * weight_bytes - whole)
        gradients, stepped = FP32 * share, min(share, _SUB_GROUP)
    else:
        share, parts, gathered, stepped = aligned_share(trained, num_ranks), 0, 0, aligned_share(trained, num_ranks)
        weights = (share * num_ranks + num_frozen) * weight_bytes
        gradients = FP32 * (share * num_ranks if weight_bytes < FP32 else num_trained)
        if zero_stage == 2:
            gradients = FP32 * (share if weight_bytes < FP32 else touched_elements(trained, num_ranks))
        elif weight_bytes < FP32:
            gradients += weight_bytes * num_trained
    masters, moments = FP32 * share, 2 * FP32 * share
    host = 0
    if offload_optimizer:
        # Beside them DeepSpeed keeps the weights that it is going to send back.
        host = masters + moments + FP32 * share + (weight_bytes * share if zero_stage < 3 else 0)
        gradients = gradients if zero_stage == 1 else 0
        masters = moments = stepped = 0
    if offload_parameters:
        host += parts
        weights -= parts
    return StateMemory(
        weights=weights,
        gradients=gradients,
        masters=masters,
        moments=moments,
        gathered=gathered,
        buckets=_buckets(num_trained, zero_stage=zero_stage, weight_bytes=weight_bytes),
        # AdamW's denominator for all elements at once, and the gradients in one segment.
        step=2 * FP32 * stepped,
        host=host,
    )


def _buckets(num_trained: int, *, zero_stage: int, weight_bytes: int) -> int:
    """Bytes of the buffers on a GPU: two take turns under ZeRO 1 and 2 (``overlap_comm``)."""
    bucket = bucket_elements(num_trained)
    summed = FP32 * min(num_trained, bucket)
    if zero_stage == 3:
        return FP32 * bucket
    if weight_bytes == FP32:
        return 2 * FP32 * bucket
    # BF16_Optimizer sums its whole gradients through copies; ZeRO 2 collects in bfloat16 and sums in float32.
    return summed if zero_stage == 1 else 2 * weight_bytes * bucket + summed
