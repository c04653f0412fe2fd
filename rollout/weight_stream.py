"""Weights from the trainer's GPUs to every engine's: the driver's part, which only passes records on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ray

from rollout.engine import RolloutError
from rsgrpo.weight_transfer import WeightSender


class WeightStream:
    """Hands each staged bucket to all engines, and compares checksums.

    Args:
        gpus_per_engine: ``rollout.tensor_parallel_size``.
        timeout_seconds: for one call to the engines.
    """

    def __init__(self, *, gpus_per_engine: int, timeout_seconds: float) -> None:
        self._gpus_per_engine = gpus_per_engine
        self._timeout_seconds = timeout_seconds
        self._has_joined = False

    def forget(self) -> None:
        """An engine was replaced: all of them have to meet the trainer again."""
        self._has_joined = False

    def send(self, engines: Sequence[Any], sender: WeightSender, version: int) -> None:
        """Update all engines.

        Args:
            engines: their actors.
            sender: the trainer's end.
            version: of the weights.

        Raises:
            RolloutError: an engine died or did not answer, or holds other weights than were sent.
        """
        if not self._has_joined:
            self._join(engines, sender)
        self._answers([engine.begin_update.remote() for engine in engines])
        for bucket in sender.buckets():
            for index, found in enumerate(self._answers([engine.receive_bucket.remote(bucket) for engine in engines])):
                if found != [bucket.checksum] * self._gpus_per_engine:
                    raise RolloutError(
                        f"rollout worker {index} got weights of version {version} with checksums "
                        f"{', '.join(f'{one:08x}' for one in found)}, sent was {bucket.checksum:08x} "
                        f"({bucket.names[0]} and {len(bucket.names) - 1} more); the transfer is broken: try "
                        "rollout.weight_transfer=object_store"
                    )
        self._answers([engine.finish_update.remote(version) for engine in engines])

    def _join(self, engines: Sequence[Any], sender: WeightSender) -> None:
        num_members = 1 + len(engines) * self._gpus_per_engine
        group = sender.new_group() if sender.kind == "nccl" else ""
        joining = [
            engine.join_trainer.remote(sender.kind, group, 1 + index * self._gpus_per_engine, num_members)
            for index, engine in enumerate(engines)
        ]
        if sender.kind == "nccl":
            joining.append(sender.join(group, num_members))
        self._answers(joining)
        self._has_joined = True

    def _answers(self, calls: list[ray.ObjectRef]) -> list[Any]:
        try:
            return list(ray.get(calls, timeout=self._timeout_seconds))
        except (ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError) as error:
            raise RolloutError(
                f"a rollout worker died, or did not answer within {self._timeout_seconds:g} s "
                f"(rollout.generate_timeout_seconds), while it took new weights: {error}; go on with resume=auto"
            ) from error
