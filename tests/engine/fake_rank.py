"""Stands in for a rank of the policy, without a model: light enough to start at once."""

from __future__ import annotations

import os
import time
from typing import Any

WAITING_SECONDS = 300.0
_DYING_SECONDS = 0.5


class FakeRank:
    """Plans one row; what it does then is said at its start.

    Args:
        doing: it ``dies``; it ``waits``, as for a rank that never comes; it ``fails`` as one whose connection to
            another is gone; or it ``answers``.
    """

    def __init__(self, doing: str) -> None:
        self._doing = doing

    def prepare(self, groups: Any) -> int:
        return 1

    def accumulate(self, num_micro_batches: int, objective: str, loss: Any) -> None:
        self._do()

    def begin_stream(self, kind: str, max_bucket_bytes: int, trainable_only: bool) -> None:
        pass

    def next_bucket(self) -> None:
        self._do()

    def _do(self) -> None:
        if self._doing == "dies":
            time.sleep(_DYING_SECONDS)
            os._exit(1)
        if self._doing == "fails":
            raise RuntimeError("connection closed by peer")
        if self._doing == "waits":
            time.sleep(WAITING_SECONDS)
