"""What the training of a head leaves beside it, as a run folder has it: ``config.yaml``, metrics, a summary."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from rsgrpo.config import QueryFilterConfig
from rsgrpo.io.atomic_files import write_json, write_text
from rsgrpo.io.jsonl import append_rows
from rsgrpo.io.record_codec import to_plain
from rsgrpo.run.folder import RunFolder
from rsgrpo.run.logger import METRICS_FILE

_STAGE = "filter_head"


@dataclass(frozen=True, kw_only=True, slots=True)
class HeldOutMeasures:
    """What a head is worth on questions that it was not trained on.

    Attributes:
        num_questions: how many questions these are.
        auc: how often a relevant page is found more probable than an irrelevant one, from 0 to 1; None where all pages
            are of one kind, as for the two below.
        relevant_frac: the share of relevant pages with a probability of 0.5 and above.
        irrelevant_frac: the share of irrelevant pages with such a probability.
    """

    num_questions: int
    auc: float | None = None
    relevant_frac: float | None = None
    irrelevant_frac: float | None = None

    def told(self) -> dict[str, Any]:
        """The numbers by their names for people, rounded."""
        named = {
            "held-out AUC": self.auc,
            "relevant at 0.5 and above": self.relevant_frac,
            "irrelevant at 0.5 and above": self.irrelevant_frac,
        }
        known = {name: round(value, 4) for name, value in named.items() if value is not None}
        return {"held-out questions": self.num_questions, **known}


@dataclass(frozen=True, kw_only=True, slots=True)
class HeadSummary:
    """The ``summary.json`` of a head.

    Attributes:
        num_questions: how many questions with known gold pages there were, those that were held out among them.
        num_pairs: how many pairs of a question and a page they made.
        num_relevant_pairs: how many of these are relevant.
        num_steps: how many steps were taken.
        last_loss: the loss of the last step; None if it is not finite.
        seconds: the wall-clock time of the training, in seconds.
        device: the kind of device, ``cpu`` or ``cuda``.
        seed: the seed of everything that is drawn.
        held_out: what the head is worth on held-out questions; None if none were.
        versions: the versions of Python and the packages, and the git commit, by name.
    """

    num_questions: int
    num_pairs: int
    num_relevant_pairs: int
    num_steps: int
    last_loss: float | None
    seconds: float
    device: str
    seed: int
    held_out: HeldOutMeasures | None = None
    versions: dict[str, str] = field(default_factory=dict)


def write_settings(folder: Path, call: Mapping[str, Any], settings: QueryFilterConfig) -> None:
    """Write ``config.yaml``.

    Args:
        folder: the folder of the head.
        call: what the call names beside settings, by option.
        settings: the settings of the filter, every default among them.
    """
    document = OmegaConf.create({**call, "filter": OmegaConf.structured(settings)})
    write_text(RunFolder(root=folder).config_file, OmegaConf.to_yaml(document))


def log_step(folder: Path, step: int, loss: float) -> float | None:
    """Add a step to ``metrics.jsonl``.

    Args:
        folder: the folder of the head; made if need be.
        step: the number of the step, from 1.
        loss: the loss of the step.

    Returns:
        The loss as it is written: None if it is not finite.
    """
    written = loss if math.isfinite(loss) else None
    append_rows(folder / METRICS_FILE, [{"stage": _STAGE, "step": step, "head/loss": written}])
    return written


def write_head_summary(folder: Path, summary: HeadSummary) -> None:
    """Write ``summary.json``.

    Args:
        folder: the folder of the head.
        summary: the summary to write.
    """
    write_json(RunFolder(root=folder).summary_file, to_plain(summary), indent=2)
