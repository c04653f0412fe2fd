"""Hard negatives are the best pages that are neither right nor suspected of being right."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rsgrpo.retrieval.embedders.embedder import EmbedderMismatchError
from rsgrpo.retrieval.index.flat_index import FlatIndex, create_index
from rsgrpo.retrieval.training.mining import MiningError, MiningRules, mine_negatives, mining_report
from rsgrpo.types import ImageRef
from tests.examples import examples
from tests.unit.retrieval.index_pages import IDENTITY, SignEmbedder, make_page, sign_vector

ANY = MiningRules(num_pages=3, depth=16, margin=None, share=None)


def _index(folder: Path, num_pages: int = 16) -> FlatIndex:
    """Make an index whose page ``n`` has the sign vector ``n``."""
    index = create_index(folder, IDENTITY)
    pages = [make_page(number) for number in range(num_pages)]
    index.add(pages, SignEmbedder().embed_pages([ImageRef(path=f"page {number}") for number in range(num_pages)]))
    return index


def _id(number: int) -> str:
    return make_page(number).page_id


@given(
    st.lists(st.tuples(st.integers(0, 15), st.integers(0, 15)), min_size=1, max_size=6),
    st.integers(1, 4),
    st.integers(4, 16),
    st.sampled_from([None, -0.5, 0.0, 0.25, 1.0]),
    st.sampled_from([None, 0.5, 0.95, 1.0]),
)
@examples(40)
def test_negatives_are_the_best_pages_that_pass_all_guards(
    asked: list[tuple[int, int]], num_pages: int, depth: int, margin: float | None, share: float | None
):
    rules = MiningRules(num_pages=num_pages, depth=depth, margin=margin, share=share)
    queries = [f"Q {vector}" for vector, _ in asked]
    with tempfile.TemporaryDirectory() as folder, _index(Path(folder) / "index") as index:
        mined = mine_negatives(queries, [_id(right) for _, right in asked], SignEmbedder(), index, rules)
    for (vector, right), query, found in zip(asked, queries, mined, strict=True):
        score_of = {number: float(sign_vector(vector) @ sign_vector(number)) for number in range(16)}
        all_right = {other for (_, other), text in zip(asked, queries, strict=True) if text == query}
        best = sorted(range(16), key=lambda number: (-score_of[number], make_page(number).order))[:depth]
        allowed = [
            number
            for number in best
            if number not in all_right
            and (margin is None or score_of[number] <= score_of[right] + margin)
            and (share is None or score_of[right] <= 0 or score_of[number] <= share * score_of[right])
        ]
        assert [page.page.page_id for page in found.negatives] == [_id(number) for number in allowed[:num_pages]]
        assert found.right_score == score_of[right]
        assert found.right_rank == (best.index(right) + 1 if right in best else None)
        assert found.num_right + found.num_close + len(allowed) == len(best)


def test_a_page_of_the_same_question_in_other_letters_is_no_negative(tmp_path: Path):
    with _index(tmp_path / "index") as index:
        mined = mine_negatives(
            ["Which one is 7", "which  ONE is 7", "Which is 7"], [_id(7), _id(6), _id(5)], SignEmbedder(), index, ANY
        )
    of_first, of_second, of_third = ({page.page.page_id for page in found.negatives} for found in mined)
    # Pages 3, 5, 6 and 15 differ from 7 in one sign and score 0.5; the page 7 itself scores 1. Page order is by the
    # last digit of the number, so that 15 is doc5's second page.
    assert of_first == of_second == {_id(3), _id(5), _id(15)}
    assert of_third == {_id(7), _id(3), _id(15)}


def test_a_page_that_scores_as_high_as_the_right_one_is_left_out_and_counted(tmp_path: Path):
    # The right page 5 scores 0.5 for the question 7. Page 7 (score 1) is above it, and 3, 6, 15 are as high.
    with _index(tmp_path / "index") as index:
        rules = MiningRules(num_pages=3, depth=5, margin=0.0, share=None)
        (as_high,) = mine_negatives(["Q 7"], [_id(5)], SignEmbedder(), index, rules)
        (below,) = mine_negatives(["Q 7"], [_id(5)], SignEmbedder(), index, MiningRules(num_pages=3, depth=5))
    assert {page.page.page_id for page in as_high.negatives} == {_id(3), _id(6), _id(15)}
    assert (as_high.num_close, as_high.num_right, as_high.right_score) == (1, 1, 0.5)
    assert below.negatives == ()  # 0.5 is more than 0.95 of 0.5
    assert (below.num_close, below.num_right) == (4, 1)
    report = mining_report([as_high, below])
    assert (report.num_questions, report.num_negatives, report.num_without, report.num_close) == (2, 3, 1, 5)
    assert report.first_frac == 0.0


def test_many_questions_are_answered_as_one_by_one(tmp_path: Path):
    queries = [f"Q {number % 16}" for number in range(600)]  # more than are searched for at once
    rights = [_id(number % 16) for number in range(600)]
    with _index(tmp_path / "index") as index:
        all_together = mine_negatives(queries, rights, SignEmbedder(), index, ANY)
        first = mine_negatives(queries[:16], rights[:16], SignEmbedder(), index, ANY)
    assert all_together == [first[number % 16] for number in range(600)]


def test_what_cannot_be_mined_is_refused_by_name(tmp_path: Path):
    with _index(tmp_path / "index", num_pages=4) as index:
        with pytest.raises(MiningError, match="2 questions and 1 right pages"):
            mine_negatives(["Q 1", "Q 2"], [_id(1)], SignEmbedder(), index, ANY)
        with pytest.raises(MiningError, match=r"doc9.pdf#9.*add all pages of the training pairs"):
            mine_negatives(["Q 1"], [_id(9)], SignEmbedder(), index, ANY)
        other = SignEmbedder(dataclasses.replace(IDENTITY, revision="sha256:11"))
        with pytest.raises(EmbedderMismatchError, match="revision"):
            mine_negatives(["Q 1"], [_id(1)], other, index, ANY)


@pytest.mark.parametrize(
    ("rules", "named"),
    [
        ({"num_pages": 0}, "0 negatives out of 100"),
        ({"num_pages": 5, "depth": 4}, "5 negatives out of 4"),
        ({"depth": 10_001}, "at most 10000"),
        ({"margin": float("nan")}, "margin is nan"),
        ({"share": 0.0}, "share is 0.0"),
        ({"share": 1.1}, "share is 1.1"),
    ],
)
def test_rules_out_of_range_are_refused(rules: dict[str, float], named: str):
    with pytest.raises(MiningError, match=named):
        MiningRules(**rules)  # type: ignore[arg-type] # the point of the test


def test_scores_that_are_no_numbers_make_no_negative():
    assert not MiningRules().may_be_negative(float("nan"), 0.5)
    assert not MiningRules().may_be_negative(0.1, float("nan"))
