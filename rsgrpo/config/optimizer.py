"""``sft.optimizer``, ``rl.optimizer`` and ``retriever.optimizer``: AdamW and its schedule."""

from __future__ import annotations

from dataclasses import dataclass

from rsgrpo.config.checks import ConfigError, Literal, at_least, check_choices, check_share, more_than


@dataclass(kw_only=True, slots=True)
class OptimizerConfig:
    """AdamW and its schedule."""

    learning_rate: float = 1.0e-6
    """AdamW's learning rate after the warm-up."""
    vision_learning_rate: float = 0.0
    """Rate of the vision tower and the projector, on the same schedule; 0: ``learning_rate``."""
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    """Course of the learning rate after a linear warm-up: ``constant``, or down to zero as half a ``cosine`` or in a
    straight line (``linear``)."""
    warmup_steps: int = 0
    """Steps in which the rate rises linearly from 0."""
    weight_decay: float = 0.01
    """AdamW's weight decay, decoupled from the gradient."""
    beta1: float = 0.9
    """AdamW's decay of the mean gradient."""
    beta2: float = 0.999
    """AdamW's decay of the mean squared gradient."""
    max_grad_norm: float = 1.0
    """The gradient is scaled down to this norm where it is larger."""

    def __post_init__(self) -> None:
        # Where it stands (rl.optimizer, sft.phases[0].optimizer) is put in front when settings are built.
        more_than("learning_rate", self.learning_rate, 0.0)
        check_share("learning_rate", self.learning_rate)
        check_share("vision_learning_rate", self.vision_learning_rate)
        check_choices(self, "")
        at_least("warmup_steps", self.warmup_steps, 0)
        check_share("weight_decay", self.weight_decay)
        for name, value in (("beta1", self.beta1), ("beta2", self.beta2)):
            if not 0.0 <= value < 1.0:
                raise ConfigError(f"{name}={value} must lie in [0, 1)")
        more_than("max_grad_norm", self.max_grad_norm, 0.0)
