"""The only module that imports DeepSpeed: ZeRO stages, accumulation, clipping, checkpoints, gathering parameters.

Imported inside a training worker only. The loss that comes in is already divided by the whole step's
token counts, so DeepSpeed's own averages (over accumulation steps and over ranks) are undone here:
gradients are sums over micro-batches and ranks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import deepspeed
import deepspeed.ops
import torch
from deepspeed.checkpoint.constants import (
    BASE_OPTIMIZER_STATE,
    FP32_FLAT_GROUPS,
    OPTIMIZER_STATE_DICT,
    SINGLE_PARTITION_OF_FP32_GROUPS,
)
from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus
from torch import Tensor, nn

from rsgrpo.cluster.gpu_sharing import OnGpu
from rsgrpo.config import Config, OptimizerConfig
from rsgrpo.model.lora import exported_parameters, named_adapters, of_trained_layers
from rsgrpo.model.policy_model import MicroBatch, PolicyModel
from rsgrpo.model.stored_weights import StoredWeights
from rsgrpo.trainer.engine_settings import deepspeed_settings, learning_rate, parameter_groups, trained_elements
from rsgrpo.trainer.offload import HostOffloader
from rsgrpo.trainer.rank_share import (
    RankCounters,
    check_fit,
    optimizer_file,
    random_states,
    read_counted,
    read_tensors,
    set_random_states,
    weights_file,
    write_tensors,
)
from rsgrpo.trainer.zero_internals import by_bytes, drop_gradients, let_go, on_device, weights_of

_VISION_GROUP = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class StepOutcome:
    """What an optimizer step did.

    Attributes:
        grad_norm: the norm of the gradient before clipping; infinite where the step was skipped.
        learning_rate: the learning rate that the step used.
        is_skipped: whether the gradient was not finite and the weights stayed as they were.
        num_skipped_in_row: how many steps in a row were skipped, this one included.
    """

    grad_norm: float
    learning_rate: float
    is_skipped: bool
    num_skipped_in_row: int


class _FilledOneByOne(nn.Module):
    """A stand-in for a model while DeepSpeed splits it: every parameter gets its values just before its turn."""

    def __init__(self, model: nn.Module, weights: StoredWeights, device: torch.device) -> None:
        super().__init__()
        self._model = model
        self._weights = weights
        self._device = device

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        """The model's parameters with their values; whoever asks for the next one must be done with the last."""
        return self._weights.filled(super().parameters(recurse), self._device)


def fill_model(model: nn.Module, weights: StoredWeights, settings: dict, device: torch.device) -> None:
    """Put a model's values onto a rank's device: under ZeRO 3 this rank's share of them, else all.

    At no time is there more than what stays and one tensor.

    Args:
        model: the model without values; its buffers move as well.
        weights: the weights that hold the values.
        settings: the settings that DeepSpeed will be initialized with.
        device: the device of the rank.
    """
    if settings["zero_optimization"]["stage"] == 3:
        deepspeed.zero.Init(module=_FilledOneByOne(model, weights, device), config_dict_or_path=settings)
    else:
        weights.load(model.parameters(), device)
    weights.close()
    for buffer in model.buffers():
        buffer.data = buffer.data.to(device)  # DeepSpeed leaves them where they are in a model that is split already


class DeepSpeedEngine:
    """A model, its optimizer and its schedule on one rank.

    Args:
        model: the wrapped model, without values.
        config: the settings: ZeRO stage, precision, offloading.
        device: the device of this rank.
        weights: the weights that hold the model's values.
    """

    def __init__(self, model: PolicyModel, config: Config, *, device: torch.device, weights: StoredWeights) -> None:
        self._config = config
        self._zero_stage = config.trainer.zero_stage
        self._optimizer_config = config.rl.optimizer
        self._num_steps = 1
        self.stage_step = 0
        self.num_skipped_in_row = 0
        self._weights_offloader, self._states_offloader = HostOffloader(), HostOffloader()
        self._on_gpu = OnGpu.ALL
        self._device = device
        optimizer = torch.optim.AdamW(
            parameter_groups(model, config), lr=config.rl.optimizer.learning_rate, foreach=True
        )
        if device.type == "cpu":
            # Else DeepSpeed compiles an extension for shared-memory inference, which training never calls: a
            # minute at the first start, and a lock that hangs every later start if that one was killed.
            deepspeed.ops.__compatible_ops__ = {}
        settings = deepspeed_settings(config, device, num_trained=trained_elements(model))
        fill_model(model, weights, settings, device)
        self._engine, *_ = deepspeed.initialize(
            model=model, optimizer=optimizer, config=settings, dist_init_required=False
        )
        self.world_size = torch.distributed.get_world_size()
        self._rank = torch.distributed.get_rank()

    def begin_stage(self, optimizer: OptimizerConfig, num_steps: int) -> None:
        """Forget the optimizer's moments and start a schedule.

        Args:
            optimizer: the optimizer's settings: rate, schedule, betas, decay, clipping.
            num_steps: how many optimizer steps the stage has.
        """
        self._optimizer_config = optimizer
        self._num_steps = num_steps
        self.stage_step = 0
        self.num_skipped_in_row = 0
        for state in self._torch_optimizer().state.values():
            for value in state.values():
                if isinstance(value, Tensor):
                    value.zero_()
        self._apply_settings()

    def close(self) -> None:
        """Let go of the model, so that another can take its place."""
        self._engine.destroy()
        if self._zero_stage == 3:
            let_go(self._engine)

    def _torch_optimizer(self) -> torch.optim.Optimizer:
        return self._engine.optimizer.optimizer

    def _apply_settings(self) -> None:
        settings = self._optimizer_config
        self._engine.optimizer.clip_grad = settings.max_grad_norm
        rate = learning_rate(settings, self.stage_step, self._num_steps)
        share = settings.vision_learning_rate / settings.learning_rate if settings.vision_learning_rate else 1.0
        for index, group in enumerate(self._torch_optimizer().param_groups):
            group["lr"] = rate * share if index == _VISION_GROUP else rate
            group["betas"] = (settings.beta1, settings.beta2)
            group["weight_decay"] = settings.weight_decay

    def forward(self, batch: MicroBatch, *, with_entropy: bool = False) -> tuple[Tensor, Tensor | None]:
        """Log-probabilities and, if asked for, entropy of a sequence, with a graph."""
        self._engine.train()
        return self._engine(batch, with_entropy=with_entropy)

    @torch.no_grad()
    def score(self, batch: MicroBatch, *, with_entropy: bool = False) -> tuple[Tensor, Tensor | None]:
        """Log-probabilities and, if asked for, entropy of a sequence, without a graph."""
        self._engine.eval()
        return self._engine(batch, with_entropy=with_entropy)

    def accumulate(
        self,
        batches: Sequence[Callable[[], MicroBatch]],
        loss_of: Callable[[int, MicroBatch, Tensor, Tensor | None], Tensor],
        *,
        with_entropy: bool = False,
    ) -> None:
        """Forward and backward over micro-batches; gradients add up.

        Args:
            batches: builders of the sequences, called one after the other.
            loss_of: gives a sequence's share of the step's loss from its index, the sequence, log-probabilities and
                entropy.
            with_entropy: whether ``loss_of`` gets the entropy; else None.
        """
        for index, make in enumerate(batches):
            self._engine.set_gradient_accumulation_boundary(index == len(batches) - 1)
            batch = make()
            loss = loss_of(index, batch, *self.forward(batch, with_entropy=with_entropy))
            # DeepSpeed averages gradients over ranks.
            self._engine.backward(loss * self.world_size, scale_wrt_gas=False)

    def step(self) -> StepOutcome:
        """Clip and update, or skip where the gradient is not finite."""
        self._apply_settings()
        rate = self._torch_optimizer().param_groups[0]["lr"]
        self._engine.step()
        is_skipped = bool(self._engine.optimizer.overflow)
        norm = self._engine.get_global_grad_norm()
        self.stage_step += 1
        self.num_skipped_in_row = self.num_skipped_in_row + 1 if is_skipped else 0
        return StepOutcome(
            grad_norm=math.inf if is_skipped or norm is None else float(norm),
            learning_rate=float(rate),
            is_skipped=is_skipped,
            num_skipped_in_row=self.num_skipped_in_row,
        )

    def drop_gradients(self) -> None:
        """Forget what was accumulated: weights, moments and counters are as before."""
        drop_gradients(self._engine.optimizer, self._zero_stage)

    def gathered_parameters(self, *, trainable_only: bool, max_bytes: int) -> Iterator[list[tuple[str, Tensor]]]:
        """All parameters, whole, in lists of at most ``max_bytes`` (one larger parameter makes a list).

        Every rank must go through all lists. Names are those of a model without adapters, which are merged in;
        a tied head is left out.

        Args:
            trainable_only: whether layers that training does not change are left out.
            max_bytes: the most bytes of a list; one larger parameter makes a list of its own.
        """
        exported = exported_parameters(self._engine.module.model)
        if trainable_only:
            exported = of_trained_layers(exported)
        for chunk in by_bytes(exported, max_bytes):
            with self._whole([parameter for weight in chunk for parameter in weight.parameters]):
                yield [(weight.name, weight.tensor()) for weight in chunk]

    def gathered_adapters(self) -> list[tuple[str, Tensor]]:
        """The adapters alone, whole, on the host, by names as :func:`rsgrpo.model.lora.named_adapters` gives them.

        Every rank must call it.
        """
        named = named_adapters(self._engine.module.model)
        with self._whole([parameter for _, parameter in named]):
            return [(name, parameter.detach().cpu().clone()) for name, parameter in named]

    def _whole(self, parameters: list[nn.Parameter]):
        partitioned = [p for p in parameters if hasattr(p, "ds_id") and p.ds_status == ZeroParamStatus.NOT_AVAILABLE]
        return deepspeed.zero.GatheredParameters(partitioned, enabled=self._zero_stage == 3)

    def set_on_gpu(self, parts: OnGpu) -> None:
        """Move weights and optimizer states to the host, or back.

        Args:
            parts: what stays on the device: nothing, the weights, or all.
        """
        if parts < OnGpu.ALL == self._on_gpu:
            weights = {tensor.untyped_storage().data_ptr() for tensor in weights_of(self._engine.module)}
            # Under ZeRO 3 the master weights of a float32 model are its weights.
            self._states_offloader.offload(t for t in self._states() if t.untyped_storage().data_ptr() not in weights)
            self._states_offloader.let_go(self._scratch())
        if parts < OnGpu.WEIGHTS <= self._on_gpu:
            self._weights_offloader.offload(on_device(weights_of(self._engine.module), self._device))
        if self._on_gpu < OnGpu.WEIGHTS <= parts:
            self._weights_offloader.onload()
        if self._on_gpu < OnGpu.ALL == parts:
            self._states_offloader.onload()
        self._on_gpu = parts
        if torch.cuda.is_available():
            torch.cuda.ipc_collect()  # the bucket that engines read
            torch.cuda.empty_cache()

    def _states(self) -> Iterator[Tensor]:
        """The master weights and moments that are on the device."""
        zero, optimizer = self._engine.optimizer, self._torch_optimizer()
        masters = [parameter.data for group in optimizer.param_groups for parameter in group["params"]]
        if self._zero_stage == 3:
            # The optimizer sees them during its step only.
            masters = [parameter.data for parameter in zero.fp32_partitioned_groups_flat]
        moments = [v for state in optimizer.state.values() for v in state.values() if isinstance(v, Tensor)]
        return on_device([*masters, *moments], self._device)

    def _scratch(self) -> Iterator[Tensor]:
        """Buffers that DeepSpeed keeps from step to step though nothing in them outlives a step."""
        zero = self._engine.optimizer
        if self._zero_stage == 3:
            buckets = [bucket.buffer for bucket in zero.ipg_buckets.values() if bucket.buffer is not None]
            return on_device([zero.grad_partitions_flat_buffer, *buckets], self._device)
        if isinstance(zero, BF16_Optimizer):  # ZeRO 1 of a bfloat16 model
            return on_device(zero.fp32_groups_gradients_flat, self._device)
        if self._config.trainer.offload_optimizer:
            return on_device([zero.temp_grad_buffer_for_gpu_offload], self._device)
        return iter(())

    def save(self, folder: Path) -> None:
        """Write weights, moments and counters; every rank writes its share into the same folder."""
        counters = RankCounters(
            stage_step=self.stage_step,
            num_steps=self._num_steps,
            num_skipped_in_row=self.num_skipped_in_row,
            engine_steps=self._engine.global_steps,
            engine_skipped_steps=self._engine.skipped_steps,
            optimizer=self._optimizer_config,
        )
        with self._at_rest():
            _, masters, moments = self._optimizer_state()
            states = {f"master/{index}": tensor for index, tensor in enumerate(masters)}
            states |= {f"moment/{index}/{name}": t for index, own in moments.items() for name, t in own.items()}
            write_tensors(folder / optimizer_file(self._rank), states | random_states(), counters)
            if self._rank == 0 or self._zero_stage == 3:
                write_tensors(folder / weights_file(self._rank, self._zero_stage), self._stored_weights())

    def load(self, folder: Path) -> None:
        """Read what :meth:`save` wrote with as many ranks and the same ZeRO stage.

        Raises:
            CheckpointError: a file is missing or damaged, or belongs to another model.
        """
        place = folder / optimizer_file(self._rank)
        saved, counters = read_counted(place)
        with self._at_rest():
            weights_place = folder / weights_file(self._rank, self._zero_stage)
            weights, own = read_tensors(weights_place), self._stored_weights()
            check_fit(weights_place, weights, own)
            state, masters, _ = self._optimizer_state()
            kept = {name: tensor for name, tensor in saved.items() if name.startswith("master/")}
            check_fit(place, kept, {f"master/{index}": tensor for index, tensor in enumerate(masters)})
            with torch.no_grad():
                for name, tensor in own.items():
                    tensor.copy_(weights[name])
            self._set_optimizer_state(state, [kept[f"master/{index}"] for index in range(len(masters))], saved)
        self._engine.global_steps, self._engine.skipped_steps = counters.engine_steps, counters.engine_skipped_steps
        self.stage_step, self._num_steps = counters.stage_step, counters.num_steps
        self.num_skipped_in_row = counters.num_skipped_in_row
        self._optimizer_config = counters.optimizer
        set_random_states(saved)

    @contextmanager
    def _at_rest(self) -> Iterator[None]:
        """Under ZeRO 3: every parameter in its partitions, where DeepSpeed saves and loads them."""
        is_split = self._zero_stage == 3
        if is_split:
            self._engine.optimizer.checkpoint_event_prologue()
        yield
        if is_split:
            self._engine.optimizer.checkpoint_event_epilogue()

    def _stored_weights(self) -> dict[str, Tensor]:
        """What the optimizer's masters do not give: under ZeRO 3 frozen partitions, else all weights; and buffers.

        Beside adapters the frozen weights are those of the model folder that the stage began with.
        """
        module = self._engine.module
        kept = module.state_dict()  # knows which buffers are part of the model
        found = {name: buffer for name, buffer in module.named_buffers() if name in kept}
        for name, parameter in module.named_parameters():
            if not parameter.requires_grad and self._config.model.lora.rank:
                continue
            if self._zero_stage != 3:
                found[name] = parameter.data
            elif not parameter.requires_grad:
                found[name] = parameter.ds_tensor.data
        return found

    def _optimizer_state(self) -> tuple[dict, list[Tensor], dict[int, dict[str, Tensor]]]:
        """DeepSpeed's own state, and in it the masters and the moments, by the number of their group."""
        state = self._engine.optimizer.state_dict()
        moments_key, masters_key = self._state_keys()
        return state, list(state[masters_key]), state[moments_key]["state"]

    def _state_keys(self) -> tuple[str, str]:
        if self._zero_stage == 3:
            return OPTIMIZER_STATE_DICT, FP32_FLAT_GROUPS
        return BASE_OPTIMIZER_STATE, SINGLE_PARTITION_OF_FP32_GROUPS

    def _set_optimizer_state(self, state: dict, masters: list[Tensor], saved: dict[str, Tensor]) -> None:
        """Give DeepSpeed its state back with other masters and moments; everything else in it is settings.

        Args:
            state: the present one.
            masters: the masters to go on with.
            saved: holds the moments, as ``moment/<group>/<name>``.
        """
        moments: dict[int, dict[str, Tensor]] = {}
        for name, tensor in saved.items():
            kind, _, rest = name.partition("/")
            if kind == "moment":
                index, _, moment = rest.partition("/")
                moments.setdefault(int(index), {})[moment] = tensor
        moments_key, masters_key = self._state_keys()
        state = {**state, moments_key: {**state[moments_key], "state": moments}, masters_key: masters}
        # It looks for its own among all ranks' states.
        self._engine.optimizer.load_state_dict([state] * self.world_size, load_from_fp32_weights=True)


class FrozenEngine:
    """A model that never changes, on one rank: split over the ranks as the policy is under ZeRO 3, else whole.

    Args:
        model: the wrapped model, without values.
        config: the settings: ZeRO stage, precision, offloading of parameters.
        device: the device that the policy is on.
        weights: the weights that hold the model's values.
    """

    def __init__(self, model: PolicyModel, config: Config, *, device: torch.device, weights: StoredWeights) -> None:
        model.requires_grad_(False).eval()
        self._model: nn.Module = model
        self._device = device
        settings = deepspeed_settings(config, device, num_trained=0)
        settings["zero_optimization"].pop("offload_optimizer", None)
        fill_model(model, weights, settings, device)
        if config.trainer.zero_stage == 3:
            self._model, *_ = deepspeed.initialize(model=model, config=settings, dist_init_required=False)
            self._model.eval()
        else:
            model.to(device)
        self._is_split = config.trainer.zero_stage == 3
        self._offloader = HostOffloader()

    def close(self) -> None:
        """Let go of the model."""
        if self._is_split:
            engine: Any = self._model
            engine.destroy()
            let_go(engine)

    @torch.no_grad()
    def score(self, batch: MicroBatch) -> Tensor:
        """[R] float32, log-probabilities of a sequence."""
        return self._model(batch)[0]

    def set_on_gpu(self, parts: OnGpu) -> None:
        """Move the weights to the host, or back where the policy keeps everything."""
        if parts == OnGpu.ALL:
            self._offloader.onload()
        elif not self._offloader.num_bytes:
            self._offloader.offload(on_device(weights_of(self._model), self._device))
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
