"""One rollout worker: a Ray actor with an engine of its own."""

from __future__ import annotations

import os
from collections.abc import Sequence

import ray

from rollout.requests import RolloutRequest
from rollout.vllm_engine import EngineSpec, VllmEngine
from rsgrpo.cluster.gpu_sharing import OnGpu
from rsgrpo.types import RolloutGroup
from rsgrpo.weights.buckets import WeightVersion
from rsgrpo.weights.transfer import StagedBucket


class RolloutWorker:
    """Loads the engine when it is made; every call waits for that.

    Args:
        spec: what the engine is built from.
    """

    def __init__(self, spec: EngineSpec) -> None:
        self._engine = VllmEngine(spec)

    def ready(self) -> int:
        """Wait until the engine answers; returns the process id."""
        return os.getpid()

    def seed_call(self, seed: int) -> None:
        """Begin a call's random numbers; see :meth:`rollout.vllm_engine.VllmEngine.seed_call`."""
        self._engine.seed_call(seed)

    def advance(self, requests: Sequence[RolloutRequest]) -> list[RolloutGroup]:
        """Take further requests, and sample until some are answered."""
        return self._engine.advance(requests)

    def clear(self) -> None:
        """Give up all requests."""
        self._engine.clear()

    def update_weights(self, buckets: Sequence[ray.ObjectRef], version: WeightVersion, is_complete: bool) -> None:
        """Fetch the buckets from the object store and load them."""
        self._engine.update_weights(ray.get(list(buckets)), version, is_complete=is_complete)

    def join_trainer(self, kind: str, group: str, first_member: int, num_members: int) -> None:
        """Make ready for weights from the trainer's GPUs."""
        self._engine.join_trainer(kind, group, first_member, num_members)

    def begin_update(self) -> None:
        """Open a weight update from the trainer's GPUs."""
        self._engine.begin_update()

    def receive_bucket(self, bucket: StagedBucket) -> list[int]:
        """Load a bucket from the trainer's GPUs; the checksum of what came in, one for each GPU."""
        return self._engine.receive_bucket(bucket)

    def finish_update(self, version: int, is_complete: bool) -> None:
        """Close a weight update from the trainer's GPUs."""
        self._engine.finish_update(version, is_complete=is_complete)

    def set_on_gpu(self, parts: OnGpu) -> None:
        """Keep that much on the GPU."""
        self._engine.set_on_gpu(parts)
