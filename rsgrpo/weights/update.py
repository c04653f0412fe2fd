"""What the trainer hands to the engines after an update: a version, and where its weights are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import ray

from rsgrpo.weights.buckets import WeightVersion
from rsgrpo.weights.transfer import WeightSender


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightUpdate:
    """Weights for the engines.

    Attributes:
        version: how many updates were taken, and the checksum over the buckets (see ``buckets.py``).
        buckets: references to WeightBucket records in Ray's object store, in checksum order.
        is_complete: whether all parameters are in the update, or only those that training changes.
        whole: a function that gives all parameters as they are when it is called, for an engine that takes a dead one's
            place; it waits for an update that is under way.
        sender: the object that gives the weights out bucket by bucket, GPU to GPU, with checksums of their own; there
            are no ``buckets`` then. None: they are in the object store.
    """

    version: WeightVersion
    buckets: tuple[ray.ObjectRef, ...]
    is_complete: bool
    whole: Callable[[], WeightUpdate]
    sender: WeightSender | None = None
