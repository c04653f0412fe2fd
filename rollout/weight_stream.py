"""Weights from the trainer's GPUs to every engine's: the driver's part, which only passes records on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ray

from rollout.engine import RolloutError
from rollout.worker_calls import explained
from rsgrpo.failures import reason
from rsgrpo.weights.transfer import WeightSender


class EngineDiedError(RolloutError):
    """An engine died while it took new weights; those that live have a part of them."""


class WeightStream:
    """Hands each staged bucket to all engines, and compares checksums.

    Args:
        gpus_per_engine: how many GPUs an engine has (``rollout.tensor_parallel_size``).
        timeout_seconds: how long one call to the engines may take, in seconds.
    """

    def __init__(self, *, gpus_per_engine: int, timeout_seconds: float) -> None:
        self._gpus_per_engine = gpus_per_engine
        self._timeout_seconds = timeout_seconds
        self._has_joined = False

    def forget(self) -> None:
        """Forget the connection after an engine was replaced: all engines have to meet the trainer again."""
        self._has_joined = False

    def send(self, engines: Sequence[Any], sender: WeightSender, version: int, *, is_complete: bool) -> None:
        """Update all engines.

        Args:
            engines: the actors of the engines.
            sender: the trainer's end of the transfer, which stages the buckets.
            version: the version of the weights that are sent.
            is_complete: whether all parameters are sent.

        Raises:
            EngineDiedError: an engine died during the update.
            RolloutError: an engine did not answer, holds other weights than were sent, or lacks some.
        """
        if not self._has_joined:
            self._join(engines, sender)
        self._answers([engine.begin_update.remote() for engine in engines])
        for bucket in sender.buckets():
            for index, found in enumerate(self._answers([engine.receive_bucket.remote(bucket) for engine in engines])):
                if found != [bucket.checksum] * self._gpus_per_engine:
                    raise RolloutError(
                        f"rollout worker {index} got weights of version {version} with checksums "
                        f"{', '.join(f'{checksum:08x}' for checksum in found)}, sent was {bucket.checksum:08x} "
                        f"({bucket.names[0]} and {len(bucket.names) - 1} more); the transfer is broken: try "
                        "rollout.weight_transfer=object_store"
                    )
        self._answers([engine.finish_update.remote(version, is_complete) for engine in engines])

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
            # All at once: where one has died, the others wait for it in vain.
            with explained("a rollout worker", "take new weights", self._timeout_seconds):
                return list(ray.get(calls, timeout=self._timeout_seconds))
        except ray.exceptions.RayActorError as error:
            raise EngineDiedError(
                f"a rollout worker died while it took new weights: {reason(error)}; go on with resume=auto"
            ) from error
