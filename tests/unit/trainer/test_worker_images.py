"""A rank reads the pages of its rows while it works on them; the engine under it is torch alone."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from rsgrpo.config import Config, DataConfig, LossConfig, ModelConfig, TrainerConfig
from rsgrpo.data.images.sources import ImageError
from rsgrpo.model.setup import WorkerSpec
from rsgrpo.trainer.worker import PolicyWorker
from tests.tiny_model import build_tiny_model, three_groups

MODEL = ModelConfig(dtype="float32", freeze_vision=True, gradient_checkpointing=False)


class BareEngine:
    """What the worker asks of DeepSpeed, without DeepSpeed: one rank, no step."""

    def __init__(self, model: torch.nn.Module, *_: object, **__: object) -> None:
        self.forward = model

    def score(self, batch: Any, *, with_entropy: bool = False) -> tuple[torch.Tensor, torch.Tensor | None]:
        with torch.no_grad():
            found: tuple[torch.Tensor, torch.Tensor | None] = self.forward(batch, with_entropy=with_entropy)
        return found

    def accumulate(
        self,
        batches: Sequence[Callable[[], Any]],
        loss_of: Callable[..., torch.Tensor],
        *,
        with_entropy: bool = False,
    ) -> None:
        for index, make in enumerate(batches):
            batch = make()
            loss_of(index, batch, *self.forward(batch, with_entropy=with_entropy)).backward()

    def step(self) -> SimpleNamespace:
        return SimpleNamespace(grad_norm=0.0, learning_rate=0.0, is_skipped=False, num_skipped_in_row=0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def worker(folder: Path, monkeypatch: pytest.MonkeyPatch) -> PolicyWorker:
    module = ModuleType("rsgrpo.trainer.deepspeed_engine")
    module.DeepSpeedEngine = module.FrozenEngine = BareEngine  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "rsgrpo.trainer.deepspeed_engine", module)
    config = Config(
        stage="sft",
        model=MODEL,
        data=DataConfig(min_pixels=1, max_pixels=10**7),
        trainer=TrainerConfig(micro_batch_tokens=100),
    )
    spec = WorkerSpec(config=config, model_folder=folder, rank=0, world_size=1, device="cpu", num_threads=2)
    found = PolicyWorker(spec)
    found._build()
    return found


def test_a_page_damaged_after_the_start_is_named_by_the_step_and_the_next_step_runs(worker, tmp_path):
    groups = three_groups(tmp_path)
    file = Path(groups[1].prompt.images[-1].file)
    whole = file.read_bytes()
    damaged = bytearray(whole)
    damaged[len(damaged) // 2] ^= 1
    file.write_bytes(damaged)
    num_micro_batches = worker.prepare(groups)  # its header is whole
    for step in (worker.score, lambda count: worker.accumulate(count, "nll", None)):
        with pytest.raises(ImageError, match=r"imgs/2\.png.*truncated or damaged"):
            step(num_micro_batches)
    file.write_bytes(whole)
    assert len(worker.score(num_micro_batches)) == 8


def test_entropy_is_computed_where_it_is_read(worker, tmp_path):
    num_micro_batches = worker.prepare(three_groups(tmp_path))
    supervised = worker.accumulate(num_micro_batches, "nll", None).responses
    assert [stats.entropy for stats in (*supervised, *worker.score(num_micro_batches))] == [None] * 16
    trained = worker.accumulate(num_micro_batches, "policy", LossConfig(importance_cap=0.0)).responses
    for stats, alone in zip(trained, worker.score(num_micro_batches, with_entropy=True), strict=True):
        assert len(stats.entropy) == len(stats.logprobs)
        np.testing.assert_allclose(stats.entropy, alone.entropy, atol=1e-6)
