"""Who holds the GPUs' memory where trainer and engines share them: they take turns, phase by phase."""

from __future__ import annotations

from enum import Enum, IntEnum
from typing import Protocol


class Share(IntEnum):
    """How much of its memory a holder keeps on the GPUs."""

    NOTHING = 0
    WEIGHTS = 1
    ALL = 2


class Holder(Protocol):
    """Trainer or engines: whoever can give its GPU memory back and take it again."""

    def hold(self, share: Share) -> None:
        """Keep that much on the GPUs; return when it is done."""


class Phase(Enum):
    """What the GPUs are used for: the trainer's share and the engines'."""

    TRAINING = (Share.ALL, Share.NOTHING)
    TRANSFER = (Share.WEIGHTS, Share.WEIGHTS)
    SAMPLING = (Share.NOTHING, Share.ALL)


class Turns:
    """Hands the GPUs' memory over when another phase begins; whoever shrinks does so first.

    At the start the engines hold everything and the trainer has not loaded anything yet.

    Args:
        trainer: loads at its first turn.
        engines: loaded.

    Example:
        ``take(Phase.TRAINING)`` after the start: the engines hold nothing, then the trainer holds all.
    """

    def __init__(self, trainer: Holder, engines: Holder) -> None:
        self._holders = (trainer, engines)
        self._shares = Phase.SAMPLING.value

    def take(self, phase: Phase) -> None:
        """Make room for a phase; nothing happens if it goes on.

        Args:
            phase: that begins.
        """
        changes = [
            (holder, wanted, wanted > present)
            for holder, wanted, present in zip(self._holders, phase.value, self._shares, strict=True)
            if wanted != present
        ]
        for holder, wanted, _ in sorted(changes, key=lambda change: change[2]):
            holder.hold(wanted)
        self._shares = phase.value
