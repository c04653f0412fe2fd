"""What the plan says a rank keeps, against what DeepSpeed's engine holds on gloo ranks."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest
from torch import Tensor

from rsgrpo.config import Config, DataConfig, Dtype, LoraConfig, ModelConfig, OptimizerConfig, TrainerConfig
from rsgrpo.model.policy_model import MicroBatch
from rsgrpo.model.sizes import model_sizes
from rsgrpo.trainer.objective import row_loss
from rsgrpo.trainer.state_memory import state_memory
from tests.engine.reloading_worker import ReloadingWorker
from tests.engine.worlds import Worlds
from tests.tiny_model import build_tiny_model, make_group

_OPTIMIZER = OptimizerConfig(learning_rate=1e-3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # An MLP matrix has 256 × 512 = 131,072 elements, above the 100,000 that ZeRO 3 leaves whole; the rest is below.
    return build_tiny_model(tmp_path_factory.mktemp("model"), hidden=256, layers=2, tie=True)


def _config(dtype: Dtype = "float32", lora: int = 0, **trainer: object) -> Config:
    return Config(
        stage="sft",
        model=ModelConfig(dtype=dtype, lora=LoraConfig(rank=lora), gradient_checkpointing=False),
        data=DataConfig(min_pixels=1, max_pixels=10**7),
        trainer=TrainerConfig(**trainer),  # type: ignore[arg-type]
    )


def _num_bytes(tensors: Iterable[Tensor | None]) -> int:
    """Of whole storages, each once."""
    found = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
        for tensor in tensors
        if tensor is not None
    }
    return sum(found.values())


def _gradient_bytes(worker: ReloadingWorker) -> int:
    optimizer = worker._engine._engine.optimizer
    parameters = list(worker._model.parameters())
    own = [parameter.grad for parameter in parameters]
    if hasattr(optimizer, "fp32_groups_gradients_flat"):  # ZeRO 1 in bfloat16
        return _num_bytes([*own, *optimizer.fp32_groups_gradients_flat])
    if hasattr(optimizer, "grad_partitions_flat_buffer"):  # ZeRO 3
        return _num_bytes([*own, optimizer.grad_partitions_flat_buffer])
    kept = [tensor for group in optimizer.averaged_gradients.values() for tensor in group or ()]
    return _num_bytes([*own, *kept, *(getattr(parameter, "grad_accum", None) for parameter in parameters)])


def _gradients(worker: ReloadingWorker, num_rows: int) -> int:
    """Accumulate a row twice; the most that gradients take between and behind."""
    found: list[int] = []

    def loss_of(index: int, batch: MicroBatch, logprobs: Tensor, entropy: Tensor | None) -> Tensor:
        if index:
            found.append(_gradient_bytes(worker))
        return row_loss(batch, logprobs, "nll", None)[0]

    worker._engine.accumulate(2 * worker._row_makers(num_rows), loss_of)
    return max(*found, _gradient_bytes(worker))


def _bucket_bytes(worker: ReloadingWorker) -> int:
    """Of what gradients are summed through: ZeRO 3 keeps its one buffer, ZeRO 1 and 2 make theirs anew each time."""
    optimizer = worker._engine._engine.optimizer
    if hasattr(optimizer, "grad_partitions_flat_buffer"):
        return _num_bytes([bucket.buffer for bucket in optimizer.ipg_buckets.values()])
    if not hasattr(optimizer, "ipg_buckets"):  # ZeRO 1 in bfloat16
        return 0
    return optimizer.reduce_bucket_size * optimizer._gradient_reduction_buffer_dtype().itemsize


def _states(worker: ReloadingWorker) -> tuple[int, int, int]:
    """Weights, masters and moments after a step."""
    worker.step()
    optimizer = worker._engine._engine.optimizer
    parameters = list(worker._model.parameters())
    weights = _num_bytes([*parameters, *(getattr(parameter, "ds_tensor", None) for parameter in parameters)])
    if hasattr(optimizer, "fp32_partitioned_groups_flat"):
        masters = optimizer.fp32_partitioned_groups_flat
    else:
        masters = [tensor for group in optimizer.optimizer.param_groups for tensor in group["params"]]
    moments = [v for state in optimizer.optimizer.state.values() for v in state.values() if isinstance(v, Tensor)]
    return weights, _num_bytes(masters), _num_bytes(moments)


@pytest.mark.parametrize(
    ("num_ranks", "dtype", "lora"),
    [(1, "float32", 0), (1, "bfloat16", 4), (2, "float32", 0), (2, "bfloat16", 0), (2, "bfloat16", 4)],
)
@pytest.mark.parametrize("zero_stage", [1, 2, 3])
def test_states_take_what_the_plan_says(
    worlds: Worlds, folder: Path, num_ranks: int, dtype: Dtype, zero_stage: int, lora: int
) -> None:
    config = _config(dtype, lora, num_ranks=num_ranks, zero_stage=zero_stage, micro_batch_tokens=4000)
    world = worlds[num_ranks]
    group = make_group("a", [], [5, 7], seed=1)
    world.each(ReloadingWorker.rebuild, config, _OPTIMIZER)
    rows = max(world.each(ReloadingWorker.prepare, [group]))
    gradients = world.each(_gradients, rows)
    buckets = world.each(_bucket_bytes)
    measured = world.each(_states)
    expected = state_memory(
        model_sizes(folder, config.model).parameters,
        num_ranks=num_ranks,
        zero_stage=zero_stage,
        weight_bytes=4 if dtype == "float32" else 2,
    )
    # The rank with most: whole parameters do not divide evenly.
    assert max(gradients) == pytest.approx(expected.gradients, rel=0.02)
    for weights, masters, moments in measured:
        assert weights == pytest.approx(expected.weights, rel=0.02)
        assert masters == pytest.approx(expected.masters, rel=0.02)
        assert moments == pytest.approx(expected.moments, rel=0.02)
    trained = [
        parameter.num_elements for parameter in model_sizes(folder, config.model).parameters if parameter.is_trained
    ]
    is_bf16_optimizer = zero_stage == 1 and dtype == "bfloat16"
    width = 2 if zero_stage == 2 and dtype == "bfloat16" else 4
    # All trained elements, one more where they are odd; on a GPU two buffers take turns under ZeRO 1 and 2.
    assert buckets == [0 if is_bf16_optimizer else width * (sum(trained) + sum(trained) % 2)] * num_ranks
