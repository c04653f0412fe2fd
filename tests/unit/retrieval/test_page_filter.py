"""The passes of the query-aware filter: who sees what, what is kept under which number, and what it all costs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from rsgrpo.config.index import IndexConfig
from rsgrpo.retrieval.embedders.embedder import EmbedderMismatchError
from rsgrpo.retrieval.filtering.cosine_scorer import CosineScorer, page_finder
from rsgrpo.retrieval.filtering.page_filter import (
    FilteredPages,
    FilterStage,
    PagesOfQuestion,
    ScoredPages,
    filter_metrics,
    filter_pages,
)
from rsgrpo.retrieval.filtering.relevance import (
    Calibration,
    RelevanceError,
    fit_calibration,
    load_calibration,
    save_calibration,
    select,
)
from rsgrpo.retrieval.index.flat_index import create_index
from rsgrpo.types import FloatArray, ImageRef
from tests.unit.retrieval.index_pages import IDENTITY, SignEmbedder, make_page, sign_vectors


def pages(*names: str) -> tuple[ImageRef, ...]:
    return tuple(ImageRef(path=name) for name in names)


class ByName:
    """A scorer with a probability for every page by its name; it keeps what it was shown."""

    def __init__(self, probabilities: Mapping[str, float], image_tokens: int = 0) -> None:
        self._probabilities = probabilities
        self._image_tokens = image_tokens
        self.shown: list[list[str]] = []

    def score(self, question: str, pages: Sequence[ImageRef]) -> NDArray[np.float64]:
        (found,) = self.score_all([PagesOfQuestion(question=question, pages=tuple(pages))])
        return np.array(found.probabilities)

    def score_all(self, asked: Sequence[PagesOfQuestion]) -> list[ScoredPages]:
        self.shown += [[page.path for page in item.pages] for item in asked]
        return [
            ScoredPages(
                probabilities=tuple(self._probabilities[page.path] for page in item.pages),
                image_tokens=self._image_tokens * len(item.pages),
                text_tokens=len(item.pages),
            )
            for item in asked
        ]


def test_each_pass_sees_what_the_one_before_kept_and_pages_keep_their_places() -> None:
    # The first pass drops b (0.1); the second keeps the best two of a, c, d: d (0.9) and c (0.6), in page order.
    first = ByName({"a": 0.4, "b": 0.1, "c": 0.3, "d": 0.2}, image_tokens=5)
    second = ByName({"a": 0.5, "c": 0.6, "d": 0.9}, image_tokens=10)
    stages = [
        FilterStage(name="cosine", scorer=first, top_k=3, threshold=0.0),
        FilterStage(name="yes_no", scorer=second, top_k=2),
    ]
    (found,) = filter_pages([PagesOfQuestion(question="Who?", pages=pages("a", "b", "c", "d"))], stages)
    assert (first.shown, second.shown) == ([["a", "b", "c", "d"]], [["a", "c", "d"]])
    assert found.kept == (2, 3)
    assert found.probabilities == ((0.4, 0.1, 0.3, 0.2), (0.5, None, 0.6, 0.9))
    assert found.last == (0.5, 0.1, 0.6, 0.9)
    # 4 pages of 5 tokens and 3 of 10; a token of text a page.
    assert (found.image_tokens, found.text_tokens) == (50, 7)


@given(
    st.lists(st.floats(0, 1), min_size=1, max_size=8),
    st.integers(1, 5),
    st.floats(0, 1),
    st.sampled_from(["strict", "mirage"]),
)
def test_one_pass_is_the_selection_rule(values, top_k, threshold, mode) -> None:
    scorer = ByName({str(index): value for index, value in enumerate(values)})
    stage = FilterStage(name="yes_no", scorer=scorer, top_k=top_k, threshold=threshold, mode=mode)
    (found,) = filter_pages([PagesOfQuestion(question="?", pages=pages(*map(str, range(len(values)))))], [stage])
    assert found.kept == select(values, top_k, threshold, mode)


def test_questions_do_not_influence_each_other() -> None:
    scorer = ByName({"a": 0.9, "b": 0.2, "c": 0.7})
    stage = FilterStage(name="yes_no", scorer=scorer, top_k=1)
    asked = [PagesOfQuestion(question="1", pages=pages("a", "b")), PagesOfQuestion(question="2", pages=pages("b", "c"))]
    together = filter_pages(asked, [stage])
    assert together == [filter_pages([item], [stage])[0] for item in asked]
    assert [item.kept for item in together] == [(0,), (1,)]


def test_a_question_without_pages_or_words_is_refused_by_name() -> None:
    stage = FilterStage(name="yes_no", scorer=ByName({}), top_k=1)
    with pytest.raises(RelevanceError, match=r"'Who\?' has no page"):
        filter_pages([PagesOfQuestion(question="Who?", pages=())], [stage])
    with pytest.raises(RelevanceError, match="a question is empty"):
        filter_pages([PagesOfQuestion(question=" ", pages=pages("a"))], [stage])


def test_tokens_are_counted_both_ways() -> None:
    # MIRAGE's arithmetic: 100 A4 pages of 1,961 tokens, yes/no on twenty at 247, an answer from three.
    # Answer alone: 100 / 3. With the filter's own: 196,100 / (4,940 + 5,883) = 18.119.
    item = FilteredPages(kept=(3, 7, 50), probabilities=(), image_tokens=20 * 247, text_tokens=600)
    found = filter_metrics([item], [{7, 99}], [[1961] * 100])
    assert found.answer_ratio == pytest.approx(100 / 3)
    assert found.total_ratio == pytest.approx(196_100 / 10_823)
    assert (found.unfiltered_image_tokens, found.answer_image_tokens) == (196_100, 5883)
    assert (found.filter_image_tokens, found.filter_text_tokens) == (4940, 600)
    # One of two gold pages was kept, and it is one of three.
    assert (found.image_recall, found.num_gold_pages) == (0.5, 2)
    assert found.image_precision == pytest.approx(1 / 3)


def test_recall_and_precision_are_over_pages_of_questions_with_gold_alone() -> None:
    # Two questions with gold: 3 gold pages, 2 of them among the 3 kept. The third names no gold page.
    items = [FilteredPages(kept=kept, probabilities=()) for kept in ((0, 1), (2,), (0, 1, 2))]
    found = filter_metrics(items, [{0, 2}, {2}, ()], [[1] * 3] * 3)
    assert [found.image_recall, found.image_precision] == pytest.approx([2 / 3, 2 / 3])
    assert (found.kept_pages, found.num_gold_pages) == (2.0, 3)
    assert filter_metrics([], [], []).total_ratio == 0.0


class CountingEmbedder(SignEmbedder):
    """Keeps the pages that it was asked to embed."""

    def __init__(self) -> None:
        super().__init__()
        self.embedded: list[str] = []

    def embed_pages(self, pages) -> FloatArray:
        self.embedded += [page.path for page in pages]
        return super().embed_pages(pages)


def test_cosine_scores_are_those_of_the_vectors_and_a_page_is_embedded_once() -> None:
    embedder = CountingEmbedder()
    scorer = CosineScorer(
        embedder,
        Calibration(scale=2.0, offset=-1.0, num_relevant=1, num_irrelevant=1, is_balanced=True),
        image_tokens=lambda page: 7,
    )
    shown = pages("page 5", "page 4", "page 10")
    # Sign vectors: 5 and 5 agree (1), 5 and 4 differ in one of four signs (0.5), 5 and 10 in all (-1).
    np.testing.assert_allclose(scorer.score("q 5", shown), 1 / (1 + np.exp([-1.0, 0.0, 3.0])), atol=1e-12)
    asked = [PagesOfQuestion(question=f"q {number}", pages=pages("page 4", "page 6")) for number in (4, 6)]
    found = scorer.score_all(asked)
    assert embedder.embedded == ["page 5", "page 4", "page 10", "page 6"]
    assert [item.image_tokens for item in found] == [7, 0]  # page 6 for the first question, nothing for the second


def test_without_a_calibration_only_the_order_means_something() -> None:
    scorer = CosineScorer(SignEmbedder())
    assert not scorer.is_calibrated
    # (1 + cosine) / 2 of the cosines 1, 0.5 and -1.
    np.testing.assert_allclose(scorer.score("q 5", pages("p 5", "p 4", "p 10")), [1.0, 0.75, 0.0])


def test_vectors_of_an_index_are_taken_by_the_content_of_the_image(tmp_path: Path) -> None:
    with create_index(tmp_path / "index", IDENTITY, IndexConfig(), None) as index:
        index.add([make_page(number) for number in (1, 2)], sign_vectors([1, 2]))
        known = {page.page_id: page for page in index.pages()}
        index.add([_with_digest(page, f"sha {page.page_number - 1}") for page in known.values()], sign_vectors([1, 2]))
        embedder = CountingEmbedder()
        find = page_finder(index, lambda page: page.path.replace("page", "sha"))
        scorer = CosineScorer(embedder, index=index, find_page_id=find, image_tokens=lambda page: 7)
        (found,) = scorer.score_all([PagesOfQuestion(question="q 2", pages=pages("page 1", "page 2", "page 3"))])
    assert embedder.embedded == ["page 3"]
    assert found.image_tokens == 7
    # 2 against 1: two of four signs differ; against 2: none; against 3: one.
    assert found.probabilities == (0.5, 1.0, 0.75)


def test_an_index_of_another_embedder_is_refused(tmp_path: Path) -> None:
    other = SignEmbedder(_other_identity())
    index = create_index(tmp_path / "index", IDENTITY, IndexConfig(), None)
    with index, pytest.raises(EmbedderMismatchError, match="revision"):
        CosineScorer(other, index=index, find_page_id=lambda page: None)


def test_a_calibration_of_another_embedder_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "calibration.json"
    calibration = fit_calibration([0.2, 0.4, 0.6, 0.8], [False, False, True, True])
    save_calibration(file, calibration, IDENTITY)
    assert load_calibration(file, IDENTITY) == calibration
    with pytest.raises(RelevanceError, match=r"another embedder \(revision: 'sha256:00', not 'sha256:01'\)"):
        load_calibration(file, _other_identity())
    save_calibration(file, calibration)
    assert load_calibration(file) == calibration
    with pytest.raises(RelevanceError, match="does not say whose cosines"):
        load_calibration(file, IDENTITY)


def _other_identity():
    return dataclasses.replace(IDENTITY, revision="sha256:01")


def _with_digest(page, digest: str):
    return dataclasses.replace(page, sha256=digest)
