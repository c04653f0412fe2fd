"""Worlds of one and of two ranks whose settings can be changed without new processes.

The ranks are forked from one process that has imported everything, without Ray: that import is most of what
starting a rank costs, and it is paid once for all test modules.
"""

from __future__ import annotations

import gc
import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar, TypeVarTuple

import pytest

from rsgrpo.config import Config, ModelConfig
from rsgrpo.model.setup import WorkerSpec
from rsgrpo.types import TrainingGroup
from tests.engine.reloading_worker import ReloadingWorker

Arguments = TypeVarTuple("Arguments")
Result = TypeVar("Result")

_PATIENCE_SECONDS = 300.0  # for what takes a second on an idle machine
_FORK_SERVER = multiprocessing.get_context("forkserver")
_FORK_SERVER.set_forkserver_preload(["rsgrpo.trainer.worker", "rsgrpo.trainer.deepspeed_engine"])

_worker: ReloadingWorker | None = None  # in a rank's process: the rank


def _become(spec: WorkerSpec) -> None:
    global _worker
    gc.freeze()  # what was imported is not looked through at each of DeepSpeed's collections
    _worker = ReloadingWorker(spec)


def _do(method: Callable[..., Result], arguments: tuple[Any, ...]) -> Result:
    assert _worker is not None
    return method(_worker, *arguments)


class World:
    """Ranks that do everything together."""

    def __init__(self, ranks: list[ProcessPoolExecutor]) -> None:
        self._ranks = ranks

    def each(self, method: Callable[[ReloadingWorker, *Arguments], Result], *arguments: *Arguments) -> list[Result]:
        """All ranks call it with the same arguments; the results in rank order."""
        return self.each_own(method, [arguments] * len(self._ranks))

    def each_own(self, method: Callable[..., Result], arguments: list[tuple[Any, ...]]) -> list[Result]:
        """All ranks call it, each with arguments of its own."""
        calls: list[Future[Result]] = [
            rank.submit(_do, method, own) for rank, own in zip(self._ranks, arguments, strict=True)
        ]
        return [call.result(_PATIENCE_SECONDS) for call in calls]

    def prepare(self, groups: list[TrainingGroup]) -> int:
        """Hand groups out, unevenly on purpose: all but one to the first rank. The rows of the fullest rank."""
        shares = [groups] if len(self._ranks) == 1 else [groups[:-1], groups[-1:]]
        return max(self.each_own(ReloadingWorker.prepare, [(part,) for part in shares]))


Worlds = dict[int, World]


@contextmanager
def started_worlds(folder: Path) -> Iterator[Worlds]:
    """Worlds by their number of ranks, to be rebuilt with the settings of a test; they end with the block."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DS_ACCELERATOR", "cpu")
        patch.setenv("OMP_NUM_THREADS", "1")
        ranks = {size: [_start(folder, rank, size) for rank in range(size)] for size in (1, 2)}
        worlds = {size: World(ranks[size]) for size in ranks}
        for size, world in worlds.items():
            address = ranks[size][0].submit(_do, ReloadingWorker.address, ()).result(_PATIENCE_SECONDS)
            world.each(ReloadingWorker.load, address)
    try:
        yield worlds
    finally:
        for own in ranks.values():
            for rank in own:
                rank.shutdown()


def _start(folder: Path, rank: int, size: int) -> ProcessPoolExecutor:
    config = Config(stage="sft", model=ModelConfig(dtype="float32"))
    spec = WorkerSpec(config=config, model_folder=folder, rank=rank, world_size=size, device="cpu", num_threads=1)
    return ProcessPoolExecutor(1, mp_context=_FORK_SERVER, initializer=_become, initargs=(spec,))
