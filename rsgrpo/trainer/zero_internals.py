"""What DeepSpeed keeps of a model and of a step, where its interface does not give it: read and let go of by its names.

DeepSpeed itself is not imported; the names are those of 0.19.8.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn

from rsgrpo.model.lora import ExportedParameter

_BEFORE_THE_FIRST = -1  # DeepSpeed's number of a micro-batch, before a step's first


def drop_gradients(optimizer: Any, zero_stage: int) -> None:
    """Bring DeepSpeed's optimizer to where it is between two steps, whatever was accumulated.

    Args:
        optimizer: the optimizer of the DeepSpeed engine.
        zero_stage: 1, 2 or 3.
    """
    if zero_stage == 3:
        optimizer._pre_step()  # counters and buckets, as at the begin of a step
        optimizer.averaged_gradients = {}
        optimizer.grad_partitions_flat_buffer.zero_()
        _zero_gradients(optimizer.fp32_partitioned_groups_flat)
    elif hasattr(optimizer, "averaged_gradients"):  # ZeRO 1 of a bfloat16 model has none: zero_grad clears its sums
        optimizer.micro_step_id = _BEFORE_THE_FIRST
        optimizer._wait_for_offload_copies()
        for kept in (optimizer.averaged_gradients, optimizer.all_grad_tensors):
            for group in list(kept):
                kept[group] = None
        _zero_gradients(optimizer.single_partition_of_fp32_groups)
    if getattr(optimizer, "cpu_offload", False) or zero_stage == 3:
        optimizer.reset_cpu_buffers()
    if getattr(optimizer, "cpu_offload", False):
        optimizer._offload_accumulated_param_ids = set()
    optimizer.zero_grad(set_to_none=True)


def _zero_gradients(masters: Iterable[Tensor]) -> None:
    """Set the gradients of offloaded masters to zero: they stay from step to step."""
    for master in masters:
        if master.grad is not None:
            master.grad.zero_()


def let_go(engine: Any) -> None:
    """Cut a ZeRO 3 engine that was destroyed loose from its tensors, so that their memory is free at once.

    Its parameters hold closures over the optimizer, and its modules' hooks and autograd functions over the engine;
    Python's collector does not free that ring.

    Args:
        engine: an engine of DeepSpeed; neither it nor its model can be used afterwards.
    """
    optimizer = engine.optimizer
    inner = getattr(optimizer, "optimizer", None)  # torch's; a frozen model has none
    for parameter in engine.module.parameters():
        vars(parameter).clear()  # this rank's part of it, too
        parameter.data = torch.empty(0, dtype=parameter.dtype, device=parameter.device)
        parameter.grad = None
    if inner is not None:
        inner.state.clear()
        inner.param_groups.clear()
    vars(optimizer).clear()
    engine.optimizer = None


def weights_of(model: nn.Module) -> list[Tensor]:
    """The parameters, whole or this rank's partitions of them, and the buffers."""
    parameters = list(model.parameters())
    partitions = [cast(Any, parameter).ds_tensor for parameter in parameters if hasattr(parameter, "ds_id")]
    return [*(parameter.data for parameter in parameters), *partitions, *model.buffers()]


def on_device(tensors: Iterable[Tensor], device: torch.device) -> Iterator[Tensor]:
    """The tensors that take the device's memory: what is offloaded is on the host already."""
    return (tensor for tensor in tensors if tensor.device.type == device.type)


def by_bytes(exported: list[ExportedParameter], max_bytes: int) -> Iterator[list[ExportedParameter]]:
    """Parameters in lists of at most that many bytes; one larger parameter makes a list."""
    chunk: list[ExportedParameter] = []
    used = 0
    for parameter in exported:
        base = parameter.base
        size = (base.ds_numel if hasattr(base, "ds_numel") else base.numel()) * base.element_size()
        if chunk and used + size > max_bytes:
            yield chunk
            chunk, used = [], 0
        chunk.append(parameter)
        used += size
    if chunk:
        yield chunk
