"""``distill``: how evidence lines of responses become training pairs of a retriever."""

from __future__ import annotations

from dataclasses import dataclass

from rsgrpo.config.checks import ConfigError, at_least, between, check_share, not_empty
from rsgrpo.errors import shown

SCORES = ("strict_f1", "strict_accuracy", "strict_em")
"""The scores of answers that ``distill.correctness`` names; any other name is that of a reward of the run."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DistillConfig:
    """How evidence lines become positives and hard negatives (``rsgrpo distill-relevance``)."""

    correctness: str = "strict_f1"
    """What says how correct an answer is, from 0 to 1: ``strict_f1``, ``strict_accuracy`` or ``strict_em`` against the
    accepted answers, or the name of a reward of the run, such as ``accuracy``."""
    min_correctness: float = 0.5
    """Correctness from which on a response counts as correct, and weighs as much as it is; below it the response
    counts for nothing."""
    min_correct_frac: float = 0.25
    """Share of a question's responses that must be correct; where fewer are, they may be right by luck, and the
    question is left out."""
    min_agreement: float = 0.8
    """Share, by weight, of the correct responses that mention a page which must say the same of it; above 0.5."""
    prior_responses: float = 1.0
    """Number of imagined correct responses that say nothing: few responses then weigh less than many that agree."""
    min_weight: float = 0.25
    """Weight from which on a page is labelled; a page that few of the correct responses mention stays below it."""
    max_negatives: int = 8
    """Number of hard negatives of a row at most, those of the greatest weight; 0: none."""
    source: str = "distilled"
    """The ``source`` of every row, by which training keeps batches of one source apart."""
    sample_questions: int = 20
    """Number of questions on the page to look at."""

    def __post_init__(self) -> None:
        not_empty("distill.correctness", self.correctness)
        not_empty("distill.source", self.source)
        for name in ("min_correctness", "min_correct_frac", "min_weight"):
            check_share(f"distill.{name}", getattr(self, name))
        if self.min_correctness <= 0.0:
            raise ConfigError(
                "distill.min_correctness=0 would take wrong answers for correct ones; set it above 0, such as 0.5"
            )
        if not 0.5 < self.min_agreement <= 1.0:
            raise ConfigError(
                f"distill.min_agreement={shown(self.min_agreement)} must lie above 0.5 and not above 1: at 0.5 a page "
                "could be a positive and a negative at once"
            )
        between("distill.prior_responses", self.prior_responses, 0.0, 1.0e6)
        at_least("distill.max_negatives", self.max_negatives, 0)
        at_least("distill.sample_questions", self.sample_questions, 0)
