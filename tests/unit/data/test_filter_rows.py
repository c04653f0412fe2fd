"""What a filter is trained on: gold pages among distractors, and a retriever's mistakes from an epoch on."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rsgrpo.config import ConfigError, DistractorConfig
from rsgrpo.data.files import DataError
from rsgrpo.data.filter_rows import let_through, random_distractors, with_more_pages
from rsgrpo.data.mixture import noisy_relevance
from rsgrpo.types import ImageRef, Sample

NOISE = DistractorConfig(relevance="filter", noise_chance=1.0, noise_max_frac=0.15, noise_from_epoch=0.6)


def sample(number: int, num_pages: int = 3, gold: tuple[int, ...] = (1,)) -> Sample:
    return Sample(
        sample_id=f"q{number}",
        question=f"What is {number}?",
        images=tuple(ImageRef(path=f"{number}-{page}.png") for page in range(num_pages)),
        positive_images=gold,
        gold_response="<evidence>[1]: no relevant information\n[2]: a dog\n[3]: no relevant information</evidence>",
    )


SAMPLES = [sample(number) for number in range(12)]


@given(st.integers(0, 2**31), st.integers(0, 6), st.integers(0, 6))
def test_distractors_are_other_questions_pages_and_gold_stays_gold(seed, fewest, more) -> None:
    rng = np.random.default_rng(seed)
    settings = DistractorConfig(min_images=fewest, max_images=fewest + more)
    found = with_more_pages(SAMPLES[0], random_distractors(SAMPLES, rng), settings, rng)
    names = [page.path for page in found.images]
    assert fewest <= len(names) - 3 <= fewest + more
    assert len(set(names)) == len(names)
    assert [name for name in names if name.startswith("0-")] == ["0-0.png", "0-1.png", "0-2.png"]
    assert [names[index] for index in found.positive_images] == ["0-1.png"]
    assert not found.gold_response  # its labels are of other places


def test_pages_that_an_index_finds_can_be_distractors() -> None:
    near = [ImageRef(path=f"near-{number}.png") for number in range(4)]
    settings = DistractorConfig(min_images=2, max_images=2)
    found = with_more_pages(SAMPLES[0], lambda asked, count: near[:count], settings, np.random.default_rng(0))
    assert {page.path for page in found.images} == {"0-0.png", "0-1.png", "0-2.png", "near-0.png", "near-1.png"}


def test_labels_are_golds_until_the_noise_begins() -> None:
    gold = np.array([True] + [False] * 40)
    before = [noisy_relevance(gold, NOISE, np.random.default_rng(seed), epoch=0.59) for seed in range(50)]
    after = [noisy_relevance(gold, NOISE, np.random.default_rng(seed), epoch=0.6) for seed in range(50)]
    assert all((found == gold).all() for found in before)
    # At most round(0.15 × 40) = 6 irrelevant ones, 3 on average; the relevant one stays.
    counts = [int(found[1:].sum()) for found in after]
    assert all(found[0] for found in after)
    assert (min(counts), max(counts)) == (0, 6)
    assert 2 < np.mean(counts) < 4
    rare = DistractorConfig(relevance="filter", noise_chance=0.1)
    noisy = [noisy_relevance(gold, rare, np.random.default_rng(seed)).sum() > 1 for seed in range(400)]
    assert 0.05 < np.mean(noisy) < 0.15


def test_a_filter_lets_gold_pages_through_and_sometimes_wrong_ones() -> None:
    exact, wrong = DistractorConfig(), DistractorConfig(relevance="filter", noise_chance=1.0)
    assert let_through(SAMPLES[0], exact, np.random.default_rng(0)) == (1,)
    many = sample(99, num_pages=41, gold=(3, 40))
    found = [let_through(many, wrong, np.random.default_rng(seed)) for seed in range(20)]
    assert all({3, 40} <= set(kept) and list(kept) == sorted(kept) for kept in found)
    # At most round(0.15 × 39) = 6 of the others.
    assert 2 < max(map(len, found)) <= 2 + 6


def test_a_question_without_gold_pages_is_refused() -> None:
    unknown = sample(0, gold=())
    rng = np.random.default_rng(0)
    with pytest.raises(DataError, match="names no gold page"):
        with_more_pages(unknown, random_distractors(SAMPLES, rng), NOISE, rng)
    with pytest.raises(DataError, match="names no gold page"):
        let_through(unknown, NOISE, rng)
    with pytest.raises(ConfigError, match="noise_from_epoch=-1"):
        DistractorConfig(noise_from_epoch=-1)
