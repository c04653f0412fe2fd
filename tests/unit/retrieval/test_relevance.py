"""Which pages are kept: MIRAGE's vectors, and laws; calibration against an independent optimiser."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize

from rsgrpo.config.checks import ConfigError
from rsgrpo.io.atomic_files import FileError
from rsgrpo.retrieval.filtering.relevance import (
    Calibration,
    RelevanceError,
    SelectionMode,
    fit_calibration,
    load_calibration,
    save_calibration,
    select,
    yes_no_probability,
)

Parity = Callable[[str], Any]
PROBABILITIES = st.lists(st.sampled_from((0.0, 0.1, 0.49, 0.5, 0.9, 1.0)) | st.floats(0, 1), min_size=1, max_size=8)
MODES: tuple[SelectionMode, ...] = ("mirage", "strict")


def test_the_selection_equals_mirages(parity: Parity) -> None:
    for vector in parity("visrag_numeric")["mirage_relevance"]:
        kept = select(vector["confidences"], vector["top_k"], mode="mirage")
        assert [int(index in kept) for index in range(len(vector["confidences"]))] == vector["relevance"]


@given(PROBABILITIES, st.integers(1, 10), st.floats(0, 1), st.sampled_from(MODES))
def test_the_kept_pages_are_the_most_probable_in_the_users_order(probabilities, top_k, threshold, mode) -> None:
    kept = select(probabilities, top_k, threshold, mode)
    assert list(kept) == sorted(set(kept))
    assert 1 <= len(kept) <= min(top_k, len(probabilities))
    dropped = set(range(len(probabilities))) - set(kept)
    # No dropped page beats a kept one, and of equal ones the first are kept.
    assert all((probabilities[a], -a) > (probabilities[b], -b) for a in kept for b in dropped)


@given(PROBABILITIES, st.integers(1, 10), st.floats(0, 1))
def test_strict_keeps_those_of_mirage_that_reach_the_threshold(probabilities, top_k, threshold) -> None:
    mirage, strict = (select(probabilities, top_k, threshold, mode) for mode in MODES)
    assert set(strict) <= set(mirage)
    if max(probabilities) >= threshold:
        assert len(mirage) == min(top_k, len(probabilities))
        assert strict == tuple(index for index in mirage if probabilities[index] >= threshold)
    else:
        assert strict == mirage == (probabilities.index(max(probabilities)),)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([], 1), "there is no page"),
        (([0.5], 0), "top_k is 0"),
        (([0.5, math.nan], 1), "page 1 of 2 is nan"),
        (([1.5], 1), "page 0 of 1 is 1.5"),
        (([0.5], 1, -0.1), "the threshold is -0.1"),
        (([0.5], 1, math.nan), "the threshold is nan"),
    ],
)
def test_what_cannot_be_selected_from_is_named(arguments, message: str) -> None:
    with pytest.raises(RelevanceError, match=message):
        select(*arguments)


def test_an_unknown_rule_is_named() -> None:
    with pytest.raises(ConfigError, match="mode='official' is not known; choose one of mirage, strict"):
        select([0.5], 1, mode="official")  # type: ignore[arg-type]


def test_a_page_at_the_threshold_is_relevant() -> None:
    assert select([0.5, 0.9], 2) == (0, 1)
    assert select([0.9, 0.2, 0.6], 3) == (0, 2)


@given(st.floats(0.01, 1), st.floats(0.01, 1), st.floats(-50, 0))
def test_yes_is_as_probable_as_its_share_of_the_two_answers(yes: float, no: float, shift: float) -> None:
    # p_yes / (p_yes + p_no), whatever both are multiplied by
    probability = yes_no_probability(math.log(yes) + shift, math.log(no) + shift)
    assert probability == pytest.approx(yes / (yes + no), rel=1e-9)
    assert yes_no_probability(math.log(no), math.log(yes)) == pytest.approx(1 - yes / (yes + no), abs=1e-12)


def test_an_answer_that_cannot_come_has_probability_zero() -> None:
    assert yes_no_probability(-math.inf, -1.0) == 0.0
    assert yes_no_probability(-1.0, -math.inf) == 1.0
    assert yes_no_probability(-2000.0, 0.0) == 0.0
    for pair in ((-math.inf, -math.inf), (math.nan, 0.0), (math.inf, 0.0), (0.0, math.inf)):
        with pytest.raises(RelevanceError, match="one of which is finite"):
            yes_no_probability(*pair)


def _loss(parameters, scores, labels, should_balance: bool) -> float:
    """Compute Platt's objective without any code of the library."""
    positive, negative = sum(labels), len(labels) - sum(labels)
    total = 0.0
    for score, label in zip(scores, labels, strict=True):
        target = (positive + 1) / (positive + 2) if label else 1 / (negative + 2)
        weight = (len(labels) / (2 * positive) if label else len(labels) / (2 * negative)) if should_balance else 1.0
        logit = parameters[0] * score + parameters[1]
        total += weight * (np.logaddexp(0, logit) - target * logit)
    return float(total)


@pytest.mark.parametrize("should_balance", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_the_fit_is_the_optimum_that_another_optimiser_finds(seed: int, should_balance: bool) -> None:
    random = np.random.default_rng(seed)
    labels = [bool(is_relevant) for is_relevant in random.random(200) < 0.1]
    scores = [float(random.normal(0.45 if label else 0.3, 0.08)) for label in labels]
    fitted = fit_calibration(scores, labels, should_balance=should_balance)
    found = minimize(_loss, (1.0, 0.0), args=(scores, labels, should_balance), method="BFGS", options={"gtol": 1e-8})
    assert _loss((fitted.scale, fitted.offset), scores, labels, should_balance) <= found.fun + 1e-9
    assert (fitted.scale, fitted.offset) == pytest.approx(tuple(found.x), rel=1e-3)
    assert (fitted.num_relevant, fitted.num_irrelevant) == (sum(labels), 200 - sum(labels))


def test_a_fit_without_bias_keeps_the_number_of_relevant_pages() -> None:
    # At the optimum the derivative by the offset is 0: probabilities add up to the targets, 20 * 21/22 + 180 / 182.
    random = np.random.default_rng(0)
    labels = [True] * 20 + [False] * 180
    scores = [float(random.normal(0.5 if label else 0.3, 0.1)) for label in labels]
    fitted = fit_calibration(scores, labels)
    assert sum(map(fitted.probability, scores)) == pytest.approx(20 * 21 / 22 + 180 / 182, rel=1e-8)


def test_scores_that_part_all_pages_give_a_finite_fit() -> None:
    fitted = fit_calibration([0.2, 0.4, 0.6, 0.8], [False, False, True, True])
    assert fitted.probability(0.5) == pytest.approx(0.5)  # by symmetry
    assert math.isfinite(fitted.scale)
    two = fit_calibration([0.3, 0.300001], [False, True])  # two points: the targets 1/3 and 2/3 are met
    assert two.probability(0.3) == pytest.approx(1 / 3, abs=1e-6)
    assert two.probability(0.300001) == pytest.approx(2 / 3, abs=1e-6)


@given(st.floats(0.1, 20), st.floats(-10, 10))
def test_the_fit_does_not_depend_on_the_scale_of_scores(factor: float, shift: float) -> None:
    scores, labels = [0.1, 0.2, 0.35, 0.3, 0.4, 0.5], [False, False, False, True, True, True]
    plain = fit_calibration(scores, labels)
    moved = fit_calibration([factor * score + shift for score in scores], labels)
    for score in (0.0, 0.25, 0.6):
        assert moved.probability(factor * score + shift) == pytest.approx(plain.probability(score), abs=1e-7)


def test_balance_moves_one_half_between_the_kinds() -> None:
    scores = [0.3] * 90 + [0.5] * 10 + [0.3] * 1 + [0.5] * 9
    labels = [False] * 100 + [True] * 10
    plain, balanced = (fit_calibration(scores, labels, should_balance=is_balanced) for is_balanced in (False, True))
    # At 0.5 there are 10 irrelevant and 9 relevant pairs; where both kinds weigh the same, 0.1 to 0.9 of their weight.
    assert plain.probability(0.5) < 0.5 < balanced.probability(0.5)


@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [
        ([0.1, 0.2], [True], "2 scores and 1 labels"),
        ([], [], "0 of 0 pairs are relevant"),
        ([0.1, 0.2], [True, True], "2 of 2 pairs are relevant"),
        ([0.1, math.nan], [False, True], "1 of 2 scores are not finite"),
        ([0.3, 0.3], [False, True], "all 2 scores are 0.3"),
        ([0.9, 0.1], [False, True], "do not have the higher scores"),
    ],
)
def test_what_cannot_be_calibrated_is_named(scores, labels, message: str) -> None:
    with pytest.raises(RelevanceError, match=message):
        fit_calibration(scores, labels)


def test_a_calibration_is_read_as_it_was_written(tmp_path: Path) -> None:
    file = tmp_path / "calibration.json"
    fitted = fit_calibration([0.21, 0.43, 0.37, 0.8], [False, False, True, True], should_balance=True)
    save_calibration(file, fitted)
    assert load_calibration(file) == fitted
    document = json.loads(file.read_text())
    for change, message in (
        ({"kind": "something"}, "its kind is 'something'"),
        ({"version": 2}, "its version is 2"),
        ({"calibration": {}}, "'is_balanced' of Calibration is missing"),
        ({"calibration": document["calibration"] | {"scale": -1.0}}, "a scale above 0"),
        ({"calibration": document["calibration"] | {"scale": "x"}}, "scale: got 'x'"),
    ):
        file.write_text(json.dumps(document | change))
        with pytest.raises(RelevanceError, match=message):
            load_calibration(file)
    with pytest.raises(FileError, match="is missing"):
        load_calibration(tmp_path / "none.json")


def test_probabilities_hold_at_the_ends_and_nan_is_refused() -> None:
    calibration = Calibration(scale=1e6, offset=0.0, num_relevant=1, num_irrelevant=1, is_balanced=False)
    assert (calibration.probability(1.0), calibration.probability(-1.0)) == (1.0, 0.0)
    with pytest.raises(RelevanceError, match="the score is nan"):
        calibration.probability(math.nan)
