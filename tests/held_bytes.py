"""How many bytes of tensors live at a time, counted by torch's own operations instead of the process's size."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class HeldBytes(TorchDispatchMode):
    """Follows every storage that an operation makes inside the block until nobody holds it any more.

    What a kernel takes for itself (a matrix product's workspace) is not seen; what lives before the block is left out.

    Args:
        known: tensors whose storages do not count, such as weights and gradients.

    Attributes:
        now: bytes that live.
        peak: the most that lived at a time since the last :meth:`restart`.
    """

    def __init__(self, known: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.now = 0
        self.peak = 0
        self._known = {tensor.untyped_storage()._cdata for tensor in known}
        self._held: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self._follow(leaf)
        return out

    def restart(self) -> None:
        """Measure the peak from here on."""
        self.peak = self.now

    def _follow(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known or key in self._held:
            return
        size = storage.nbytes()

        def gone(_: object, key: int = key, size: int = size) -> None:
            self._held.pop(key, None)
            self.now -= size

        self._held[key] = weakref.ref(storage, gone)
        self.now += size
        self.peak = max(self.peak, self.now)
