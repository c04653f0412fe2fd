"""Move tensors' memory to the host and back, in place: views and references stay valid."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor


class HostOffloader:
    """Keeps the bytes of storages in host memory while their device memory is free.

    Whole storages move, not tensors: DeepSpeed's flat buffers are seen through many views, and each view
    would otherwise get a copy of its own and lose its buffer. Host buffers are kept for the next time, because
    pinning memory is slow.

    Example:
        >>> offloader, weight = HostOffloader(), torch.ones(3)
        >>> offloader.offload([weight, weight[:1]])
        >>> weight.untyped_storage().nbytes()
        0
        >>> offloader.onload()
        >>> weight.tolist()
        [1.0, 1.0, 1.0]
    """

    def __init__(self) -> None:
        self._out: list[tuple[torch.UntypedStorage, Tensor]] = []
        self._let_go: list[tuple[torch.UntypedStorage, int]] = []
        self._free: dict[int, list[Tensor]] = defaultdict(list)

    @property
    def num_bytes(self) -> int:
        """How many bytes wait on the host."""
        return sum(host.numel() for _, host in self._out)

    @property
    def num_host_bytes(self) -> int:
        """How many bytes of host memory are kept, for what waits now and for the next time."""
        return self.num_bytes + sum(host.numel() for hosts in self._free.values() for host in hosts)

    def offload(self, tensors: Iterable[Tensor]) -> None:
        """Free the device memory of these tensors' storages, each of them once.

        Args:
            tensors: tensors that nobody reads until :meth:`onload`.
        """
        places: set[int] = set()
        for tensor in tensors:
            storage = tensor.untyped_storage()
            if storage.nbytes() == 0 or storage.data_ptr() in places:
                continue
            places.add(storage.data_ptr())
            free = self._free[storage.nbytes()]
            is_pinned = storage.device.type == "cuda"
            host = free.pop() if free else torch.empty(storage.nbytes(), dtype=torch.uint8, pin_memory=is_pinned)
            host.copy_(_bytes(storage))
            self._out.append((storage, host))
            storage.resize_(0)

    def let_go(self, tensors: Iterable[Tensor]) -> None:
        """Free the device memory of tensors whose values nobody needs; they come back as zeros.

        Args:
            tensors: tensors that nobody reads until :meth:`onload`, nor what they hold now after it.
        """
        for tensor in tensors:
            storage = tensor.untyped_storage()
            if storage.nbytes():
                self._let_go.append((storage, storage.nbytes()))
                storage.resize_(0)

    def onload(self) -> None:
        """Give every storage its memory and its bytes again."""
        for storage, num_bytes in self._let_go:
            storage.resize_(num_bytes)
            _bytes(storage).zero_()
        self._let_go = []
        for storage, host in self._out:
            storage.resize_(host.numel())
            _bytes(storage).copy_(host)
            self._free[host.numel()].append(host)
        self._out = []


def _bytes(storage: torch.UntypedStorage) -> Tensor:
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)
