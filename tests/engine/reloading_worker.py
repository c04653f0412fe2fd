"""A rank that can be built anew with other settings, so that many settings cost one process start."""

from __future__ import annotations

import ctypes
import dataclasses
import gc
import math
import resource
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.multiprocessing.reductions import StorageWeakRef

from rsgrpo.config import Config, LossConfig, OptimizerConfig
from rsgrpo.model.families.table import family_of
from rsgrpo.model.lora import adapter_layers, adapter_parameters
from rsgrpo.model.setup import open_policy_model, wrap_model
from rsgrpo.trainer.engine_settings import deepspeed_settings, trained_elements
from rsgrpo.trainer.objective import row_loss
from rsgrpo.trainer.results import RankStep
from rsgrpo.trainer.worker import PolicyWorker
from tests.live_bytes import LiveBytes, tensor_storages


@dataclass(frozen=True, kw_only=True)
class LoadedBytes:
    """What loading a model took on one rank."""

    peak: int
    kept: int
    largest: int
    whole: int


class ReloadingWorker(PolicyWorker):
    """For tests: shows gradients and weights."""

    def rebuild(
        self,
        config: Config,
        optimizer: OptimizerConfig,
        features_folder: Path | None = None,
        model_folder: Path | None = None,
    ) -> None:
        """Load the model again, or another one, under other settings."""
        self._spec = dataclasses.replace(
            self._spec,
            config=config,
            features_folder=features_folder,
            model_folder=model_folder or self._spec.model_folder,
        )
        self._config = config
        self._build()
        self._engine.begin_stage(optimizer, 10)

    def update(self, num_micro_batches: int, objective: str, loss: LossConfig | None) -> RankStep:
        """Accumulate and step at once."""
        self.accumulate(num_micro_batches, objective, loss)
        return self.take_step()

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

        makers = self._row_makers(num_micro_batches, with_reference=self._has_reference and objective == "policy")
        self._engine.accumulate(makers, loss_of)
        return sum(values), self._read(safe_get_full_grad)

    def parked_bytes(self) -> tuple[int, int]:
        """Bytes of weights and of optimizer states that wait on the host."""
        return self._engine._weights_offloader.num_bytes, self._engine._states_offloader.num_bytes

    def live_bytes(self) -> int:
        """Bytes of all tensors of the process, pages apart."""
        self.forget_images()
        return sum(storage.nbytes() for storage in tensor_storages().values())

    def let_model_go(self) -> None:
        """End what was built. Whatever stays of it does not count later."""
        self._engine.close()
        if self._reference is not None:
            self._reference.close()
        del self._engine, self._model, self._builder, self._reference
        self._old = [(key, StorageWeakRef(storage)) for key, storage in tensor_storages().items()]

    def forget_images(self) -> None:
        """Let go of prompts, processed pages and what they are unpacked with, which lie in host memory."""
        self.prepare([])
        self._encoder._feed._held.clear()
        self._encoder._packer._tables = None

    def bytes_on_device(self) -> int:
        """Bytes of all tensors made since :meth:`let_model_go`, the offloaders' host memory apart."""
        offloaders = [self._engine._weights_offloader, self._engine._states_offloader]
        if self._reference is not None:
            offloaders.append(self._reference._offloader)
        old = {key for key, reference in self._old if not reference.expired()}
        new = sum(storage.nbytes() for key, storage in tensor_storages().items() if key not in old)
        return new - sum(offloader.num_host_bytes for offloader in offloaders)

    def loading(self, frozen: bool) -> LoadedBytes:
        """Load the model as a rank does, or the frozen reference, and count; rebuild afterwards."""
        from rsgrpo.trainer.deepspeed_engine import FrozenEngine, fill_model

        self.let_model_go()
        device = self._spec.torch_device
        with LiveBytes() as live:
            opened = open_policy_model(self._spec.model_folder, self._spec, self._processor)
            model = wrap_model(opened.model, self._spec)
            if frozen:
                FrozenEngine(model, self._config, device=device, weights=opened.weights)
            else:
                settings = deepspeed_settings(self._config, device, num_trained=trained_elements(model))
                fill_model(model, opened.weights, settings, device)
        parameters = list(model.parameters())
        sizes = [
            math.prod(getattr(parameter, "ds_shape", parameter.shape)) * parameter.element_size()
            for parameter in parameters
        ]
        # Beside its share a rank keeps small parameters whole.
        kept = [
            parameter.nbytes + (parameter.ds_tensor.nbytes if hasattr(parameter, "ds_tensor") else 0)
            for parameter in parameters
        ]
        buffers = sum(buffer.nbytes for buffer in model.buffers())
        return LoadedBytes(peak=live.peak, kept=sum(kept) + buffers, largest=max(sizes), whole=sum(sizes))

    def buffers(self) -> dict[str, np.ndarray]:
        """The model's buffers, by name."""
        return {name: buffer.numpy().copy() for name, buffer in self._model.named_buffers()}

    def move_adapters(self) -> None:
        """Give every adapter values of some size, as training would."""
        import deepspeed

        generator = torch.Generator().manual_seed(0)
        for layer in adapter_layers(self._model).values():
            for parameter in adapter_parameters(layer):
                with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0), torch.no_grad():
                    if parameter.numel():  # under ZeRO 3 a rank that does not modify sees it, too
                        parameter.copy_(torch.empty(parameter.shape).normal_(0.0, 0.2, generator=generator))

    def sent(self) -> dict[str, np.ndarray]:
        """Every parameter as engines and exports get it."""
        chunks = list(self._tensors(trainable_only=False, max_bytes=2**14))
        return {self._name(name): tensor.float().numpy().copy() for chunk in chunks for name, tensor in chunk}

    def sent_adapters(self) -> dict[str, np.ndarray]:
        """The adapters as engines get them where they keep the base."""
        (chunk,) = self._tensors(max_bytes=0, is_adapter=True)
        return {name: tensor.numpy().copy() for name, tensor in chunk}

    def sent_names(self) -> list[str]:
        """Names of what changes with an update."""
        chunks = self._tensors(trainable_only=True, max_bytes=2**14)
        return [self._name(name) for chunk in chunks for name, _ in chunk]

    def reference(self, num_micro_batches: int) -> list[np.ndarray]:
        """What the KL term is measured against, row by row."""
        makers = self._row_makers(num_micro_batches, with_reference=True)
        shown = []
        for make in makers:
            logprobs = make().reference_logprobs
            assert logprobs is not None
            shown.append(logprobs.numpy().copy())
        return shown

    def scored(self, num_micro_batches: int) -> list[np.ndarray]:
        """The policy's own log-probabilities, row by row, as the update computes them."""
        rows = [make() for make in self._row_makers(num_micro_batches)]
        return [self._engine.forward(row)[0].detach().numpy().copy() for row in rows]

    def update_with_bytes_left(self, num_bytes: int) -> None:
        """An update of what was prepared in a process that may not grow by more."""
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)  # what the C library keeps for later would be used first
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limits = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + num_bytes, limits[1]))
        try:
            self.update(1, "nll", None)
        finally:
            resource.setrlimit(resource.RLIMIT_AS, limits)

    def _name(self, name: str) -> str:
        return family_of(self._model).checkpoint_name(name)

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
                found[self._name(name)] = value.float().numpy().copy()
        return found
