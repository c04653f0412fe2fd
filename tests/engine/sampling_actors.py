"""Engines that answer without a model; a module of their own, so that Ray's processes can import them."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np

from rollout.requests import RolloutRequest
from rsgrpo.types import Group, Rollout, RolloutGroup


class StubEngine:
    """Answers one request a call, after a while.

    Args:
        seconds: that a call takes.
        dies_after: answers after which its process ends; -1: never.
        sleeps_after: answers after which it says nothing any more; -1: never.
        cleared: a file that appears when it is told to give up.
    """

    def __init__(
        self, seconds: float = 0.0, dies_after: int = -1, sleeps_after: int = -1, cleared: Path | None = None
    ) -> None:
        self._seconds = seconds
        self._dies_after = dies_after
        self._sleeps_after = sleeps_after
        self._cleared = cleared
        self._waiting: list[RolloutRequest] = []
        self._num_answered = 0

    def advance(self, requests: list[RolloutRequest]) -> list[RolloutGroup]:
        self._waiting += requests
        if self._num_answered == self._dies_after:
            os._exit(1)
        if self._num_answered == self._sleeps_after:
            time.sleep(600)
        if not self._waiting:
            return []
        time.sleep(self._seconds)
        self._num_answered += 1
        return [_answer(self._waiting.pop(0))]

    def num_answered(self) -> int:
        return self._num_answered

    def clear(self) -> None:
        self._waiting.clear()
        if self._cleared is not None:
            self._cleared.touch()


def _answer(request: RolloutRequest) -> RolloutGroup:
    """One token per sample; which engine gave it does not show."""
    zero = np.zeros(1, dtype=np.int32)
    return Group(
        sample=request.prompted.sample,
        prompt=request.prompted.prompt,
        prompt_token_ids=zero,
        rollouts=(
            Rollout(
                sample_id=request.sample_id,
                response_index=0,
                token_ids=zero,
                logprobs=np.zeros(1, dtype=np.float32),
                text="x",
                token_char_starts=zero,
                finish_reason="stop",
                policy_version=0,
            ),
        ),
    )
