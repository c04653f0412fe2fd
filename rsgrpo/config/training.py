"""How the weights change: ranks, optimizer, the two stages."""

from __future__ import annotations

from dataclasses import dataclass, field

from rsgrpo.config.checks import ConfigError, at_least, more_than, one_of


@dataclass(kw_only=True, slots=True)
class OptimizerConfig:
    """AdamW and its schedule."""

    learning_rate: float = 1.0e-6
    schedule: str = "constant"
    """``constant`` or ``cosine`` (to zero), after a linear warm-up."""
    warmup_steps: int = 0
    weight_decay: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.999
    max_grad_norm: float = 1.0

    def __post_init__(self) -> None:
        more_than("optimizer.learning_rate", self.learning_rate, 0.0)
        one_of("optimizer.schedule", self.schedule, ("constant", "cosine"))
        at_least("optimizer.warmup_steps", self.warmup_steps, 0)
        more_than("optimizer.max_grad_norm", self.max_grad_norm, 0.0)


@dataclass(kw_only=True, slots=True)
class TrainerConfig:
    """The ranks that hold and update the policy."""

    num_ranks: int = 1
    num_threads: int = 0
    """CPU only: threads a rank; 0: all cores."""
    zero_stage: int = 2
    """DeepSpeed ZeRO stage: 1, 2 or 3."""
    offload_optimizer: bool = False
    """Keep optimizer states in host memory."""
    offload_parameters: bool = False
    """Keep parameters in host memory (ZeRO 3)."""
    micro_batch_tokens: int = 16384
    """Hard cap of tokens in one forward pass; one group that alone is longer is an error."""
    share_prefix: bool = True
    """Compute a group's prompt once for its n responses (same gradient, less work)."""
    max_skipped_steps: int = 3
    """Stop after this many steps in a row with a non-finite gradient."""

    def __post_init__(self) -> None:
        at_least("trainer.num_ranks", self.num_ranks, 1)
        at_least("trainer.micro_batch_tokens", self.micro_batch_tokens, 1)
        if self.zero_stage not in (1, 2, 3):
            raise ConfigError(f"trainer.zero_stage={self.zero_stage} is not known; choose 1, 2 or 3")
        if self.offload_parameters and self.zero_stage != 3:
            raise ConfigError("trainer.offload_parameters=true needs trainer.zero_stage=3")


@dataclass(kw_only=True, slots=True)
class SftConfig:
    """Supervised stage."""

    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(learning_rate=5.0e-7, schedule="cosine", warmup_steps=200)
    )
    num_epochs: int = 1
    max_steps: int = 0
    """Stop after this many optimizer steps; 0: when the epochs are through."""
    samples_per_step: int = 64
    """Samples in one optimizer step, over all ranks."""
    validation_samples: int = 128
    """Held out of the supervised data for the validation loss; 0: none."""
    validate_every_steps: int = 100
    save_every_steps: int = 100

    def __post_init__(self) -> None:
        at_least("sft.num_epochs", self.num_epochs, 1)
        at_least("sft.samples_per_step", self.samples_per_step, 1)
        at_least("sft.save_every_steps", self.save_every_steps, 1)
        at_least("sft.validate_every_steps", self.validate_every_steps, 1)
        at_least("sft.max_steps", self.max_steps, 0)


@dataclass(kw_only=True, slots=True)
class FilterConfig:
    """Which groups to train on."""

    mode: str = "signal"
    """``signal``: keep a group if any reward varies in it. ``mean_range``: the public code's rule.
    ``none``: keep all."""
    low: float = 0.01
    high: float = 6.9
    """``mean_range``: keep if low < mean weighted sum of the rewards < high."""
    max_refills: int = 3
    """Further rounds of prompts that may be sampled to fill a step."""
    carry_over: bool = True
    """Keep surplus groups with signal for the next step (they are stale by one update)."""

    def __post_init__(self) -> None:
        one_of("rl.filter.mode", self.mode, ("signal", "mean_range", "none"))
        at_least("rl.filter.max_refills", self.max_refills, 0)


@dataclass(kw_only=True, slots=True)
class CreditConfig:
    """From rewards to token credit (rs_grpo, "Credit")."""

    compat: str = "none"
    """``reference`` reproduces the public implementation's formula, defects included."""
    baseline: str = "group_mean"
    """``group_mean`` or ``leave_one_out`` (RLOO)."""
    scale: str = "group_std"
    """``group_std`` (unbiased), ``batch_std``, or ``none`` (Dr. GRPO)."""
    normaliser: str = "active"
    """W sums the weights of the rewards with signal in the step (``active``) or of ``all``."""
    epsilon: float = 1.0e-6

    def __post_init__(self) -> None:
        one_of("rl.credit.compat", self.compat, ("none", "reference"))
        one_of("rl.credit.baseline", self.baseline, ("group_mean", "leave_one_out"))
        one_of("rl.credit.scale", self.scale, ("group_std", "batch_std", "none"))
        one_of("rl.credit.normaliser", self.normaliser, ("active", "all"))
        at_least("rl.credit.epsilon", self.epsilon, 0.0)


@dataclass(kw_only=True, slots=True)
class LossConfig:
    """The clipped objective (rs_grpo, "Loss" and "Old log-probabilities")."""

    clip_low: float = 0.2
    clip_high: float = 0.28
    dual_clip: float = 3.0
    old_logprobs: str = "auto"
    """pi_old: ``auto`` (the forward pass itself where there is one update a batch, else recomputed
    once), ``recompute``, or ``engine`` (the engine's own log-probabilities)."""
    importance_cap: float = 2.0
    """Cap of the importance weight trainer/engine; 0: no correction."""

    def __post_init__(self) -> None:
        one_of("rl.loss.old_logprobs", self.old_logprobs, ("auto", "recompute", "engine"))
        if not 0.0 < self.clip_low < 1.0:
            raise ConfigError(f"rl.loss.clip_low={self.clip_low} must lie in (0, 1)")
        more_than("rl.loss.clip_high", self.clip_high, 0.0)
        more_than("rl.loss.dual_clip", self.dual_clip, 1.0 + self.clip_high)
        at_least("rl.loss.importance_cap", self.importance_cap, 0.0)


@dataclass(kw_only=True, slots=True)
class RlConfig:
    """Reinforcement stage."""

    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    credit: CreditConfig = field(default_factory=CreditConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    filter: FilterConfig = field(default_factory=FilterConfig)
    num_epochs: int = 16
    max_steps: int = 0
    """Stop after this many optimizer batches; 0: when the epochs are through."""
    prompts_per_step: int = 32
    samples_per_prompt: int = 8
    """n, the group's size."""
    shuffle: bool = True
    """Draw the questions in a new random order every epoch; false keeps the file's (easy to hard)."""
    updates_per_batch: int = 1
    """Optimizer steps on each rollout batch."""
    max_staleness_steps: int = 0
    """0, synchronous: every batch is sampled under the weights that it trains. 1, asynchronous: the next
    batch is sampled while the trainer updates on the present one, so its weights are one step older; pi_old
    is then the engine's log-probabilities (``rl.loss.old_logprobs=auto``)."""
    max_logprob_gap: float = 0.5
    """Mean |engine - trainer| log-probability gap in nats beyond which the weights count as stale."""
    validation_samples: int = 0
    """Held out of the questions and answered now and then for the curves ``eval/*``; 0: none."""
    validate_every_steps: int = 20
    save_every_steps: int = 10
    rollouts_in_report: int = 4
    """Groups kept in full, with credit, for the report each time a checkpoint is written."""

    def __post_init__(self) -> None:
        at_least("rl.prompts_per_step", self.prompts_per_step, 1)
        at_least("rl.samples_per_prompt", self.samples_per_prompt, 2)
        at_least("rl.updates_per_batch", self.updates_per_batch, 1)
        if self.max_staleness_steps not in (0, 1):
            raise ConfigError(
                f"rl.max_staleness_steps={self.max_staleness_steps} is not known; choose 0 (synchronous) or 1 "
                "(the next batch is sampled during the update)"
            )
        at_least("rl.save_every_steps", self.save_every_steps, 1)
        at_least("rl.validation_samples", self.validation_samples, 0)
        at_least("rl.validate_every_steps", self.validate_every_steps, 1)
        at_least("rl.num_epochs", self.num_epochs, 1)
        at_least("rl.max_steps", self.max_steps, 0)
        if self.prompts_per_step % self.updates_per_batch:
            raise ConfigError(
                f"rl.prompts_per_step={self.prompts_per_step} must be a multiple of "
                f"rl.updates_per_batch={self.updates_per_batch}"
            )
