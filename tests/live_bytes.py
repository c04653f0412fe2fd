"""How much memory tensors take while a block runs, counted exactly."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_SMALLEST_FILE = 2**16  # bytes; looking an address up takes a millisecond


def tensor_storages() -> dict[int, torch.UntypedStorage]:
    """The memory of every tensor that Python knows, each storage once."""
    gc.collect()
    tensors = [item for item in gc.get_objects() if issubclass(type(item), torch.Tensor) and item.device.type != "meta"]
    return {tensor.untyped_storage()._cdata: tensor.untyped_storage() for tensor in tensors}


def _size(storage: torch.UntypedStorage) -> int:
    """Bytes of memory; nothing where a file of weights is mapped there."""
    is_file = storage.nbytes() >= _SMALLEST_FILE and _is_mapped(storage.data_ptr())
    return 0 if is_file else storage.nbytes()


def _is_mapped(address: int) -> bool:
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
        self._alive = {key: entry for key, entry in self._alive.items() if not entry[0].expired()}
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and tensor.device.type == "cpu":
                storage = tensor.untyped_storage()
                if storage._cdata not in self._alive:
                    self._alive[storage._cdata] = (StorageWeakRef(storage), _size(storage))
        self.peak = max(self.peak, sum(num_bytes for _, num_bytes in self._alive.values()))
        return out
