"""Taking turns on shared GPUs: who shrinks does so first, and what is parked comes back to the bit."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rsgrpo.cluster.gpu_sharing import Phase, Share, Turns
from rsgrpo.trainer.offload import StoragePark

CAPACITY = 2  # trainer and engines: all of one, or the weights of both


@dataclass
class Memory:
    """Both holders' shares; refuses to hold more than there is."""

    shares: dict[str, Share] = field(default_factory=lambda: {"trainer": Share.NOTHING, "engines": Share.ALL})
    calls: list[tuple[str, Share]] = field(default_factory=list)


@dataclass
class FakeHolder:
    name: str
    memory: Memory

    def hold(self, share: Share) -> None:
        self.memory.shares[self.name] = share
        self.memory.calls.append((self.name, share))
        assert sum(self.memory.shares.values()) <= CAPACITY


@given(st.lists(st.sampled_from(list(Phase)), max_size=12))
def test_both_never_hold_more_than_there_is_and_nobody_is_asked_in_vain(phases: list[Phase]) -> None:
    memory = Memory()
    turns = Turns(FakeHolder("trainer", memory), FakeHolder("engines", memory))
    for phase in phases:
        before, num_calls = dict(memory.shares), len(memory.calls)
        turns.take(phase)
        assert (memory.shares["trainer"], memory.shares["engines"]) == phase.value
        asked = memory.calls[num_calls:]
        assert {name for name, _ in asked} == {name for name in before if before[name] != memory.shares[name]}


def test_a_step_takes_three_turns() -> None:
    memory = Memory()
    turns = Turns(FakeHolder("trainer", memory), FakeHolder("engines", memory))
    for phase in (Phase.SAMPLING, Phase.TRAINING, Phase.TRANSFER, Phase.SAMPLING):
        turns.take(phase)
    assert memory.calls == [
        ("engines", Share.NOTHING),
        ("trainer", Share.ALL),
        ("trainer", Share.WEIGHTS),
        ("engines", Share.WEIGHTS),
        ("trainer", Share.NOTHING),
        ("engines", Share.ALL),
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_views_of_a_parked_buffer_come_back_to_the_bit_and_stay_views(dtype: torch.dtype) -> None:
    flat = torch.randn(100).to(dtype)
    first, second = flat[:40].view(8, 5), flat[40:]
    other = torch.randn(7)
    before = (flat.clone(), other.clone())
    park = StoragePark()
    park.move_out([first, second, flat, other, torch.empty(0)])
    # The buffer once, whatever looks at it: 100 numbers, and 7 of 4 bytes.
    assert park.num_bytes == 100 * dtype.itemsize + 28
    assert flat.untyped_storage().nbytes() == other.untyped_storage().nbytes() == 0
    park.bring_back()
    assert park.num_bytes == 0
    assert torch.equal(flat, before[0]) and torch.equal(other, before[1])
    first.fill_(3.0)
    assert flat[:40].eq(3.0).all() and torch.equal(second, before[0][40:])


def test_what_is_let_go_takes_no_memory_anywhere_and_comes_back_as_zeros() -> None:
    buffer, weight = torch.ones(50), torch.ones(10)
    view = buffer[:20]
    park = StoragePark()
    for _ in range(2):
        park.move_out([weight])
        park.let_go([buffer, view, torch.empty(0)])
        assert buffer.untyped_storage().nbytes() == 0
        assert park.num_bytes == park.num_host_bytes == 40
        park.bring_back()
        assert park.num_bytes == 0 and park.num_host_bytes == 40  # kept for the next time
        assert not buffer.any() and weight.eq(1.0).all()
        view.fill_(3.0)
        assert buffer.tolist() == [3.0] * 20 + [0.0] * 30


def test_parking_twice_keeps_the_newest_values() -> None:
    weight = torch.zeros(5)
    park = StoragePark()
    for step in range(3):
        park.move_out([weight])
        park.bring_back()
        assert weight.tolist() == [float(step)] * 5
        weight += 1.0
