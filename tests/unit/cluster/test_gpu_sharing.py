"""Shared GPUs: offloading comes before onloading, and what was offloaded comes back to the bit."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rsgrpo.cluster.gpu_sharing import GpuSharing, OnGpu, Phase
from rsgrpo.trainer.offload import HostOffloader

CAPACITY = 2  # trainer and engines: all of one, or the weights of both


@dataclass
class Memory:
    """Both users; refuses to hold more than there is."""

    shares: dict[str, OnGpu] = field(default_factory=lambda: {"trainer": OnGpu.NOTHING, "engines": OnGpu.ALL})
    calls: list[tuple[str, OnGpu]] = field(default_factory=list)


@dataclass
class FakeUser:
    name: str
    memory: Memory

    def set_on_gpu(self, parts: OnGpu) -> None:
        self.memory.shares[self.name] = parts
        self.memory.calls.append((self.name, parts))
        assert sum(self.memory.shares.values()) <= CAPACITY


@given(st.lists(st.sampled_from(list(Phase)), max_size=12))
def test_trainer_and_engines_hold_what_the_phase_says_and_only_changes_are_asked_for(phases: list[Phase]) -> None:
    memory = Memory()
    gpu_sharing = GpuSharing(FakeUser("trainer", memory), FakeUser("engines", memory))
    for phase in phases:
        before, num_calls = dict(memory.shares), len(memory.calls)
        gpu_sharing.begin(phase)
        assert (memory.shares["trainer"], memory.shares["engines"]) == phase.value
        asked = memory.calls[num_calls:]
        assert {name for name, _ in asked} == {name for name in before if before[name] != memory.shares[name]}


def test_sampling_training_and_transfer_take_turns_on_a_shared_gpu() -> None:
    memory = Memory()
    gpu_sharing = GpuSharing(FakeUser("trainer", memory), FakeUser("engines", memory))
    for phase in (Phase.SAMPLING, Phase.TRAINING, Phase.TRANSFER, Phase.SAMPLING):
        gpu_sharing.begin(phase)
    assert memory.calls == [
        ("engines", OnGpu.NOTHING),
        ("trainer", OnGpu.ALL),
        ("trainer", OnGpu.WEIGHTS),
        ("engines", OnGpu.WEIGHTS),
        ("trainer", OnGpu.NOTHING),
        ("engines", OnGpu.ALL),
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_views_of_an_offloaded_buffer_come_back_to_the_bit_and_stay_views(dtype: torch.dtype) -> None:
    flat = torch.randn(100).to(dtype)
    first, second = flat[:40].view(8, 5), flat[40:]
    other = torch.randn(7)
    before = (flat.clone(), other.clone())
    offloader = HostOffloader()
    offloader.offload([first, second, flat, other, torch.empty(0)])
    # The buffer once, whatever looks at it: 100 numbers, and 7 of 4 bytes.
    assert offloader.num_bytes == 100 * dtype.itemsize + 28
    assert flat.untyped_storage().nbytes() == other.untyped_storage().nbytes() == 0
    offloader.onload()
    assert offloader.num_bytes == 0
    assert torch.equal(flat, before[0]) and torch.equal(other, before[1])
    first.fill_(3.0)
    assert flat[:40].eq(3.0).all() and torch.equal(second, before[0][40:])


def test_released_tensors_take_no_memory_and_come_back_as_zeros() -> None:
    buffer, weight = torch.ones(50), torch.ones(10)
    view = buffer[:20]
    offloader = HostOffloader()
    for _ in range(2):
        offloader.offload([weight])
        offloader.let_go([buffer, view, torch.empty(0)])
        assert buffer.untyped_storage().nbytes() == 0
        assert offloader.num_bytes == offloader.num_host_bytes == 40
        offloader.onload()
        assert offloader.num_bytes == 0 and offloader.num_host_bytes == 40  # kept for the next time
        assert not buffer.any() and weight.eq(1.0).all()
        view.fill_(3.0)
        assert buffer.tolist() == [3.0] * 20 + [0.0] * 30


def test_parking_twice_keeps_the_newest_values() -> None:
    weight = torch.zeros(5)
    offloader = HostOffloader()
    for step in range(3):
        offloader.offload([weight])
        offloader.onload()
        assert weight.tolist() == [float(step)] * 5
        weight += 1.0
