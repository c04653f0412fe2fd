"""Calls to all ranks: their values, or the failure that explains the others'."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn, cast

import ray

from rsgrpo.errors import RsgrpoError, shown

_LOG_LINES = 20
_SHOWN_LOG = 100  # characters of the last line; the file has the rest
_DEATH_IS_KNOWN_SECONDS = 5.0  # by when Ray has noticed a death that broke off another rank's collective


class PolicyWorkerDiedError(RsgrpoError):
    """A training rank's process is gone; the message names the rank and shows its last log lines."""


class PolicyWorkerSilentError(RsgrpoError):
    """Training ranks did not answer in time; the message names them."""


class RankCalls:
    """Waits for the ranks, and ends them all where one of them cannot go on.

    Args:
        workers: one actor per rank.
        timeout_seconds: how long a call to them may take, in seconds.
    """

    def __init__(self, workers: Sequence[Any], timeout_seconds: float) -> None:
        self.workers = list(workers)
        self.log_paths: list[str] = []
        self._timeout_seconds = timeout_seconds

    def close(self) -> None:
        """End the ranks."""
        for worker in self.workers:
            ray.kill(worker)
        self.workers = []

    def each(self, begin: Callable[[Any], ray.ObjectRef], *, is_collective: bool = False) -> list[Any]:
        """Begin a call to every rank, and :meth:`collect` the results.

        Args:
            begin: makes the call to one worker.
            is_collective: whether the ranks wait for each other during the call, see :meth:`collect`.
        """
        return self.collect([begin(worker) for worker in self.workers], is_collective=is_collective)

    def collect(self, references: Sequence[ray.ObjectRef], *, is_collective: bool = False) -> list[Any]:
        """Results of all ranks, or the first failure.

        Args:
            references: the reference of each rank's call.
            is_collective: whether the ranks wait for each other; after a failure they would wait for ever, so they end.

        Raises:
            PolicyWorkerDiedError: the process of a rank died; also where another rank failed because of that.
            PolicyWorkerSilentError: ranks did not answer in time.
        """
        deadline = time.monotonic() + self._timeout_seconds
        waiting = list(references)
        while waiting:
            done, waiting = ray.wait(waiting, num_returns=1, timeout=max(0.0, deadline - time.monotonic()))
            if not done:
                self._end_silent([references.index(reference) for reference in waiting], len(references))
            error = _failure(done[0])
            if isinstance(error, ray.exceptions.RayActorError):
                self._end_dead(references.index(done[0]), len(references), error)
            if isinstance(error, ray.exceptions.RayTaskError):
                cause = error.cause
                if is_collective:
                    if not isinstance(cause, RsgrpoError):
                        self._look_for_dead(references, waiting)
                    self.close()
                # The cause is the worker's own exception: an RsgrpoError reads as if raised here.
                if isinstance(cause, (RsgrpoError, OSError)):
                    raise cause from error
                raise error
        return cast(list[Any], ray.get(list(references), timeout=self._timeout_seconds))

    def _look_for_dead(self, references: Sequence[ray.ObjectRef], waiting: list[ray.ObjectRef]) -> None:
        """A rank failed in a step: if another one died, that is why."""
        deadline = time.monotonic() + _DEATH_IS_KNOWN_SECONDS
        while waiting:
            done, waiting = ray.wait(waiting, num_returns=1, timeout=max(0.0, deadline - time.monotonic()))
            if not done:
                return
            error = _failure(done[0])
            if isinstance(error, ray.exceptions.RayActorError):
                self._end_dead(references.index(done[0]), len(references), error)

    def _end_dead(self, rank: int, num_ranks: int, error: Exception) -> NoReturn:
        message = (
            f"training rank {rank} of {num_ranks} died ({self._last_words(rank)}); checkpoints are "
            "untouched: go on with resume=auto; if the log does not say why, the system may have ended the "
            "process for want of memory: lower trainer.micro_batch_tokens"
        )
        self.close()
        raise PolicyWorkerDiedError(message) from error

    def _end_silent(self, ranks: list[int], num_ranks: int) -> NoReturn:
        some = f"training rank {ranks[0]} of {num_ranks}"
        if len(ranks) > 1:
            some = f"{len(ranks)} of {num_ranks} training ranks, rank {ranks[0]} first,"
        message = (
            f"{some} did not answer within trainer.timeout_seconds={self._timeout_seconds:g} "
            f"({self._last_words(ranks[0])}); checkpoints are untouched: raise it if a step takes longer, and go on "
            "with resume=auto"
        )
        self.close()
        raise PolicyWorkerSilentError(message)

    def _last_words(self, rank: int) -> str:
        if rank >= len(self.log_paths) or not Path(self.log_paths[rank]).is_file():
            return "its log is on another node or was not written; see Ray's session folder"
        with Path(self.log_paths[rank]).open(errors="replace") as lines:
            last = next(reversed([line for line in deque(lines, maxlen=_LOG_LINES) if line.strip()]), "nothing")
        return f"last line of {shown(self.log_paths[rank])}: {shown(last, _SHOWN_LOG)}"


def _failure(reference: ray.ObjectRef) -> Exception | None:
    """The exception with which a call that has ended failed; None if it did not fail."""
    try:
        ray.get(reference)
    except (ray.exceptions.RayActorError, ray.exceptions.RayTaskError) as error:
        return cast(Exception, error)
    return None
