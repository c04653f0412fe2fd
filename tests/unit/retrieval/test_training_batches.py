"""Plans of batches: one source each, nothing twice, every epoch anew, the same for the same seed; pairs held out."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rsgrpo.data.file_bytes import DataError
from rsgrpo.retrieval.training.held_out_pairs import hold_out
from rsgrpo.retrieval.training.training_batches import plan_batches
from rsgrpo.retrieval.training.training_pairs import TrainingPage, TrainingPair
from rsgrpo.types import ImageRef


def pair(query: str, page: str, source: str = "") -> TrainingPair:
    image = ImageRef(path=page, file=f"/{page}")
    return TrainingPair(query=query, page=TrainingPage(image=image, text="", digest=page), source=source)


PAIRS = st.lists(
    st.builds(pair, st.sampled_from("abcdefgh"), st.sampled_from("01234567"), st.sampled_from(["x", "y"])),
    min_size=1,
    max_size=60,
)


@settings(max_examples=60, deadline=None)
@given(pairs=PAIRS, batch_size=st.integers(2, 4), num_epochs=st.integers(1, 3), seed=st.integers(0, 5))
def test_a_batch_is_of_one_source_and_holds_no_page_and_no_question_twice(pairs, batch_size, num_epochs, seed) -> None:
    def plan():
        return plan_batches(pairs, batch_size=batch_size, num_epochs=num_epochs, max_steps=0, seed=seed)

    try:
        found = plan()
    except DataError as error:
        assert "retriever.batch_size" in str(error)
        return
    for batch in found.batches:
        chosen = [pairs[row] for row in batch]
        assert len(chosen) == batch_size
        assert len({one.source for one in chosen}) == 1
        assert len({one.page.digest for one in chosen}) == len({one.query for one in chosen}) == batch_size
    counts = Counter(row for batch in found.batches for row in batch.tolist())
    assert max(counts.values()) <= num_epochs
    assert all(np.array_equal(one, other) for one, other in zip(found.batches, plan().batches, strict=True))


def test_pairs_that_differ_all_stand_in_every_epoch_once_in_another_order() -> None:
    pairs = [pair(f"q{n}", f"p{n}", "xy"[n % 2]) for n in range(24)]
    found = plan_batches(pairs, batch_size=4, num_epochs=2, max_steps=0, seed=0)
    first, second = np.array(found.batches[:6]), np.array(found.batches[6:])
    assert sorted(first.ravel()) == sorted(second.ravel()) == list(range(24))
    assert first.tolist() != second.tolist()
    assert found.num_left_out == 0


def test_what_fills_no_batch_is_counted_and_sources_without_any_are_named() -> None:
    # Five of A give two batches of two and leave one; the only one of B fills none.
    pairs = [*(pair(f"q{n}", f"p{n}", "A") for n in range(5)), pair("q9", "p9", "B")]
    found = plan_batches(pairs, batch_size=2, num_epochs=3, max_steps=5, seed=0)
    assert (len(found.batches), found.num_left_out, found.small_sources) == (5, 2, {"B": 1})


def test_pages_that_are_too_few_for_a_batch_are_refused_with_their_count() -> None:
    pairs = [pair(f"q{n}", "the same", "slides") for n in range(9)]
    with pytest.raises(DataError, match=r"batch_size=2 is more than .* \(1 pages and 9 questions of 'slides'\)"):
        plan_batches(pairs, batch_size=2, num_epochs=1, max_steps=0, seed=0)
    pairs = [pair("the same", f"p{n}", "") for n in range(9)]  # as many pages, and it is questions that lack
    with pytest.raises(DataError, match=r"batch_size=2 is more than .* \(9 pages and 1 questions\)"):
        plan_batches(pairs, batch_size=2, num_epochs=1, max_steps=0, seed=0)


@settings(max_examples=40, deadline=None)
@given(pairs=PAIRS, num_pairs=st.integers(0, 20), seed=st.integers(0, 3))
def test_a_page_is_trained_on_or_held_out_with_all_its_pairs(pairs, num_pairs, seed) -> None:
    found = hold_out(pairs, num_pairs, seed)
    if found.data is None:
        assert found.trained == tuple(pairs)
        return
    held = {page.page_id for page in found.data.pages}
    assert held.isdisjoint(one.page.digest for one in found.trained)
    assert 2 * len(held) <= len({one.page.digest for one in pairs})
    assert len(found.trained) + len(found.data.queries) == len(pairs)
    assert all(found.data.relevant[query.query_id].keys() <= held for query in found.data.queries)
