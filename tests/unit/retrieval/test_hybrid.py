"""Text and vectors fused: the weight is tuned on dev questions alone, kept, and says what has changed since."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from rsgrpo.retrieval.index.page_index import FoundPage, ranked
from rsgrpo.retrieval.measuring.trec_runs import ScoredPage
from rsgrpo.retrieval.text.fusion import fuse, split_queries, tune_weight
from rsgrpo.retrieval.text.hybrid import (
    DEPTH,
    TUNED_FILE,
    FoundBoth,
    HybridError,
    TunedSearch,
    fuse_found,
    read_tuned,
    tune_search,
    write_tuned,
)
from rsgrpo.retrieval.text.text_search import TextSearch
from tests.unit.retrieval.index_pages import IDENTITY, make_page, told

QUERIES = 60


class FakeText(TextSearch):
    """What a text search says of itself."""

    def __init__(self, content: str = "c", language: str = "english", num_pages: int = 7) -> None:
        self.content, self.language, self.num_pages = content, language, num_pages


def found(*scored: tuple[int, float]) -> list[FoundPage]:
    return ranked(((make_page(number), score) for number, score in scored), len(scored))


def test_scores_are_brought_to_one_scale_and_ties_come_in_page_order() -> None:
    # text: 1 has 1, 2 (6 - 4) / (8 - 4) = 0.5, 3 has 0; vectors: 2 has 1, 4 has 0
    text, vectors = found((1, 8.0), (2, 6.0), (3, 4.0)), found((2, 0.9), (4, 0.5))
    fused = fuse_found(text, vectors, 0.5, 4, method="weighted_sum")
    assert told(fused) == [("doc2.pdf#2", 0.75), ("doc1.pdf#1", 0.5), ("doc3.pdf#3", 0.0), ("doc4.pdf#4", 0.0)]
    reverse = fuse_found(found((4, 1.0), (3, 1.0)), found((3, 1.0), (4, 1.0)), 0.5, 2, method="weighted_sum")
    assert [hit.page.page_number for hit in reverse] == [4, 5]


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_a_weight_of_all_or_nothing_is_one_search_alone(weight: float) -> None:
    text, vectors = found((1, 8.0), (2, 6.0)), found((3, 0.9), (1, 0.5))
    assert fuse_found(text, vectors, weight, 2, method="weighted_sum") == (text if weight else vectors)


def both() -> FoundBoth:
    """Questions of which text finds the first third alone, vectors another third alone, both the rest."""
    text, vectors = {}, {}
    for number in range(QUERIES):
        right, wrong = (number, 1.0), (number + QUERIES, 0.9)
        missed = [(number + QUERIES, 1.0), (number + 2 * QUERIES, 0.5), (number, 0.4)]
        text[f"q{number}"] = found(*(missed if number % 3 == 1 else [right, wrong]))
        vectors[f"q{number}"] = found(*(missed if number % 3 == 2 else [right, wrong]))
    return FoundBoth(text=text, vectors=vectors)


RELEVANT = {f"q{number}": {make_page(number).page_id: 1} for number in range(QUERIES)}


def tuned(of: FoundBoth, relevant: Mapping[str, Mapping[str, int]] = RELEVANT) -> TunedSearch:
    return tune_search(of, relevant, FakeText(), IDENTITY, queries="judged", dev_frac=0.5, seed=3)


def plain(of: Mapping[str, Sequence[FoundPage]]) -> dict[str, list[ScoredPage]]:
    return {
        query_id: [ScoredPage(page_id=hit.page.page_id, score=hit.score) for hit in hits]
        for query_id, hits in of.items()
    }


def test_the_weight_is_that_of_the_dev_questions_and_the_measures_are_of_the_others() -> None:
    result = tuned(both())
    split = split_queries(RELEVANT, dev_frac=0.5, seed=3)
    text, vectors = plain(both().text), plain(both().vectors)
    assert result.weight == tune_weight(text, vectors, split).weight
    assert (result.num_dev_queries, result.num_test_queries) == (len(split.dev), len(split.test))
    assert result.depth == DEPTH and (result.content, result.num_pages) == ("c", 7)
    # MRR: 1 where the page is first, 1/3 where two wrong ones come before it
    missed = [query_id for query_id in split.test if int(query_id[1:]) % 3 == 1]
    expected = (len(split.test) - len(missed) * 2 / 3) / len(split.test)
    assert result.measures["text"]["mrr@10"] == pytest.approx(expected)
    fused = {
        query_id: fuse(text[query_id], vectors[query_id], result.weight, method="weighted_sum") for query_id in text
    }
    firsts = [fused[query_id][0].page_id in RELEVANT[query_id] for query_id in split.test]
    assert result.measures["hybrid"]["mrr@10"] >= sum(firsts) / len(firsts)


def test_test_questions_do_not_move_the_weight() -> None:
    split = split_queries(RELEVANT, dev_frac=0.5, seed=3)
    spoilt = both()
    lost = {query_id: (() if query_id in split.test else hits) for query_id, hits in spoilt.text.items()}
    other = tuned(FoundBoth(text=lost, vectors=spoilt.vectors))
    assert other.weight == tuned(spoilt).weight
    assert other.measures["text"] == dict.fromkeys(other.measures["text"], 0.0)  # nothing found counts as 0


def test_a_weight_is_read_back_and_says_what_has_changed(tmp_path: Path) -> None:
    assert read_tuned(tmp_path) is None
    written = tuned(both())
    write_tuned(tmp_path, written)
    assert read_tuned(tmp_path) == written
    assert written.changes(FakeText(), IDENTITY) == ()
    assert written.changes(FakeText("d", num_pages=9), IDENTITY) == (
        "pages or their texts have changed (7 pages then, 9 now)",
    )
    assert written.changes(FakeText("d", "german"), IDENTITY) == ("the language is german, it was english",)
    (change,) = written.changes(FakeText(), dataclasses.replace(IDENTITY, revision="other"))
    assert "the embedder is another one (revision: 'sha256:00', not 'other')" in change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "x"}, "kind is 'x', expected 'rsgrpo tuned search'"),
        ({"version": 9}, "version is 9, expected 1"),
        ({"content": {}}, "holds no tuned weight"),
        ({"content": {"weight": 2.0}}, "weight 2.0 at depth 100 is no weight"),
    ],
)
def test_a_file_that_holds_no_weight_is_refused_with_the_way_out(
    tmp_path: Path, change: dict[str, object], message: str
) -> None:
    write_tuned(tmp_path, tuned(both()))
    document = json.loads((tmp_path / TUNED_FILE).read_text())
    content = change.get("content")
    if content:
        change = {"content": document["content"] | content}
    (tmp_path / TUNED_FILE).write_text(json.dumps(document | change))
    with pytest.raises(HybridError, match=message) as caught:
        read_tuned(tmp_path)
    assert "tune-search again" in str(caught.value)
