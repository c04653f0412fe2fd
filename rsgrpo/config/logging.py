"""``logging``: where numbers go, beside ``metrics.jsonl``."""

from __future__ import annotations

from dataclasses import dataclass

from rsgrpo.config.checks import Literal, check_choices, not_empty


@dataclass(kw_only=True, slots=True)
class LoggingConfig:
    """Where numbers go, beside ``metrics.jsonl``."""

    wandb_mode: Literal["offline", "online", "disabled"] = "offline"
    """Mode of wandb: ``offline``, ``online`` or ``disabled``."""
    wandb_project: str = "rsgrpo"
    """Project at wandb that the run belongs to."""
    tensorboard: bool = True
    """Write TensorBoard's files as well."""
    progress: bool = True
    """Live progress display (a plain line a step where the output is no terminal)."""

    def __post_init__(self) -> None:
        check_choices(self, "logging.")
        if self.wandb_mode != "disabled":
            not_empty("logging.wandb_project", self.wandb_project)
