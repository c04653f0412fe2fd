"""What DeepSpeed and the optimizer are told: ZeRO and precision, groups of parameters, the rate of each step."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from rsgrpo.config import Config, OptimizerConfig
from rsgrpo.model.memory_bounds import bucket_elements


def learning_rate(config: OptimizerConfig, step: int, num_steps: int) -> float:
    """The rate of a step: linear warm-up, then constant, or down to zero as half a cosine or in a straight line.

    Args:
        config: the optimizer's settings: rate, schedule and warm-up.
        step: the number of the step, from 0.
        num_steps: how many steps the stage has.

    Example:
        Rate 1, warm-up 2, cosine, 6 steps: ``0.5, 1, 1, 0.854, 0.5, 0.146``.
    """
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.learning_rate
    progress = (step - config.warmup_steps) / max(1, num_steps - config.warmup_steps)
    if config.schedule == "linear":
        return config.learning_rate * max(0.0, 1.0 - progress)
    return config.learning_rate * 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))


def deepspeed_settings(config: Config, device: torch.device, *, num_trained: int) -> dict[str, Any]:
    """Settings as DeepSpeed takes them.

    Args:
        config: the settings: ZeRO stage, precision, offloading, clipping.
        device: the device of the rank.
        num_trained: the number of elements of the model's trained parameters.
    """
    trainer = config.trainer
    is_gpu = device.type == "cuda"
    zero: dict[str, Any] = {
        "stage": trainer.zero_stage,
        # Overlap uses side streams: nothing to gain on a CPU, where it costs a copy of the buckets.
        "overlap_comm": is_gpu,
        "contiguous_gradients": True,
        "reduce_bucket_size": bucket_elements(num_trained),
        "allgather_bucket_size": bucket_elements(num_trained),
    }
    if trainer.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": is_gpu}
    if trainer.offload_parameters:
        zero["offload_param"] = {"device": "cpu", "pin_memory": is_gpu}
    is_bfloat16 = config.model.dtype == "bfloat16"
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": config.rl.optimizer.max_grad_norm,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": is_bfloat16},
        # Sums over micro-batches in bfloat16 would lose the small ones.
        "data_types": {"grad_accum_dtype": "fp32"},
        "communication_data_type": "fp32",
        "steps_per_print": 2**31,
        "wall_clock_breakdown": False,
    }


def trained_elements(model: nn.Module) -> int:
    """How many elements the trained parameters have."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def parameter_groups(model: nn.Module, config: Config) -> list[dict[str, Any]]:
    """All trainable parameters; those of the vision tower apart where any stage gives them a rate of their own.

    Args:
        model: the wrapped model.
        config: the settings with the optimizers of all stages.
    """
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    optimizers = (config.rl.optimizer, config.sft.optimizer, *(phase.optimizer for phase in config.sft.phases))
    if not any(optimizer.vision_learning_rate for optimizer in optimizers):
        return [{"params": [parameter for _, parameter in named]}]
    in_tower = [".visual." in name for name, _ in named]
    return [
        {"params": [parameter for (_, parameter), inside in zip(named, in_tower, strict=True) if inside == wanted]}
        for wanted in (False, True)
    ]
