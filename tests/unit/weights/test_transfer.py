"""Weights from GPU to GPU, on a CPU: what is staged, what is checked, and how vLLM's end is driven, with fakes."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from rollout.weight_loading import (
    begin_update,
    call_pickled,
    finish_update,
    join_trainer,
    receive_bucket,
    without_kept_layers,
)
from rsgrpo.weights.transfer import BucketStager, StagedBucket, device_checksum, merge_handles

CPU = torch.device("cpu")


def _unpacked(raw: Tensor, bucket: StagedBucket) -> Iterator[tuple[str, Tensor]]:
    """As vLLM unpacks a buffer: end to end, in order."""
    dtype = getattr(torch, bucket.dtype)
    start = 0
    for name, shape in zip(bucket.names, bucket.shapes, strict=True):
        size = torch.Size(shape).numel() * dtype.itemsize
        yield name, raw[start : start + size].view(dtype).view(shape)
        start += size


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_staged_bytes_are_the_tensors_end_to_end(dtype: torch.dtype) -> None:
    named = [
        ("a", torch.randn(3, 5).to(dtype)),
        ("b", torch.randn(4, 2).to(dtype).T),
        ("c", torch.tensor(2.5).to(dtype)),
    ]
    stager = BucketStager("nccl", CPU)
    bucket = stager.stage(named)
    assert bucket.shapes == ((3, 5), (2, 4), ())
    # 15 + 8 + 1 numbers, and no more than that is sent
    assert stager._filled.numel() == 24 * dtype.itemsize
    found = dict(_unpacked(stager._filled, bucket))
    assert all(torch.equal(found[name], tensor) for name, tensor in named)


def test_the_buffer_grows_to_the_largest_bucket_and_goes_after_the_last() -> None:
    stager = BucketStager("nccl", CPU)
    buckets = [[("a", torch.ones(10))], [("b", torch.ones(30))], [("c", torch.ones(20))]]
    stager.begin(iter(buckets))
    sizes = []
    while (bucket := stager.next()) is not None:
        sizes.append((bucket.names, stager._filled.numel(), stager._buffer.numel()))
    assert sizes == [(("a",), 40, 40), (("b",), 120, 120), (("c",), 80, 120)]
    assert stager._buffer.numel() == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [1, 4096, 10_001])
def test_the_checksum_sees_every_bit_and_every_name(dtype: torch.dtype, size: int) -> None:
    torch.manual_seed(0)
    tensor = torch.randn(size).to(dtype)
    reference = device_checksum("w", tensor)
    assert device_checksum("w", tensor.view(1, -1)) == reference
    assert device_checksum("v", tensor) != reference
    assert device_checksum("w", tensor, previous=1) != reference
    raw = tensor.view(torch.uint8)
    for byte in {0, len(raw) // 2, len(raw) - 1}:
        for bit in (1, 128):
            raw[byte] ^= bit
            assert device_checksum("w", tensor) != reference
            raw[byte] ^= bit
    assert device_checksum("w", tensor) == reference
    if size > 1:
        assert device_checksum("w", tensor.flip(0)) != reference


def test_ranks_that_staged_different_weights_are_caught() -> None:
    weight = torch.arange(6.0)
    same = [BucketStager("nccl", CPU).stage([("w", weight)]) for _ in range(2)]
    handles = [
        StagedBucket(**{**_fields(staged), "handles": {f"gpu{rank}": (rank,)}}) for rank, staged in enumerate(same)
    ]
    assert merge_handles(handles).handles == {"gpu0": (0,), "gpu1": (1,)}
    other = BucketStager("nccl", CPU).stage([("w", weight + 1)])
    with pytest.raises(ValueError, match="rank 1 staged other weights than rank 0"):
        merge_handles([same[0], other])


def _fields(bucket: StagedBucket) -> dict[str, Any]:
    return {name: getattr(bucket, name) for name in StagedBucket.__dataclass_fields__}


@dataclass
class FakeModel:
    """Loads like vLLM's models: by name, from an iterable that it walks once."""

    weights: dict[str, Tensor] = field(default_factory=dict)

    def load_weights(self, weights: Any) -> set[str]:
        taken = {name: tensor.clone() for name, tensor in weights}
        self.weights |= taken
        return set(taken)


class StagerWithoutGpu(BucketStager):
    """Stages on the CPU, and notes how large the buffer is whenever it is handed out."""

    def __init__(self) -> None:
        super().__init__("cuda_ipc", CPU)
        self.exports: list[int] = []

    def _export(self) -> dict[str, tuple[Any, ...]]:
        self.exports.append(self._buffer.numel())
        return {"gpu0": (1, 2)}


@dataclass
class FakeTransfer:
    """vLLM's transfer engine: unpacks what lies in the sender's buffer into ``model``."""

    model: Any
    stager: BucketStager


@dataclass
class FakeVllmWorker:
    """vLLM's worker with the session rules of its own."""

    weight_transfer_engine: FakeTransfer
    joined_with: dict[str, object] = field(default_factory=dict)
    is_updating: bool = False
    damages: str = ""
    updates: list[dict[str, Any]] = field(default_factory=list)

    def init_weight_transfer_engine(self, how: dict[str, object]) -> None:
        self.joined_with = how

    def start_weight_update(self) -> None:
        assert not self.is_updating
        self.is_updating = True

    def update_weights(self, update: dict[str, Any]) -> None:
        assert self.is_updating
        self.updates.append(update)
        transfer = self.weight_transfer_engine
        bucket = StagedBucket(
            names=tuple(update["names"]),
            shapes=tuple(map(tuple, update["shapes"])),
            dtype=update["dtype_names"][0],
            checksum=0,
        )
        unpacked = _unpacked(transfer.stager._filled, bucket)
        transfer.model.load_weights([(name, tensor + (name == self.damages)) for name, tensor in unpacked])

    def finish_weight_update(self) -> None:
        assert self.is_updating
        self.is_updating = False

    @property
    def model_runner(self) -> Any:
        return self

    def get_model(self) -> Any:
        return type("Untied", (), {"language_model": _language(tied=False)})


def _language(*, tied: bool) -> Any:
    return type("Language", (), {"config": type("Settings", (), {"tie_word_embeddings": tied})})


def _worker(damages: str = "") -> tuple[FakeVllmWorker, FakeModel, StagerWithoutGpu]:
    model, stager = FakeModel(), StagerWithoutGpu()
    return FakeVllmWorker(FakeTransfer(model, stager), damages=damages), model, stager


def test_an_update_loads_every_bucket_and_gives_its_checksum_back() -> None:
    worker, model, stager = _worker()
    weights = {"a": torch.randn(3, 4), "b": torch.randn(5), "c": torch.randn(2, 2)}
    join_trainer(worker, "cuda_ipc", "", 1, 2)
    assert worker.joined_with == {"packed": True}
    stager.begin(iter([[("a", weights["a"]), ("b", weights["b"])], [("c", weights["c"])]]))
    begin_update(worker)
    while (bucket := stager.next()) is not None:
        # As records travel between vLLM's processes.
        call = pickle.dumps((receive_bucket, (bucket,)))
        assert call_pickled(worker, call) == bucket.checksum
    finish_update(worker)
    assert model.weights.keys() == weights.keys()
    assert all(torch.equal(model.weights[name], tensor) for name, tensor in weights.items())
    # vLLM's own model is back in its place; sizes are in bytes.
    assert worker.weight_transfer_engine.model is model
    assert [update["tensor_sizes"] for update in worker.updates] == [[48, 20], [16]]
    assert worker.updates[0]["ipc_handles"] == {"gpu0": (1, 2)}


def test_damage_on_the_way_changes_the_checksum() -> None:
    worker, _, stager = _worker(damages="b")
    begin_update(worker)
    bucket = stager.stage([("a", torch.randn(3)), ("b", torch.randn(5))])
    assert receive_bucket(worker, bucket) != bucket.checksum


def test_the_buffer_is_exported_once_an_update_and_again_when_it_has_grown() -> None:
    _, _, stager = _worker()
    for _ in range(2):
        stager.begin(iter([[("a", torch.ones(4))], [("b", torch.ones(4))], [("c", torch.ones(8))]]))
        while stager.next() is not None:
            pass
    assert stager.exports == [16, 32, 16, 32]


def test_nccl_members_are_numbered_behind_the_trainer() -> None:
    worker, _, _ = _worker()
    join_trainer(worker, "nccl", "aWQ=", 3, 5)
    assert worker.joined_with["rank_offset"] == 3
    assert worker.joined_with["world_size"] == 5
    assert worker.joined_with["nccl_unique_id_b64"] == "aWQ="


def test_only_the_warning_of_a_kept_layer_is_kept_back() -> None:
    logger = logging.getLogger("vllm.model_executor.model_loader.reload.layerwise")

    def passes(message: str) -> bool:
        # The logger's filters are asked directly: its level, handlers and "disabled"
        # are the process's, and other tests and libraries set them.
        record = logger.makeRecord(logger.name, logging.WARNING, "layerwise.py", 1, message, ("Qwen2RMSNorm",), None)
        return bool(logger.filter(record))

    with without_kept_layers():
        assert not passes("%s: Failed to load weights")
        assert passes("%s: Failed to copy weights")
    assert passes("%s: Failed to load weights")
