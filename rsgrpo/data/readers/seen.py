"""Which ids were seen, in a few bytes each."""

from __future__ import annotations

from array import array

_FIRST_SLOTS = 1 << 12
_HASH_MASK = (1 << 63) - 1


class SeenIds:
    """A set of ids that keeps their 63-bit hashes only: 16 to 32 bytes an id, where texts take over a hundred.

    That any two of n different ids share a hash has a chance of n²/2⁶⁴: 5e-6 for ten million.
    """

    def __init__(self) -> None:
        self._slots = array("q", bytes(8 * _FIRST_SLOTS))
        self._mask = _FIRST_SLOTS - 1
        self._count = 0

    def add(self, name: str) -> bool:
        """Remember an id; False if it was seen before."""
        value = (hash(name) & _HASH_MASK) or 1  # 0 marks a free slot
        slots, mask = self._slots, self._mask
        slot = value & mask
        while slots[slot]:
            if slots[slot] == value:
                return False
            slot = (slot + 1) & mask
        slots[slot] = value
        self._count += 1
        if 2 * self._count > mask:
            self._grow()
        return True

    def _grow(self) -> None:
        old = self._slots
        self._mask = 2 * len(old) - 1
        self._slots = array("q", bytes(16 * len(old)))
        for value in old:
            if value:
                slot = value & self._mask
                while self._slots[slot]:
                    slot = (slot + 1) & self._mask
                self._slots[slot] = value
