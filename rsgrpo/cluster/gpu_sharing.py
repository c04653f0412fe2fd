"""Trainer and engines on the same GPUs: which of them is offloaded and which onloaded in each phase of a step."""

from __future__ import annotations

from enum import Enum, IntEnum
from typing import Protocol


class OnGpu(IntEnum):
    """What of a model is on the GPUs; the rest is offloaded to the host."""

    NOTHING = 0
    WEIGHTS = 1
    ALL = 2


class GpuUser(Protocol):
    """Trainer or engines: what can offload its GPU memory to the host and onload it again."""

    def set_on_gpu(self, parts: OnGpu) -> None:
        """Offload and onload until exactly these parts are on the GPUs."""


class Phase(Enum):
    """What the GPUs are used for: the trainer's share and the engines'."""

    TRAINING = (OnGpu.ALL, OnGpu.NOTHING)
    TRANSFER = (OnGpu.WEIGHTS, OnGpu.WEIGHTS)
    SAMPLING = (OnGpu.NOTHING, OnGpu.ALL)


class GpuSharing:
    """Moves memory between GPUs and host when another phase begins: first what is offloaded, then what is onloaded.

    At the start the engines hold everything and the trainer has not loaded anything yet.

    Args:
        trainer: the trainer, which loads when its first phase begins.
        engines: the engines that share the trainer's GPUs, loaded.

    Example:
        ``begin(Phase.TRAINING)`` after the start: the engines hold nothing, then the trainer holds all.
    """

    def __init__(self, trainer: GpuUser, engines: GpuUser) -> None:
        self._users = (trainer, engines)
        self._on_gpu = Phase.SAMPLING.value

    def begin(self, phase: Phase) -> None:
        """Make room for a phase; nothing happens if it goes on.

        Args:
            phase: the phase that begins.
        """
        changes = [
            (user, wanted, wanted > present)
            for user, wanted, present in zip(self._users, phase.value, self._on_gpu, strict=True)
            if wanted != present
        ]
        for user, wanted, _ in sorted(changes, key=lambda change: change[2]):
            user.set_on_gpu(wanted)
        self._on_gpu = phase.value
