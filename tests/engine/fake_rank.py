"""Stands in for a rank of the policy, without a model: light enough to start at once."""

from __future__ import annotations

import os
import time
from typing import Any

WAITING_SECONDS = 300.0


class FakeRank:
    """Plans one row; in the update it dies, or waits as for a rank that never comes."""

    def __init__(self, dies: bool) -> None:
        self._dies = dies

    def prepare(self, groups: Any) -> int:
        return 1

    def update(self, num_micro_batches: int, objective: str, loss: Any) -> None:
        if self._dies:
            os._exit(1)
        time.sleep(WAITING_SECONDS)
