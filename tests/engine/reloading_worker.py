"""A rank that can be built anew with other settings, so that many settings cost one process start."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from rsgrpo.config import Config, LossConfig, OptimizerConfig
from rsgrpo.objective import row_loss
from rsgrpo.policy_worker import PolicyWorker
from rsgrpo.types import TrainingGroup
from rsgrpo.weights import checkpoint_name


class ReloadingWorker(PolicyWorker):
    """For tests: shows gradients and weights."""

    def rebuild(self, config: Config, optimizer: OptimizerConfig) -> None:
        """Load the model again under other settings."""
        self._spec = dataclasses.replace(self._spec, config=config)
        self._config = config
        self._build()
        self._engine.begin_stage(optimizer, 10)

    def gradient(
        self, num_micro_batches: int, objective: str, loss: LossConfig | None
    ) -> tuple[float, dict[str, np.ndarray]]:
        """This rank's share of the loss and the whole gradient, accumulated but not applied."""
        values: list[float] = []

        def loss_of(index, batch, logprobs, entropy):
            value, _ = row_loss(batch, logprobs, objective, loss)
            values.append(float(value.detach()))
            return value

        from deepspeed.utils import safe_get_full_grad

        self._engine.accumulate(self._row_makers(num_micro_batches), loss_of)
        return sum(values), self._read(safe_get_full_grad)

    def step(self) -> float:
        """Apply what was accumulated; the norm before clipping."""
        return self._engine.step().grad_norm

    def weights(self) -> dict[str, np.ndarray]:
        """The master weights."""
        from deepspeed.utils import safe_get_full_fp32_param

        return self._read(safe_get_full_fp32_param)

    def _read(self, getter) -> dict[str, np.ndarray]:
        found = {}
        for name, parameter in self._model.named_parameters():
            if parameter.requires_grad:
                value = getter(parameter)
                found[checkpoint_name(name)] = value.float().numpy().copy()
        return found


def share(groups: Sequence[TrainingGroup], ranks: int) -> list[list[TrainingGroup]]:
    """Uneven on purpose: all but one group to the first rank."""
    return [list(groups)] if ranks == 1 else [list(groups[:-1]), list(groups[-1:])]
