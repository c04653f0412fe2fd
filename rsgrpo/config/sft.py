"""``sft``: supervised fine-tuning."""

from __future__ import annotations

from dataclasses import dataclass, field

from rsgrpo.config.checks import MAX_STEP_SAMPLES, ConfigError, at_least, between, check_share
from rsgrpo.config.data import SourceConfig
from rsgrpo.config.optimizer import OptimizerConfig
from rsgrpo.errors import shown


@dataclass(kw_only=True, slots=True)
class SftPhaseConfig:
    """One of several supervised phases that follow each other, each with data and a schedule of its own."""

    name: str = ""
    """Name of the phase in messages."""
    mixture: list[SourceConfig] = field(default_factory=list)
    """Data sets of the phase; empty: those of ``data``."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    warmup_frac: float = 0.0
    """Share of the phase's steps for the warm-up, where ``optimizer.warmup_steps`` is 0."""
    num_epochs: int = 1
    """How many passes over the mixture the phase takes."""
    max_steps: int = 0
    """Stop the phase after this many optimizer steps; 0: when its epochs are through."""
    samples_per_step: int = 64
    """Conversations in an optimizer step, over all ranks."""
    max_tokens: int = 0
    """Most tokens of a conversation of the phase, as ``sft.max_tokens``."""

    def __post_init__(self) -> None:
        at_least("num_epochs", self.num_epochs, 1)
        between("samples_per_step", self.samples_per_step, 1, MAX_STEP_SAMPLES)
        at_least("max_steps", self.max_steps, 0)
        at_least("max_tokens", self.max_tokens, 0)
        check_share("warmup_frac", self.warmup_frac)


@dataclass(kw_only=True, slots=True)
class SftConfig:
    """Supervised stage."""

    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(learning_rate=5.0e-7, schedule="cosine", warmup_steps=200)
    )
    warmup_frac: float = 0.0
    """Share of the steps for the warm-up, where ``optimizer.warmup_steps`` is 0."""
    num_epochs: int = 1
    """How many passes over the samples the stage takes; ``max_steps`` may end it earlier."""
    max_steps: int = 0
    """Stop after this many optimizer steps; 0: when the epochs are through."""
    samples_per_step: int = 64
    """Samples in one optimizer step, over all ranks."""
    max_tokens: int = 0
    """A longer conversation of a mixture, images included, is rejected or skipped (``data.on_bad_sample``), never
    cut; 0: ``trainer.micro_batch_tokens``."""
    phases: list[SftPhaseConfig] = field(default_factory=list)
    """Phases that follow each other in one run, instead of the optimizer, epochs and steps above."""
    validation_samples: int = 128
    """How many samples are held out of the supervised data for the validation loss; 0: none."""
    validate_every_steps: int = 100
    """Steps between two measurements of the held-out loss."""
    save_every_steps: int = 100
    """Steps between two checkpoints."""

    def __post_init__(self) -> None:
        at_least("sft.num_epochs", self.num_epochs, 1)
        between("sft.samples_per_step", self.samples_per_step, 1, MAX_STEP_SAMPLES)
        at_least("sft.validation_samples", self.validation_samples, 0)
        at_least("sft.save_every_steps", self.save_every_steps, 1)
        at_least("sft.validate_every_steps", self.validate_every_steps, 1)
        at_least("sft.max_steps", self.max_steps, 0)
        at_least("sft.max_tokens", self.max_tokens, 0)
        check_share("sft.warmup_frac", self.warmup_frac)
        names = [phase.name for phase in self.phases]
        if len(set(names)) != len(names) or "" in names:
            raise ConfigError(f"every one of sft.phases needs a name of its own, got {shown(names)}")
