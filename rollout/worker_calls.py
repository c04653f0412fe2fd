"""What a call to a rollout worker that gives no answer means."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import ray

from rollout.engine import RolloutError
from rsgrpo.errors import RsgrpoError


@contextmanager
def explained(who: str, what: str, timeout_seconds: float) -> Iterator[None]:
    """Turn what Ray raises inside the block into what happened; that a worker died is left to the caller.

    Args:
        who: the name of the worker, for the message.
        what: what the worker was to do, for the message.
        timeout_seconds: how long the worker had for it, in seconds.

    Raises:
        RolloutError: the call took longer than ``timeout_seconds``.
        RsgrpoError: the error that the worker raised.
    """
    try:
        yield
    except ray.exceptions.GetTimeoutError as error:
        raise RolloutError(
            f"{who} did not {what} within rollout.generate_timeout_seconds={timeout_seconds:g}; raise it, or look at "
            "the worker's log in Ray's session folder, then go on with resume=auto"
        ) from error
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, RsgrpoError):
            raise error.cause from error
        raise
