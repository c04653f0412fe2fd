"""One rollout worker: a Ray actor with an engine of its own."""

from __future__ import annotations

import os
from collections.abc import Sequence

import ray

from rollout.vllm_engine import EngineSpec, VllmEngine
from rsgrpo.config import SamplingConfig
from rsgrpo.types import PromptedSample, RolloutGroup, WeightVersion


class RolloutWorker:
    """Loads the engine when it is made; every call waits for that.

    Args:
        spec: what the engine is built from.
    """

    def __init__(self, spec: EngineSpec) -> None:
        self._engine = VllmEngine(spec)

    def ready(self) -> int:
        """The process id, once the engine answers."""
        return os.getpid()

    def generate(
        self, prompted: Sequence[PromptedSample], num_samples: int, sampling: SamplingConfig, seed: int
    ) -> list[RolloutGroup]:
        """See :class:`rollout.engine.RolloutEngine`."""
        return self._engine.generate(prompted, num_samples=num_samples, sampling=sampling, seed=seed)

    def update_weights(self, buckets: Sequence[ray.ObjectRef], version: WeightVersion) -> None:
        """Fetch the buckets from the object store and load them."""
        self._engine.update_weights(ray.get(list(buckets)), version)
