"""Weights from GPU to GPU, one flat bucket at a time: the trainer's end.

The engines' end is vLLM's own weight transfer (its ``ipc`` and ``nccl`` backends, packed buffers). With
``cuda_ipc`` every rank copies a bucket into a buffer that the engine process on the same GPU reads; with
``nccl`` rank 0 broadcasts the bucket to all engine processes. Either way at most one bucket is on its way.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.cuda import nccl
from torch.multiprocessing import reductions

# Neither module is typed.
_nccl: Any = nccl
_reductions: Any = reductions

_CHECKSUM_COLUMNS = 4096
_INTEGERS = {2: torch.int16, 4: torch.int32}


@dataclass(frozen=True, kw_only=True, slots=True)
class StagedBucket:
    """A bucket that lies ready on the trainer's GPUs.

    Attributes:
        names: the names of the parameters, as a checkpoint has them.
        shapes: the shape of each parameter.
        dtype: the precision of all values, ``float32`` or ``bfloat16``.
        checksum: the checksum over all parameters, see :func:`device_checksum`.
        handles: for ``cuda_ipc`` what ``reduce_tensor`` gives of the buffer, by GPU; else empty.
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    dtype: str
    checksum: int
    handles: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)


class WeightSender(Protocol):
    """The trainer's end as the pool of engines sees it."""

    @property
    def kind(self) -> str:
        """How buckets travel: ``cuda_ipc`` or ``nccl``."""

    def new_group(self) -> str:
        """``nccl``: make the id under which trainer and engines meet."""

    def join(self, group: str, num_members: int) -> Any:
        """``nccl``: begin to meet the engines as member 0; returns what to wait for, once they join as well."""

    def buckets(self) -> Iterator[StagedBucket]:
        """Stage a bucket, give it out, and go on when the caller asks for the next: it must have been read then."""


def device_checksum(name: str, tensor: Tensor, previous: int = 0) -> int:
    """Checksum of a parameter where it lies: only 32 KiB come to the host, whatever its size.

    The values' bits, as integers, are added up in columns; CRC-32 runs over the name and the sums. It sees
    every changed bit and every exchange of values that is not by a multiple of 4,096 places.

    Args:
        name: the name of the parameter.
        tensor: the values, float32 or bfloat16, on any device.
        previous: the checksum of the parameters before it; 0 at the first.
    """
    bits = tensor.detach().reshape(-1).view(_INTEGERS[tensor.element_size()])
    num_whole = len(bits) // _CHECKSUM_COLUMNS * _CHECKSUM_COLUMNS
    sums = bits[:num_whole].view(-1, _CHECKSUM_COLUMNS).sum(0, dtype=torch.int64)
    sums[: len(bits) - num_whole] += bits[num_whole:]
    return zlib.crc32(sums.cpu().numpy().tobytes(), zlib.crc32(name.encode(), previous))


def merge_handles(staged: Sequence[StagedBucket]) -> StagedBucket:
    """One record of what all ranks staged: every rank's handle, by GPU.

    Raises:
        ValueError: the ranks staged different parameters or values.
    """
    first = staged[0]
    for rank, bucket in enumerate(staged):
        if (bucket.names, bucket.checksum) != (first.names, first.checksum):
            raise ValueError(f"rank {rank} staged other weights than rank 0: the ranks have drifted apart")
    return replace(first, handles={gpu: handle for bucket in staged for gpu, handle in bucket.handles.items()})


class BucketStager:
    """One rank's end: a buffer on its GPU that buckets are copied into, one after the other.

    The buffer is given back after the last bucket of an update.

    Args:
        kind: ``cuda_ipc`` or ``nccl``.
        device: the device that the weights lie on.
    """

    def __init__(self, kind: str, device: torch.device) -> None:
        self._kind = kind
        self._device = device
        self._chunks: Iterator[list[tuple[str, Tensor]]] = iter(())
        self._buffer = torch.empty(0, dtype=torch.uint8, device=device)
        self._filled = self._buffer
        self._handles: dict[str, tuple[Any, ...]] = {}
        self._group: Any = None

    def begin(self, chunks: Iterator[list[tuple[str, Tensor]]]) -> None:
        """Start on the weights of an update.

        Args:
            chunks: lists of names and whole tensors of one dtype, a bucket each.
        """
        self._chunks = chunks
        # vLLM lets go of the buffer at the end of an update, and each export counts one reader.
        self._handles = {}

    def next(self) -> StagedBucket | None:
        """Stage the next bucket; None after the last."""
        named = next(self._chunks, None)
        if named is None:
            self._buffer = self._filled = torch.empty(0, dtype=torch.uint8, device=self._device)
            return None
        return self.stage(named)

    def stage(self, named: Sequence[tuple[str, Tensor]]) -> StagedBucket:
        """Copy parameters of one dtype into the buffer, end to end.

        Args:
            named: names and tensors; the buffer grows to the largest bucket there was.
        """
        pairs = [(name, tensor.detach().contiguous()) for name, tensor in named]
        size = sum(tensor.numel() * tensor.element_size() for _, tensor in pairs)
        if size > self._buffer.numel():
            self._buffer = torch.empty(size, dtype=torch.uint8, device=self._device)
            self._handles = {}
        start, checksum = 0, 0
        for name, tensor in pairs:
            raw = tensor.reshape(-1).view(torch.uint8)
            self._buffer[start : start + len(raw)].copy_(raw)
            start += len(raw)
            checksum = device_checksum(name, tensor, checksum)
        self._filled = self._buffer[:size]
        if self._device.type == "cuda":
            # The reader is another process: it does not wait for this one's stream.
            torch.cuda.current_stream(self._device).synchronize()
        if self._kind == "cuda_ipc" and not self._handles:
            self._handles = self._export()
        return StagedBucket(
            names=tuple(name for name, _ in pairs),
            shapes=tuple(tuple(tensor.shape) for _, tensor in pairs),
            dtype=str(pairs[0][1].dtype).removeprefix("torch."),
            checksum=checksum,
            handles=self._handles,
        )

    def _export(self) -> dict[str, tuple[Any, ...]]:
        gpu = str(torch.cuda.get_device_properties(self._device).uuid)
        return {gpu: _reductions.reduce_tensor(self._buffer)[1]}

    def join(self, group: str, num_members: int) -> None:
        """``nccl``: become member 0 of the group of trainer and engines.

        Args:
            group: the id of the group, which :func:`new_group` made.
            num_members: how many members there are, engine processes and this one.
        """
        torch.cuda.set_device(self._device)
        self._group = _nccl.init_rank(num_members, base64.b64decode(group), 0)
        # vLLM's end warms the group up with a sum of one element, for which it needs this member.
        _nccl.all_reduce([torch.zeros(1, device=self._device)], comms=[self._group])
        torch.cuda.current_stream(self._device).synchronize()

    def broadcast(self) -> None:
        """``nccl``: send the staged bucket to the engines."""
        _nccl.broadcast([self._filled], root=0, comms=[self._group])
        torch.cuda.current_stream(self._device).synchronize()


def new_group() -> str:
    """A new NCCL id, base64: what vLLM's ``nccl_unique_id_b64`` takes."""
    return base64.b64encode(_nccl.unique_id()).decode()


class RankStream:
    """The ranks' actors as a :class:`WeightSender`.

    Args:
        kind: ``cuda_ipc`` or ``nccl``.
        workers: one actor per rank.
        collect: waits for calls and gives their values, in order; ends the ranks where one fails.
        max_bucket_bytes: the most bytes of a bucket; one larger parameter makes a bucket of its own.
        trainable_only: whether what training does not change is left out.
    """

    def __init__(
        self,
        kind: str,
        workers: Sequence[Any],
        collect: Callable[[list[Any]], list[Any]],
        *,
        max_bucket_bytes: int,
        trainable_only: bool,
    ) -> None:
        self._kind = kind
        self._workers = workers
        self._collect = collect
        self._max_bucket_bytes = max_bucket_bytes
        self._trainable_only = trainable_only

    @property
    def kind(self) -> str:
        """How buckets travel, see :class:`WeightSender`."""
        return self._kind

    def new_group(self) -> str:
        """Make an id for a group, see :class:`WeightSender`."""
        return str(self._collect([self._workers[0].new_group.remote()])[0])

    def join(self, group: str, num_members: int) -> Any:
        """Begin to meet the engines, see :class:`WeightSender`."""
        return self._workers[0].join_engines.remote(group, num_members)

    def buckets(self) -> Iterator[StagedBucket]:
        """Stage one bucket after the other, see :class:`WeightSender`."""
        bounds = (self._kind, self._max_bucket_bytes, self._trainable_only)
        self._collect([worker.begin_stream.remote(*bounds) for worker in self._workers])
        while True:
            staged = self._collect([worker.next_bucket.remote() for worker in self._workers])
            if staged[0] is None:
                return
            # A broadcast ends when the engines have taken part in it: the caller asks them to meanwhile.
            sent = [self._workers[0].broadcast_bucket.remote()] if self._kind == "nccl" else []
            yield merge_handles(staged)
            self._collect(sent)
