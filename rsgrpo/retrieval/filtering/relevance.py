"""Select the pages that the model gets to see, by how probably each is relevant to the question.

MIRAGE (arXiv:2407.13766) scores every image by itself and shows those that its retriever keeps, in their order. Its
rule is ``mirage`` here; ``strict`` is the rule that its comments promise. Probabilities come from the answering model's
own yes or no (:func:`yes_no_probability`), or from cosines by a sigmoid that was fitted on questions with known pages
(:func:`fit_calibration`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from rsgrpo.config.checks import one_of
from rsgrpo.errors import RsgrpoError, shown
from rsgrpo.io.atomic_files import read_json_object, shown_value, write_json
from rsgrpo.io.record_codec import RecordError, from_plain
from rsgrpo.retrieval.embedders.embedder import EmbedderIdentity

SelectionMode = Literal["mirage", "strict"]
"""How pages below the threshold are treated, as :func:`select` describes."""

_KIND = "relevance_calibration"
_VERSION = 1
_MAX_STEPS = 100  # Newton's method takes about ten
_SMALLEST_STEP = 1e-10  # halving the step further changes nothing in float64
_TOLERANCE = 1e-10  # of the gradient, per unit of weight


class RelevanceError(RsgrpoError, ValueError):
    """Pages cannot be selected, or a calibration cannot be made or read; the message names the way out."""


def select(
    probabilities: Sequence[float], top_k: int, threshold: float = 0.5, mode: SelectionMode = "strict"
) -> tuple[int, ...]:
    """Select the pages to keep, in their order in the question, so that ``[2]`` still means the user's second page.

    Args:
        probabilities: the probability that each page is relevant, from 0 to 1.
        top_k: the largest number of pages to keep, at least 1.
        threshold: the probability from which on a page counts as relevant, from 0 to 1.
        mode: the rule. ``strict`` keeps those of the ``top_k`` most probable pages that reach the threshold. ``mirage``
            keeps all of the ``top_k``, also those below the threshold, as soon as any page reaches it. Where no page
            reaches it, both keep the most probable one: the question is never asked without a page.

    Returns:
        The indices of the pages that are kept, from 0, ascending. Of equally probable pages the first ones are kept.

    Raises:
        RelevanceError: there is no page, a probability or the threshold is not from 0 to 1, or ``top_k`` is below 1.

    Example:
        ``select([0.9, 0.2, 0.6], 3) == (0, 2)``; ``select([0.9, 0.2, 0.6], 3, mode="mirage") == (0, 1, 2)``.
    """
    one_of("mode", mode, get_args(SelectionMode))
    if not probabilities:
        raise RelevanceError("there is no page to select from; give one probability a page")
    if top_k < 1:
        raise RelevanceError(f"top_k is {top_k}, expected a whole number of at least 1")
    _check_share("the threshold", threshold)
    for index, probability in enumerate(probabilities):
        _check_share(f"the probability of page {index} of {len(probabilities)}", probability)
    best_first = sorted(range(len(probabilities)), key=lambda index: -probabilities[index])
    if probabilities[best_first[0]] < threshold:
        return (best_first[0],)
    kept = best_first[:top_k]
    return tuple(sorted(index for index in kept if mode == "mirage" or probabilities[index] >= threshold))


def yes_no_probability(logprob_yes: float, logprob_no: float) -> float:
    """Compute how probable a model finds "yes" of the two answers: ``sigmoid(logprob_yes - logprob_no)``.

    The difference is that of the two logits, so nothing depends on how probable other tokens are.

    Args:
        logprob_yes: the natural logarithm of the probability of "yes"; minus infinity is allowed for one of the two.
        logprob_no: the natural logarithm of the probability of "no".

    Returns:
        The probability of "yes", from 0 to 1.

    Raises:
        RelevanceError: one of them is NaN or plus infinity, or both are minus infinity.

    Example:
        ``yes_no_probability(math.log(0.3), math.log(0.1)) == 0.75``
    """
    difference = logprob_yes - logprob_no
    if math.isnan(difference) or math.inf in (logprob_yes, logprob_no):
        raise RelevanceError(
            f"the log-probabilities of yes and no are {logprob_yes} and {logprob_no}, expected numbers, one of which "
            "is finite; ask the engine for the logprobs of these two tokens"
        )
    return _sigmoid(difference)


@dataclass(frozen=True, kw_only=True, slots=True)
class Calibration:
    """A sigmoid from a cosine to the probability that the page is relevant: ``sigmoid(scale * cosine + offset)``.

    Attributes:
        scale: the slope of the logit, above 0, so that a page with a higher cosine is never less relevant.
        offset: the logit at cosine 0.
        num_relevant: how many relevant pairs of question and page it was fitted on.
        num_irrelevant: how many irrelevant pairs of question and page it was fitted on.
        is_balanced: whether both kinds of pairs weighed the same in total in the fit.
    """

    scale: float
    offset: float
    num_relevant: int
    num_irrelevant: int
    is_balanced: bool

    def __post_init__(self) -> None:
        if not (math.isfinite(self.scale) and math.isfinite(self.offset) and self.scale > 0):
            raise RelevanceError(
                f"a calibration has scale {self.scale} and offset {self.offset}, expected finite numbers and a scale "
                "above 0; fit it again"
            )

    def probability(self, score: float) -> float:
        """Compute the probability that a page is relevant from its score.

        Args:
            score: the cosine of page and question, or another score of the kind that the calibration was fitted on.

        Returns:
            The probability, from 0 to 1.

        Raises:
            RelevanceError: the score is not finite.
        """
        if not math.isfinite(score):
            raise RelevanceError(f"the score is {score}, expected a finite number; look for NaN in the embeddings")
        return _sigmoid(self.scale * score + self.offset)


def fit_calibration(
    dev_scores: Sequence[float], dev_is_relevant: Sequence[bool], *, should_balance: bool = False
) -> Calibration:
    """Fit the sigmoid by maximum likelihood, on questions that no result is reported for.

    Platt (1999), with Newton's method as in Lin, Lin and Weng (2007): targets are ``(n1 + 1) / (n1 + 2)`` and
    ``1 / (n0 + 2)`` instead of 1 and 0, so that the fit is finite also where one score parts all pages.

    Args:
        dev_scores: the cosine of each pair of question and page, [pairs].
        dev_is_relevant: whether the page of each pair is relevant to its question, [pairs].
        should_balance: whether relevant and irrelevant pairs weigh the same in total. If not, a probability is right
            for a page drawn as these pairs were, mostly irrelevant ones; if so, 0.5 parts the two kinds.

    Returns:
        The calibration.

    Raises:
        RelevanceError: the two lengths differ, one of the kinds is missing, a score is not finite, all scores are
            equal, or relevant pages have no higher scores than others.

    Example:
        Scores 0.2, 0.4, 0.6, 0.8, the last two relevant: the targets are 3/4 and 1/4, and 0.5 is at score 0.5.
    """
    scores = np.asarray(dev_scores, dtype=np.float64)  # [N]
    is_relevant = np.asarray(dev_is_relevant, dtype=bool)  # [N]
    if scores.ndim != 1 or scores.shape != is_relevant.shape:
        raise RelevanceError(f"there are {scores.size} scores and {is_relevant.size} labels; give one label a score")
    num_relevant = int(is_relevant.sum())
    num_irrelevant = len(scores) - num_relevant
    if not num_relevant or not num_irrelevant:
        raise RelevanceError(
            f"{num_relevant} of {len(scores)} pairs are relevant; a calibration needs relevant and irrelevant ones: "
            "add pages of other questions"
        )
    if not np.isfinite(scores).all():
        raise RelevanceError(
            f"{int((~np.isfinite(scores)).sum())} of {len(scores)} scores are not finite; look for NaN in the "
            "embeddings"
        )
    center, spread = float(scores.mean()), float(scores.std())
    if not spread:
        raise RelevanceError(f"all {len(scores)} scores are {scores[0]}; there is nothing that could tell pages apart")
    targets = np.where(is_relevant, (num_relevant + 1) / (num_relevant + 2), 1 / (num_irrelevant + 2))
    weights = np.ones(len(scores))
    if should_balance:
        weights = np.where(is_relevant, 0.5 / num_relevant, 0.5 / num_irrelevant) * len(scores)
    slope, intercept = _newton((scores - center) / spread, targets, weights)
    if slope <= 0:
        raise RelevanceError(
            f"of {len(scores)} pairs the relevant ones do not have the higher scores (fitted slope "
            f"{slope / spread:.3g}); are labels or scores in another order, or distances in place of similarities?"
        )
    return Calibration(
        scale=slope / spread,
        offset=intercept - slope * center / spread,
        num_relevant=num_relevant,
        num_irrelevant=num_irrelevant,
        is_balanced=should_balance,
    )


def save_calibration(file: Path, calibration: Calibration, embedder: EmbedderIdentity | None = None) -> None:
    """Write a calibration as JSON, whole or not at all.

    Args:
        file: the file to write, which is replaced.
        calibration: the calibration to write.
        embedder: the identity of the embedder whose cosines it was fitted on; None: it is not known.
    """
    document = {"kind": _KIND, "version": _VERSION, "calibration": asdict(calibration)}
    write_json(file, document | ({"embedder": asdict(embedder)} if embedder else {}), indent=2)


def load_calibration(file: Path, embedder: EmbedderIdentity | None = None) -> Calibration:
    """Read a calibration that :func:`save_calibration` wrote.

    Args:
        file: the file to read.
        embedder: the identity of the embedder whose cosines it is to be used on; None: it is not checked.

    Returns:
        The calibration.

    Raises:
        FileError: the file is missing, damaged, or cannot be read.
        RelevanceError: the file holds something else, is of another version, or was fitted on the cosines of another
            embedder, which mean other probabilities.
    """
    document = read_json_object(file)
    for key, expected in (("kind", _KIND), ("version", _VERSION)):
        if document.get(key) != expected:
            raise RelevanceError(
                f"{shown(file)} is no calibration that this release reads: its {key} is "
                f"{shown_value(document.get(key))}, expected {expected!r}; fit one on dev questions"
            )
    try:
        if embedder is not None:
            _check_embedder(file, document.get("embedder"), embedder)
        return from_plain(Calibration, document.get("calibration"))
    except RecordError as error:
        raise RelevanceError(f"{shown(file)}: {error}; fit the calibration again") from error


def _check_embedder(file: Path, plain: object, embedder: EmbedderIdentity) -> None:
    """Refuse a calibration that does not say that it is this embedder's.

    Raises:
        RecordError: what the file says of its embedder has another form.
    """
    if plain is None:
        raise RelevanceError(
            f"{shown(file)} does not say whose cosines it was fitted on; fit it again with rsgrpo filter --calibrate"
        )
    found = from_plain(EmbedderIdentity, plain).differences(embedder)
    if found:
        raise RelevanceError(
            f"{shown(file)} was fitted on the cosines of another embedder ({'; '.join(found)}), which mean other "
            "probabilities; fit it again with rsgrpo filter --calibrate, or use that embedder"
        )


def _newton(
    scores: NDArray[np.float64], targets: NDArray[np.float64], weights: NDArray[np.float64]
) -> tuple[float, float]:
    """Fit slope and intercept of a weighted logistic curve to scores of mean 0 and deviation 1; nothing is singular."""
    inputs = np.stack([scores, np.ones_like(scores)], axis=1)  # [N, 2]
    parameters = np.zeros(2)
    loss = _loss(inputs @ parameters, targets, weights)
    for _ in range(_MAX_STEPS):
        probabilities = 1 / (1 + np.exp(-inputs @ parameters))
        gradient = inputs.T @ (weights * (probabilities - targets))  # [2]
        if np.abs(gradient).max() <= _TOLERANCE * weights.sum():
            break
        curvature = weights * probabilities * (1 - probabilities)
        direction = np.linalg.solve(inputs.T @ (curvature[:, None] * inputs), gradient)
        step = 1.0
        while step > _SMALLEST_STEP:  # the loss is convex: a shorter step lowers it where the whole one jumps too far
            trial = parameters - step * direction
            trial_loss = _loss(inputs @ trial, targets, weights)
            if trial_loss < loss:
                parameters, loss = trial, trial_loss
                break
            step /= 2
        else:
            break
    return float(parameters[0]), float(parameters[1])


def _loss(logits: NDArray[np.float64], targets: NDArray[np.float64], weights: NDArray[np.float64]) -> float:
    """Compute the weighted cross-entropy: ``log(1 + exp(z)) - t z``."""
    return float((weights * (np.logaddexp(0, logits) - targets * logits)).sum())


def _sigmoid(logit: float) -> float:
    """Compute the sigmoid without overflow at either end."""
    if logit >= 0:
        return 1 / (1 + math.exp(-logit))
    grown = math.exp(logit)
    return grown / (1 + grown)


def _check_share(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise RelevanceError(f"{name} is {value}, expected a number from 0 to 1")
