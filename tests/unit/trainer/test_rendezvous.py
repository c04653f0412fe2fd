"""The port that training ranks meet at is never free between being told and being used."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from torch.distributed import TCPStore  # type: ignore[attr-defined]  # not in its list of names

from rsgrpo.config import Config
from rsgrpo.model.setup import WorkerSpec
from rsgrpo.trainer.worker import PolicyWorker


def worker_of(rank: int, world_size: int) -> PolicyWorker:
    spec = WorkerSpec(
        config=Config(stage="sft"),
        model_folder=Path("none"),
        rank=rank,
        world_size=world_size,
        device="cpu",
        num_threads=torch.get_num_threads(),
    )
    return PolicyWorker(spec)


def is_free(port: int) -> bool:
    """Whether another process could take a port now, as one that looks for free ports would."""
    with socket.socket() as taker:
        try:
            taker.bind(("", port))
        except OSError:
            return False
    return True


@pytest.fixture
def no_group(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing of a group of ranks stays behind, the variables of its meeting included."""
    for name in ("MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.setenv(name, "")
    yield
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def test_the_port_is_held_from_its_choice_until_the_ranks_have_met(
    no_group: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = worker_of(0, 1)
    held: list[bool] = []
    meet = torch.distributed.init_process_group

    def watched_meeting(*arguments: object, **settings: object) -> None:
        held.append(not is_free(port))
        meet(*arguments, **settings)  # type: ignore[arg-type]

    def build(self: PolicyWorker) -> None:
        held.append(not is_free(port))
        self._base_checksum = str(torch.distributed.get_world_size())

    monkeypatch.setattr(torch.distributed, "init_process_group", watched_meeting)
    monkeypatch.setattr(PolicyWorker, "_build", build)
    host, port = worker.address()
    held.append(not is_free(port))
    assert worker.load((host, port)) == "1"
    assert held == [True, True, True]


def test_whoever_connects_to_the_address_reaches_the_first_ranks_store() -> None:
    worker = worker_of(0, 2)
    host, port = worker.address()
    other = TCPStore(host, port, is_master=False, timeout=timedelta(seconds=60))
    other.set("rank 1", "is here")
    assert worker._store is not None
    assert worker._store.get("rank 1") == b"is here"
