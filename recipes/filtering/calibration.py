"""Fit the sigmoid of ``cosine`` on questions with known pages, and keep it beside the embedder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rsgrpo.retrieval.embedders.embedder import EmbedderIdentity
from rsgrpo.retrieval.filtering.cosine_scorer import CosineScorer
from rsgrpo.retrieval.filtering.relevance import Calibration, RelevanceError, fit_calibration, save_calibration
from rsgrpo.types import Sample


@dataclass(frozen=True, kw_only=True, slots=True)
class CalibrationReport:
    """What a calibration was fitted on, and what it does there.

    Attributes:
        calibration: the calibration.
        num_questions: how many questions it was fitted on.
        num_left_out: how many questions name no gold page among their images, so that they say nothing.
        recall: the share of relevant pairs with a probability of at least 0.5.
        false_frac: the share of irrelevant pairs with a probability of at least 0.5.
    """

    calibration: Calibration
    num_questions: int
    num_left_out: int
    recall: float
    false_frac: float


def calibrate(
    samples: Sequence[Sample], scorer: CosineScorer, embedder: EmbedderIdentity, file: Path, *, should_balance: bool
) -> CalibrationReport:
    """Fit a calibration, and write it.

    Args:
        samples: questions that no result is reported for, with their gold pages among others.
        scorer: gives the cosines.
        embedder: the identity of its embedder, which the file will hold.
        file: the file to write.
        should_balance: whether relevant and irrelevant pages weigh the same in total.

    Returns:
        The calibration, and what it does on these questions.

    Raises:
        RelevanceError: no question names gold pages, or there are no others.
    """
    known = [sample for sample in samples if sample.positive_images]
    if not known:
        raise RelevanceError(
            f"none of {len(samples)} questions names a gold page (posImgs) among its images; a calibration needs some"
        )
    cosines: list[float] = []
    labels: list[bool] = []
    for sample in known:
        gold = set(sample.positive_images)
        cosines += scorer.cosines(sample.question or sample.prompt, sample.images).tolist()
        labels += [index in gold for index in range(len(sample.images))]
    fitted = fit_calibration(cosines, labels, should_balance=should_balance)
    save_calibration(file, fitted, embedder)
    passes = [fitted.probability(cosine) >= 0.5 for cosine in cosines]
    relevant = [is_passed for is_passed, label in zip(passes, labels, strict=True) if label]
    others = [is_passed for is_passed, label in zip(passes, labels, strict=True) if not label]
    return CalibrationReport(
        calibration=fitted,
        num_questions=len(known),
        num_left_out=len(samples) - len(known),
        recall=sum(relevant) / len(relevant),
        false_frac=sum(others) / len(others),
    )
