"""Weights on their way from the trainer to the engines: flat buckets, and a checksum over them."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class WeightBucket:
    """A flat part of the weights on its way to the engines.

    Attributes:
        names: the names of the parameters, as ``from_pretrained`` writes them into a checkpoint.
        shapes: the shape of each parameter.
        dtype: the precision of all values, ``float32`` or ``bfloat16``.
        data: the tensors' raw bytes, one after the other, uint8.
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    dtype: str
    data: NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightVersion:
    """Stamp of one set of weights: a number that counts updates, and a checksum over all buckets."""

    version: int
    checksum: str


_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
# Layers that vLLM keeps as one.
_FUSED = {
    "q_proj": "qkv_proj",
    "k_proj": "qkv_proj",
    "v_proj": "qkv_proj",
    "gate_proj": "gate_up_proj",
    "up_proj": "gate_up_proj",
    "in_proj_qkv": "in_proj_qkvz",
    "in_proj_z": "in_proj_qkvz",
    "in_proj_b": "in_proj_ba",
    "in_proj_a": "in_proj_ba",
}


def flatten_bucket(named: Iterable[tuple[str, Tensor]]) -> WeightBucket:
    """Copy tensors of one dtype into one flat record.

    Args:
        named: the names and tensors, on any device.

    Example:
        ``[("a", zeros(2, 3))]`` in float32 gives 24 bytes and shapes ``((2, 3),)``.
    """
    pairs = list(named)
    flat = torch.cat([tensor.detach().reshape(-1) for _, tensor in pairs]).cpu()
    return WeightBucket(
        names=tuple(name for name, _ in pairs),
        shapes=tuple(tuple(tensor.shape) for _, tensor in pairs),
        dtype=_NAMES[flat.dtype],
        data=flat.view(torch.uint8).numpy(),
    )


def engine_layer(name: str) -> str:
    """The engine's layer that a parameter belongs to.

    vLLM replaces a layer as a whole: what is not sent of it would be left uninitialised, so an update carries
    all parameters of every layer that holds a trained one.

    Args:
        name: the name of a parameter, in the loaded model or in a checkpoint.

    Example:
        ``layers.0.self_attn.q_proj.bias`` and ``layers.0.self_attn.v_proj.weight`` both belong to
        ``layers.0.self_attn.qkv_proj``.
    """
    parent, _, leaf = name.rpartition(".")[0].rpartition(".")
    return f"{parent}.{_FUSED.get(leaf, leaf)}"


def tensors_checksum(named: Iterable[tuple[str, Tensor]]) -> str:
    """CRC-32 over names, precisions and bytes of whole tensors: whether two models are the same to the bit.

    Args:
        named: the names and tensors, in a fixed order.
    """
    checksum = 0
    for name, tensor in named:
        checksum = zlib.crc32(f"{name}/{tensor.dtype}".encode(), checksum)
        checksum = zlib.crc32(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data, checksum)
    return format_checksum(checksum)


def bucket_tensors(bucket: WeightBucket) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a bucket, as views of its bytes: copy before writing to them.

    Args:
        bucket: the bucket as :func:`flatten_bucket` made it.
    """
    # Arrays out of Ray's object store are read-only; torch wants to own what it views.
    data = bucket.data if bucket.data.flags.writeable else bucket.data.copy()
    flat = torch.from_numpy(data).view(_DTYPES[bucket.dtype])
    start = 0
    for name, shape in zip(bucket.names, bucket.shapes, strict=True):
        size = 1
        for extent in shape:
            size *= extent
        yield name, flat[start : start + size].view(shape)
        start += size


def bucket_checksum(bucket: WeightBucket, previous: int = 0) -> int:
    """CRC-32 of a bucket's names and bytes, going on from that of the buckets before it.

    Args:
        bucket: the bucket whose checksum is wanted.
        previous: the checksum so far; 0 at the first.
    """
    return zlib.crc32(bucket.data.data, zlib.crc32(",".join(bucket.names).encode(), previous))


def format_checksum(checksum: int) -> str:
    """The checksum as ``WeightVersion.checksum`` holds it: eight hexadecimal digits."""
    return f"{checksum:08x}"
