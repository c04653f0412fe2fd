"""Checks of what trainer and engines hand each other on one GPU: memory given back, weights through CUDA IPC.

``gpu_checks.py`` runs them. Needs torch only: a second process stands in for vLLM's worker and reads the staged buckets
as that does, checksums included. NCCL needs two GPUs and is not checked here.
"""

from __future__ import annotations

import time
from math import prod
from multiprocessing.connection import Connection

import torch
import torch.multiprocessing
from torch.multiprocessing import reductions

from rsgrpo.trainer.offload import HostOffloader
from rsgrpo.weights.transfer import BucketStager, StagedBucket, device_checksum

_SHAPE, _NUM_WEIGHTS, _NUM_BUCKETS = (4096, 4096), 8, 4  # buckets of 256 MiB in bfloat16

Finding = tuple[str, bool | None, str]


def _read_buckets(pipe: Connection) -> None:
    """The second process: answers each bucket with the checksum of what it sees."""
    opened: dict[tuple[object, ...], torch.Tensor] = {}
    while (bucket := pipe.recv()) is not None:
        (handle,) = bucket.handles.values()
        if handle not in opened:
            opened = {handle: reductions.rebuild_cuda_tensor(*handle)}
        pipe.send(_checksum(opened[handle], bucket))


def _checksum(buffer: torch.Tensor, bucket: StagedBucket) -> int:
    dtype = getattr(torch, bucket.dtype)
    start, checksum = 0, 0
    for name, shape in zip(bucket.names, bucket.shapes, strict=True):
        size = prod(shape) * dtype.itemsize
        checksum = device_checksum(name, buffer[start : start + size].view(dtype).view(shape), checksum)
        start += size
    return checksum


def check_memory(device: torch.device) -> Finding:
    """Offloaded memory is free on the device, and its values come back."""
    name = "memory given back and taken again"
    if device.type != "cuda":
        return name, None, "needs a GPU"
    weight = torch.randn(2**28, device=device)
    kept, before = weight[:: 2**14].clone(), torch.cuda.memory_allocated(device)
    park = HostOffloader()
    begin = time.perf_counter()
    park.offload([weight])
    freed = before - torch.cuda.memory_allocated(device)
    park.onload()
    torch.cuda.synchronize(device)
    seconds = time.perf_counter() - begin
    is_same = bool(torch.equal(weight[:: 2**14], kept))
    return name, is_same and freed >= 2**30, f"{freed / 2**30:.2f} of 1 GiB freed, {seconds:.2f} s there and back"


def check_cuda_ipc(device: torch.device) -> Finding:
    """Another process reads every staged bucket, each with the checksum that was sent, over two updates."""
    name = "weights through CUDA IPC"
    if device.type != "cuda":
        return name, None, "needs a GPU"
    context = torch.multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    reader = context.Process(target=_read_buckets, args=(theirs,))
    reader.start()
    weights = [torch.randn(_SHAPE, device=device, dtype=torch.bfloat16) for _ in range(_NUM_WEIGHTS)]
    stager = BucketStager("cuda_ipc", device)
    agreed, seconds = True, 0.0
    try:
        for _ in range(2):
            begin = time.perf_counter()
            stager.begin([(f"{part}.{i}", weight) for i, weight in enumerate(weights)] for part in range(_NUM_BUCKETS))
            while (bucket := stager.next()) is not None:
                ours.send(bucket)
                agreed = agreed and ours.recv() == bucket.checksum
            seconds = time.perf_counter() - begin
            weights[0] += 1
    finally:
        ours.send(None)
        reader.join(timeout=30)
    size = _NUM_BUCKETS * _NUM_WEIGHTS * prod(_SHAPE) * 2 / 1e9
    return name, agreed, f"{size:.2f} GB in {seconds:.3f} s, {size / seconds:.1f} GB/s with both checksums"
