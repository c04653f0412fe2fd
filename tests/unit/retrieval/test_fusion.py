"""Fusing two rankings, and tuning the weight on queries that nothing is reported for."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rsgrpo.config.checks import ConfigError
from rsgrpo.retrieval.measuring.measures import measure_run
from rsgrpo.retrieval.measuring.trec_runs import Run, RunError, ordered
from rsgrpo.retrieval.text.fusion import FusionMethod, QuerySplit, fuse, split_queries, tune_weight
from tests.unit.retrieval.rankings import ids, pages, rankings

METHODS: tuple[FusionMethod, ...] = ("weighted_sum", "reciprocal_rank")
FEW = st.sampled_from(tuple("abcdef"))


@given(rankings(FEW), rankings(FEW), st.sampled_from(METHODS))
def test_weights_zero_and_one_give_back_the_single_rankings(first, second, method) -> None:
    assert fuse(first, second, 1.0, method=method) == ordered(first)
    assert fuse(first, second, 0.0, method=method) == ordered(second)


@given(rankings(FEW), rankings(FEW), st.floats(0.01, 0.99), st.sampled_from(METHODS))
def test_a_fused_ranking_holds_every_page_once_by_falling_score(first, second, weight, method) -> None:
    fused = fuse(first, second, weight, method=method)
    assert sorted(ids(fused)) == sorted({*ids(first), *ids(second)})
    assert all(math.isfinite(page.score) for page in fused)
    assert fused == ordered(fused)


@given(rankings(FEW), st.floats(0, 1), st.sampled_from(METHODS))
def test_a_ranking_fused_with_itself_or_with_nothing_keeps_its_order(ranking, weight, method) -> None:
    assert ids(fuse(ranking, ranking, weight, method=method)) == ids(ordered(ranking))
    if weight:
        assert ids(fuse(ranking, (), weight, method=method)) == ids(ordered(ranking))


@given(st.dictionaries(FEW, st.integers(-9, 9), min_size=1), rankings(FEW), st.floats(0.01, 0.99))
def test_a_weighted_sum_does_not_depend_on_the_scale_of_a_ranking(scores, second, weight) -> None:
    # powers of two: nothing is rounded
    plain = pages(*((page, float(score)) for page, score in scores.items()))
    moved = pages(*((page, 4.0 * score + 32.0) for page, score in scores.items()))
    assert fuse(plain, second, weight, method="weighted_sum") == fuse(moved, second, weight, method="weighted_sum")


def test_the_examples_of_the_docstring() -> None:
    first, second = pages(("a", 8.0), ("b", 6.0), ("c", 4.0)), pages(("b", 0.9), ("d", 0.5))
    # normalised: a 1, b 0.5, c 0 and b 1, d 0; c comes before d, as the first ranking has it
    assert fuse(first, second, 0.5, method="weighted_sum") == pages(("b", 0.75), ("a", 0.5), ("c", 0.0), ("d", 0.0))
    by_rank = fuse(first, second, 0.5, method="reciprocal_rank")
    assert ids(by_rank) == ["b", "a", "d", "c"]
    assert [page.score for page in by_rank] == pytest.approx([0.5 / 62 + 0.5 / 61, 0.5 / 61, 0.5 / 62, 0.5 / 63])


def test_equal_scores_all_count_as_one() -> None:
    fused = fuse(pages(("a", 3.0), ("b", 3.0)), pages(("c", 1.0)), 0.75, method="weighted_sum")
    assert fused == pages(("a", 0.75), ("b", 0.75), ("c", 0.25))


@pytest.mark.parametrize(
    ("first", "weight", "message"),
    [
        (pages(("a", 1.0)), 1.5, "weight of the first ranking is 1.5"),
        (pages(("a", 1.0)), math.nan, "weight of the first ranking is nan"),
        (pages(("a", 1.0), ("a", 2.0)), 0.5, "the first ranking has page 'a' twice"),
        (pages(("a", math.nan)), 0.5, "the first ranking: the score of page 'a' is nan"),
    ],
)
def test_what_cannot_be_fused_is_named(first, weight: float, message: str) -> None:
    with pytest.raises(RunError, match=message):
        fuse(first, (), weight, method="weighted_sum")


def _two_runs(query_ids) -> tuple[Run, Run, dict[str, dict[str, int]]]:
    """Make two runs that each have the relevant page second; fused, it is first."""
    first = {query: pages((f"{query}-x", 1.0), (f"{query}-gold", 0.88), ("z", 0.0)) for query in query_ids}
    second = {query: pages((f"{query}-y", 1.0), (f"{query}-gold", 0.88), ("z", 0.0)) for query in query_ids}
    return first, second, {query: {f"{query}-gold": 1} for query in query_ids}


@pytest.mark.parametrize("method", METHODS)
def test_the_weight_is_tuned_on_dev_and_fuses_the_rest(method: FusionMethod) -> None:
    first, second, relevant = _two_runs([f"q{number}" for number in range(40)])
    split = split_queries(relevant, dev_frac=0.5)
    tuned = tune_weight(first, second, split, method=method)
    # gold has 0.88 of both sides, x and y all of one: 0.88 > max(weight, 1 - weight) holds for 0.15 to 0.85
    assert tuned.dev_mrr == 1.0
    assert tuned.weight == pytest.approx(0.5)
    test_runs = [{query: run[query] for query in split.test} for run in (first, second)]
    fused = tuned.fuse_runs(*test_runs)
    assert measure_run(fused, split.test, mode="strict", measures=["mrr@10"]).values == {"mrr@10": 1.0}


def test_a_tuned_weight_refuses_the_queries_that_it_was_tuned_on() -> None:
    first, second, relevant = _two_runs([f"q{number}" for number in range(20)])
    split = split_queries(relevant, dev_frac=0.5)
    tuned = tune_weight(first, second, split)
    with pytest.raises(RunError, match=f"tuned on {len(split.dev)} of the 20 queries"):
        tuned.fuse_runs(first, second)


def test_tuning_does_not_look_at_the_test_part() -> None:
    first, second, relevant = _two_runs([f"q{number}" for number in range(20)])
    split = split_queries(relevant, dev_frac=0.5)
    other = QuerySplit(dev=split.dev, test={query: {"z": 1} for query in split.test})
    dev_first, dev_second = ({query: run[query] for query in split.dev} for run in (first, second))
    assert (
        tune_weight(first, second, split)
        == tune_weight(first, second, other)
        == tune_weight(dev_first, dev_second, split)
    )


def test_the_better_run_alone_wins_where_fusing_does_harm() -> None:
    good = {"q": pages(("gold", 1.0), ("a", 0.99), ("b", 0.0))}
    bad = {"q": pages(("a", 1.0), ("b", 0.9), ("gold", 0.0))}
    tuned = tune_weight(good, bad, QuerySplit(dev={"q": {"gold": 1}}, test={"t": {"gold": 1}}))
    # gold has weight, a 0.99 weight + 1 - weight: gold is first only at weight 1 (the step before is 0.95)
    assert (tuned.weight, tuned.dev_mrr) == (1.0, 1.0)
    assert tuned.dev_mrr_by_weight[0] == (0.0, 1 / 3)


def test_missing_dev_queries_count_as_zero() -> None:
    run = {"q1": pages(("gold", 1.0))}
    split = QuerySplit(dev={"q1": {"gold": 1}, "q2": {"gold": 1}}, test={"t": {"gold": 1}})
    assert tune_weight(run, {}, split).dev_mrr == 0.5
    with pytest.raises(RunError, match="any of the 2 dev queries"):
        tune_weight({"t": run["q1"]}, {"q1": ()}, split)
    with pytest.raises(
        RunError, match="at no weight a relevant page is among the first 10 of any of the 2 dev queries"
    ):
        tune_weight({"q1": pages(("other", 1.0))}, {}, split)


def test_an_unknown_method_is_named() -> None:
    with pytest.raises(ConfigError, match="method='rrf' is not known"):
        fuse((), (), 0.5, method="rrf")  # type: ignore[arg-type]


@given(st.dictionaries(st.integers(0, 999), st.integers(0, 30), min_size=20, max_size=60), st.randoms())
def test_a_split_is_whole_and_depends_on_ids_alone(pages_of, random) -> None:
    relevant = {f"q{query}": {f"p{page}": 1} for query, page in pages_of.items()}
    try:
        split = split_queries(relevant, dev_frac=0.5)
    except RunError:  # all pages fell on one side
        return
    assert {**split.dev, **split.test} == relevant
    assert not split.dev.keys() & split.test.keys()
    assert not {page for judged in split.dev.values() for page in judged} & {
        page for judged in split.test.values() for page in judged
    }
    shuffled = list(relevant.items())
    random.shuffle(shuffled)
    assert split_queries(dict(shuffled), dev_frac=0.5) == split


def test_a_split_needs_queries_on_both_sides() -> None:
    with pytest.raises(RunError, match="of 1 queries"):
        split_queries({"q": {"p": 1}}, dev_frac=0.5)
    with pytest.raises(RunError, match="dev_frac is 1"):
        split_queries({"q": {"p": 1}}, dev_frac=1)
    relevant = {f"q{number}": {f"p{number}": 1} for number in range(400)}
    sizes = [len(split_queries(relevant, dev_frac=0.2, seed=seed).dev) for seed in range(3)]
    # 400 draws at 0.2: mean 80, deviation 8
    assert all(abs(size - 80) < 40 for size in sizes)
    assert len(set(sizes)) > 1


@pytest.mark.parametrize(("num_helped", "num_hurt", "is_taken"), [(12, 8, False), (20, 4, True), (0, 0, False)])
def test_a_mixture_must_gain_more_than_chance_gives(num_helped: int, num_hurt: int, is_taken: bool) -> None:
    # The second run lifts the right page of a helped query from rank 2 to 1, +1/2, and does the reverse to a hurt one;
    # the others it has nothing for. Of 100 queries the mean is (helped - hurt) / 200, and its standard error about
    # sqrt(helped + hurt) / 200: 12 and 8 are 0.9 standard errors, 20 and 4 are 3.3.
    first, second, relevant = {}, {}, {}
    for number in range(100):
        query_id, right = f"q{number}", f"p{number}"
        is_helped, is_hurt = number < num_helped, num_helped <= number < num_helped + num_hurt
        better, worse = ("wrong", right) if is_helped else (right, "wrong")
        first[query_id] = pages((better, 1.0), (worse, 0.9), ("filler", 0.0))
        second[query_id] = pages((worse, 1.0), ("filler", 0.0)) if is_helped or is_hurt else ()
        relevant[query_id] = {right: 1}
    split = QuerySplit(dev=relevant, test={"other": {"p": 1}})
    tuned = tune_weight(first, second, split)
    assert (tuned.weight < 1) == is_taken
    assert tuned.dev_mrr == dict(tuned.dev_mrr_by_weight)[tuned.weight]
    # The runs the other way round say the same of the other end of the scale.
    assert (tune_weight(second, first, split).weight > 0) == is_taken
