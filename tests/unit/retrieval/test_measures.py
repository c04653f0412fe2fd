"""Measures of runs: VisRAG's own vectors, and laws."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rsgrpo.config.checks import ConfigError
from rsgrpo.retrieval.measuring.measures import MEASURES, Judgements, measure_run
from rsgrpo.retrieval.measuring.trec_runs import Run, RunError
from tests.unit.retrieval.rankings import pages, rankings

Parity = Callable[[str], Any]
PAGES = tuple("abcdefgh")


def _cases(parity: Parity) -> list[dict[str, Any]]:
    return parity("retrieval_metrics")["cases"]


def _run(case: dict[str, Any]) -> Run:
    return {query: pages(*map(tuple, ranking)) for query, ranking in case["run"].items()}


def test_all_measures_of_all_rankings_equal_visrags(parity: Parity) -> None:
    for case in _cases(parity):
        measured = measure_run(_run(case), case["qrels"], mode="official")
        assert measured.per_query.keys() == case["per_query"].keys(), case["name"]
        for query, expected in case["per_query"].items():
            assert measured.per_query[query] == pytest.approx(expected, abs=1e-9), (case["name"], query)
        assert measured.values == pytest.approx(case["aggregate"], abs=1e-9), case["name"]


def test_modes_differ_by_missing_queries_alone(parity: Parity) -> None:
    for case in _cases(parity):
        official, strict = (measure_run(_run(case), case["qrels"], mode=mode) for mode in ("official", "strict"))
        assert official.missing_queries == strict.missing_queries
        assert strict.num_queries - official.num_queries == len(strict.missing_queries)
        if not strict.missing_queries:
            assert official == strict


def test_missing_queries_are_left_out_or_count_as_zero_and_are_named() -> None:
    run: Run = {"q1": pages(("a", 1.0)), "q2": (), "q9": pages(("a", 1.0))}
    relevant = {"q1": {"a": 1}, "q2": {"a": 1}, "q3": {"b": 1}}
    official = measure_run(run, relevant, mode="official", measures=["mrr@10", "recall@1"])
    strict = measure_run(run, relevant, mode="strict", measures=["mrr@10", "recall@1"])
    for measured in (official, strict):
        assert measured.missing_queries == ("q2", "q3")
        assert measured.unjudged_queries == ("q9",)
    assert (official.num_queries, dict(official.values)) == (1, {"mrr@10": 1.0, "recall@1": 1.0})
    assert (strict.num_queries, dict(strict.values)) == (3, {"mrr@10": 1 / 3, "recall@1": 1 / 3})
    assert strict.per_query["q3"] == {"mrr@10": 0.0, "recall@1": 0.0}


def test_the_example_of_the_docstring() -> None:
    measured = measure_run(
        {"q": pages(("x", 3.0), ("a", 2.0), ("y", 1.0))},
        {"q": {"a": 1}},
        mode="strict",
        measures=["mrr@10", "recall@1", "recall@10", "ndcg@10"],
    )
    # one page at rank 2: 1/2; not among the first one; all found; 1/log2(3) over the ideal 1/log2(2) = 1
    assert measured.values == pytest.approx(
        {"mrr@10": 0.5, "recall@1": 0.0, "recall@10": 1.0, "ndcg@10": 1 / math.log2(3)}
    )


@given(
    st.dictionaries(st.sampled_from(("q1", "q2", "q3")), rankings(st.sampled_from(PAGES), min_size=1), min_size=1),
    st.dictionaries(st.sampled_from(PAGES), st.integers(0, 3), min_size=1),
)
def test_measures_are_shares_and_deeper_ones_no_smaller(run: Run, judged: dict[str, int]) -> None:
    relevant: Judgements = dict.fromkeys(run, judged)
    names = ["mrr@1", "mrr@5", "recall@1", "recall@5", "recall@100", "ndcg@5"]
    values = measure_run(run, relevant, mode="strict", measures=names).values
    assert all(0 <= value <= 1 + 1e-12 for value in values.values())
    assert values["mrr@1"] <= values["mrr@5"]
    assert values["recall@1"] <= values["recall@5"] <= values["recall@100"]


@given(rankings(st.sampled_from(PAGES), min_size=1), st.randoms(use_true_random=False))
def test_only_mrr_depends_on_the_order_of_pages_with_equal_scores(ranking, random) -> None:
    shuffled = list(ranking)
    random.shuffle(shuffled)
    names = ["recall@1", "recall@3", "ndcg@3"]
    relevant = {"q": {"a": 1, "b": 2}}
    first = measure_run({"q": ranking}, relevant, mode="strict", measures=names)
    second = measure_run({"q": tuple(shuffled)}, relevant, mode="strict", measures=names)
    assert first == second


@pytest.mark.parametrize(
    ("run", "relevant", "message"),
    [
        ({}, {"q": {"a": 1}}, "the run is empty"),
        ({"q": ()}, {"q": {"a": 1}}, "the run is empty"),
        ({"q": pages(("a", 1.0))}, {}, "no relevance judgements"),
        ({"q": pages(("a", 1.0))}, {"q": {}}, "'q' has no judged page"),
        ({"Q7": pages(("a", 1.0))}, {"q7": {"a": 1}}, "'Q7' looks like 'q7'"),
        ({"q": pages(("a", math.nan))}, {"q": {"a": 1}}, "page 'a' is nan"),
        ({"q": pages(("a", -math.inf))}, {"q": {"a": 1}}, "page 'a' is -inf"),
        ({"q": pages(("a", 1.0), ("a", 0.5))}, {"q": {"a": 1}}, "'q' has page 'a' twice"),
        ({"q": pages(("a", 1.0))}, {"q": {"a": 0.5}}, "relevance of page 'a' is 0.5"),
        ({"q": pages(("a", 1.0))}, {"q": {"a": -1}}, "relevance of page 'a' is -1"),
        ({"q": pages(("a", 1.0))}, {"q": {"a": True}}, "relevance of page 'a' is True"),
        # trec_eval allocates memory by the highest grade
        ({"q": pages(("a", 1.0))}, {"q": {"a": 10**9}}, "from 0 .* to 1000"),
        # and takes "a\0b" for "a", and ends the process at half a character
        ({"q": pages(("a\0b", 1.0))}, {"q": {"a": 1}}, "zero byte"),
        ({"q": pages(("\ud800", 1.0))}, {"q": {"a": 1}}, "ud800' is no id"),
        ({"q": pages(("a", 1.0))}, {"q": {"\ud800": 1}}, "ud800' is no id"),
        ({"q": pages(("", 1.0))}, {"q": {"a": 1}}, "page id '' is no id"),
    ],
)
def test_what_cannot_be_measured_is_named(run: Run, relevant: Judgements, message: str) -> None:
    for mode in ("official", "strict"):
        with pytest.raises(RunError, match=message):
            measure_run(run, relevant, mode=mode)


@pytest.mark.parametrize("name", ["map", "mrr", "mrr@0", "ndcg@-1", "Recall@5", "recall@5 "])
def test_an_unknown_measure_is_named(name: str) -> None:
    with pytest.raises(RunError, match="is not known"):
        measure_run({"q": pages(("a", 1.0))}, {"q": {"a": 1}}, mode="strict", measures=[name])


def test_an_unknown_mode_is_named() -> None:
    with pytest.raises(ConfigError, match="mode='default' is not known; choose one of official, strict"):
        measure_run({"q": pages(("a", 1.0))}, {"q": {"a": 1}}, mode="default")  # type: ignore[arg-type]


def test_a_query_without_a_relevant_page_counts_as_zero() -> None:
    measured = measure_run({"q": pages(("a", 1.0))}, {"q": {"a": 0}}, mode="official")
    assert measured.values == dict.fromkeys(MEASURES, 0.0)
