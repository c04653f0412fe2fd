"""Actors that stand in for ranks and engines; a module of their own, so that Ray's processes can import them."""

from __future__ import annotations

import dataclasses
import os
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor

from rollout import weight_loading
from rollout.requests import RolloutRequest
from rsgrpo.cluster.gpu_sharing import OnGpu
from rsgrpo.types import Group, ResponseStats, RolloutGroup, TrainingGroup
from rsgrpo.weights.transfer import BucketStager, StagedBucket
from tests.unit.weights.test_transfer import FakeModel, FakeTransfer, FakeVllmWorker, StagerWithoutGpu

CHUNKS = [["tower"], ["layer.0", "layer.1"], ["head"]]
CPU = torch.device("cpu")


def weights_of(version: int) -> dict[str, Tensor]:
    """The tower stays as it was."""
    torch.manual_seed(0)
    return {name: torch.randn(3, 4) + (version if name != "tower" else 0) for chunk in CHUNKS for name in chunk}


class FakeRank:
    """A rank whose staged bytes travel with the record, as if the engine could look into its memory.

    Args:
        rank: its number, which names its GPU.
    """

    def __init__(self, rank: int) -> None:
        self._gpu = f"gpu{rank}"
        self._version = 0
        self._stager = StagerWithoutGpu()

    def train(self) -> None:
        self._version += 1

    def version(self) -> int:
        return self._version

    def begin_stream(self, kind: str, max_bucket_bytes: int, trainable_only: bool) -> None:
        weights = weights_of(self._version)
        chunks = CHUNKS[1:] if trainable_only else CHUNKS
        self._stager.begin([(name, weights[name]) for name in chunk] for chunk in chunks)

    def next_bucket(self) -> StagedBucket | None:
        bucket = self._stager.next()
        if bucket is None:
            return None
        return dataclasses.replace(bucket, handles={self._gpu: (self._stager._filled.numpy().tobytes(),)})


class SlowRank:
    """A rank that takes its time to prepare, and notes the order of its calls.

    Args:
        begun: a file that appears when it has begun.
    """

    def __init__(self, begun: Path) -> None:
        self._begun = begun
        self._calls: list[str] = []

    def calls(self) -> list[str]:
        return self._calls

    def address(self) -> str:
        return ""

    def log_path(self) -> str:
        return ""

    def load(self, address: str) -> str:
        return ""

    def prepare(self, groups: list[TrainingGroup]) -> int:
        self._calls.append("prepare")
        self._begun.touch()
        time.sleep(1.0)
        return 1

    def score(self, num_micro_batches: int, with_entropy: bool = False) -> list[ResponseStats]:
        self._calls.append("score")
        zero = np.zeros(1, dtype=np.float32)
        return [ResponseStats(sample_id="q", response_index=0, logprobs=zero, entropy=zero)]

    def gather_weights(self, max_bucket_bytes: int, trainable_only: bool, is_adapter: bool) -> SimpleNamespace:
        self._calls.append("gather")
        return SimpleNamespace(buckets=(), checksum=0)


class FakeEngine:
    """An engine on one GPU: the real functions that run in vLLM's workers, on a worker that is none."""

    def __init__(self, gpu: str) -> None:
        self._model = FakeModel()
        self._worker = FakeVllmWorker(FakeTransfer(self._model, BucketStager("cuda_ipc", CPU)))
        self._gpu = gpu
        self._version = 0
        self._share = OnGpu.ALL
        self._has_joined = False
        self._dies = False
        self._stands_still: Path | None = None

    def ready(self) -> int:
        return os.getpid()

    def damage(self, name: str) -> None:
        self._worker.damages = name

    def stand_still(self, noted: Path) -> None:
        """Answer nothing from here on; the file appears when something is asked."""
        self._stands_still = noted

    def die_in_transfer(self) -> None:
        self._dies = True

    def join_trainer(self, kind: str, group: str, first_member: int, num_members: int) -> None:
        weight_loading.join_trainer(self._worker, kind, group, first_member, num_members)
        self._has_joined = True

    def begin_update(self) -> None:
        assert self._has_joined
        if self._worker.is_updating:  # as the real one: an update before this one was given up
            weight_loading.finish_update(self._worker)
        weight_loading.begin_update(self._worker)

    def receive_bucket(self, bucket: StagedBucket) -> list[int]:
        if self._dies and bucket.names != ("tower",):
            os._exit(1)
        (raw,) = bucket.handles[self._gpu]
        self._worker.weight_transfer_engine.stager._filled = torch.frombuffer(bytearray(raw), dtype=torch.uint8)
        return [weight_loading.receive_bucket(self._worker, bucket)]

    def finish_update(self, version: int, is_complete: bool) -> None:
        weight_loading.finish_update(self._worker)
        self._version = version

    def set_on_gpu(self, parts: OnGpu) -> None:
        self._share = parts

    def seed_call(self, seed: int) -> None:
        pass

    def clear(self) -> None:
        raise AssertionError("every call is used up")

    def advance(self, requests: list[RolloutRequest]) -> list[RolloutGroup]:
        assert self._share == OnGpu.ALL
        if self._stands_still is not None:
            self._stands_still.touch()
            time.sleep(600)
        return [
            Group(
                sample=request.prompted.sample,
                prompt=request.prompted.prompt,
                prompt_token_ids=np.zeros(1, dtype=np.int32),
                rollouts=(),
            )
            for request in requests
        ]

    def weights(self) -> tuple[int, dict[str, Tensor]]:
        return self._version, self._model.weights
