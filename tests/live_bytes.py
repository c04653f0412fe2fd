"""How much memory tensors take while a block runs, counted exactly."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def tensor_storages() -> dict[int, torch.UntypedStorage]:
    """The memory of every tensor that Python knows, each storage once."""
    gc.collect()
    tensors = [one for one in gc.get_objects() if issubclass(type(one), torch.Tensor) and one.device.type != "meta"]
    return {tensor.untyped_storage()._cdata: tensor.untyped_storage() for tensor in tensors}


def _is_mapped(address: int) -> bool:
    """Whether an address belongs to a mapped file of weights, which takes no memory of the process."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        if line.endswith(".safetensors"):
            start, stop = (int(edge, 16) for edge in line.split()[0].split("-"))
            if start <= address < stop:
                return True
    return False


class LiveBytes(TorchDispatchMode):
    """Follows every tensor that is made while the block runs, until it is gone; mapped files do not count.

    Example:
        >>> with LiveBytes() as live:
        ...     kept = [torch.zeros(1000).sum() for _ in range(3)]
        >>> 4000 <= live.peak <= 4012
        True
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._alive: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self._alive = {key: one for key, one in self._alive.items() if not one[0].expired()}
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and tensor.device.type == "cpu":
                storage = tensor.untyped_storage()
                if storage._cdata not in self._alive:
                    num_bytes = 0 if _is_mapped(storage.data_ptr()) else storage.nbytes()
                    self._alive[storage._cdata] = (StorageWeakRef(storage), num_bytes)
        self.peak = max(self.peak, sum(num_bytes for _, num_bytes in self._alive.values()))
        return out
