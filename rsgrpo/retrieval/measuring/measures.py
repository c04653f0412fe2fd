"""Measure how well a run finds the relevant pages: MRR, recall and nDCG as VisRAG's evaluation computes them.

Recall@k and nDCG@k are ``trec_eval``'s: linear gain, ``sum rel_i / log2(i + 1)`` over the ideal order's, both cut at k;
scores are compared as float32, and equal ones go by page id, the later in the alphabet first. MRR@k is VisRAG's own
(``eval_mrr``): scores are compared as float64, and equal ones stay in the run's order. So the measures of one run may
disagree about its ties.

What may differ from one evaluation to the next is the queries that the run has no page for: ``official`` leaves them
out of the means, as VisRAG does, ``strict`` counts them as 0. Both say how many they are.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import get_args

import pytrec_eval

from rsgrpo.config.checks import one_of
from rsgrpo.errors import shown
from rsgrpo.io.ids import near_misses
from rsgrpo.retrieval.measuring.trec_runs import Mode, Ranking, Run, RunError, check_id, check_run, ordered

Judgements = Mapping[str, Mapping[str, int]]
"""Relevance by query id and page id: 0 is not relevant, 1 or more is."""

MEASURES = ("mrr@10", "recall@1", "recall@5", "recall@10", "ndcg@5", "ndcg@10")
"""The measures that are computed by default; VisRAG reports MRR@10 and Recall@10, mteb Recall@10 and nDCG@k."""

MAX_RELEVANCE = 1000
"""The highest grade of relevance: trec_eval counts pages grade by grade, in memory that grows with the highest."""

_MEASURE = re.compile(r"(mrr|recall|ndcg)@([1-9][0-9]{0,5})")
_TREC_NAMES = {"recall": "recall_", "ndcg": "ndcg_cut_"}


@dataclass(frozen=True, kw_only=True, slots=True)
class RunMeasures:
    """The measures of a run.

    Attributes:
        values: the mean over queries by measure, each from 0 to 1.
        per_query: the value of each measure by query id, each from 0 to 1; ``official`` mode leaves the missing queries
            out, ``strict`` mode has zeros for them.
        num_queries: how many queries the means are over.
        missing_queries: the ids of judged queries that the run has no page for.
        unjudged_queries: the ids of queries of the run that nothing is judged for; no measure counts them.
    """

    values: Mapping[str, float]
    per_query: Mapping[str, Mapping[str, float]]
    num_queries: int
    missing_queries: tuple[str, ...]
    unjudged_queries: tuple[str, ...]


def measure_run(run: Run, relevant: Judgements, *, mode: Mode, measures: Sequence[str] = MEASURES) -> RunMeasures:
    """Measure a run against relevance judgements.

    Args:
        run: the rankings by query id, sorted or not.
        relevant: the relevance of each judged page, by query id and page id. A query whose pages are all judged 0
            counts, with 0 in every measure.
        mode: whether judged queries without a page are left out (``official``) or count as 0 (``strict``).
        measures: the names of the measures, such as ``mrr@10``, ``recall@5`` and ``ndcg@20``.

    Returns:
        The means, the values of each query, and the ids of the queries that were missing.

    Raises:
        RunError: the run or the judgements are empty or have no query in common, a measure is not known, a page stands
            twice, a score is not finite, or a relevance is no whole number from 0 to ``MAX_RELEVANCE``.

    Example:
        The page sought is second of three: mrr@10 0.5, recall@1 0, recall@10 1, ndcg@10 1 / log2(3) = 0.6309.
    """
    one_of("mode", mode, get_args(Mode))
    wanted = [_parsed(name) for name in measures]
    _check_judgements(relevant)
    check_run(run)
    rankings = {query_id: ordered(run[query_id]) for query_id in relevant if run.get(query_id)}
    if not rankings:
        raise RunError(_nothing_common(run, relevant))
    trec = _trec_eval(rankings, relevant, wanted)
    per_query: dict[str, dict[str, float]] = {}
    for query_id in relevant:
        if query_id in rankings:
            per_query[query_id] = {
                f"{kind}@{depth}": (
                    reciprocal_rank(rankings[query_id], relevant[query_id], depth)
                    if kind == "mrr"
                    else float(trec[query_id][f"{_TREC_NAMES[kind]}{depth}"])
                )
                for kind, depth in wanted
            }
        elif mode == "strict":
            per_query[query_id] = dict.fromkeys(measures, 0.0)
    return RunMeasures(
        values={name: fmean(values[name] for values in per_query.values()) for name in measures},
        per_query=per_query,
        num_queries=len(per_query),
        missing_queries=tuple(query_id for query_id in relevant if query_id not in rankings),
        unjudged_queries=tuple(query_id for query_id in run if query_id not in relevant),
    )


def reciprocal_rank(ranking: Ranking, relevant: Mapping[str, int], depth: int) -> float:
    """Compute 1 / rank of the first relevant page.

    Args:
        ranking: the pages that were found, best first.
        relevant: the relevance by page id; from 1 on a page is relevant.
        depth: how many of the first pages are looked at, at least 1.

    Returns:
        1 / rank, with ranks from 1; 0.0 where none of the first ``depth`` pages is relevant.
    """
    for rank, page in enumerate(ranking[:depth], start=1):
        if relevant.get(page.page_id, 0) > 0:
            return 1.0 / rank
    return 0.0


def _parsed(name: str) -> tuple[str, int]:
    found = _MEASURE.fullmatch(name)
    if found is None:
        raise RunError(f"the measure {shown(name, 60)!r} is not known; name mrr@k, recall@k or ndcg@k with k from 1")
    return found[1], int(found[2])


def _check_judgements(relevant: Judgements) -> None:
    if not relevant:
        raise RunError("there are no relevance judgements to measure the run with; name the queries' relevant pages")
    for query_id, pages in relevant.items():
        check_id(query_id, "query")
        if not pages:
            raise RunError(f"query {shown(query_id, 80)!r} has no judged page; judge one, or leave the query out")
        for page_id, relevance in pages.items():
            check_id(page_id, "page")
            if isinstance(relevance, bool) or not isinstance(relevance, int) or not 0 <= relevance <= MAX_RELEVANCE:
                raise RunError(
                    f"query {shown(query_id, 80)!r}: the relevance of page {shown(page_id, 80)!r} is "
                    f"{relevance!r:.60}, expected a whole number from 0 (not relevant) to {MAX_RELEVANCE}"
                )


def _nothing_common(run: Run, relevant: Judgements) -> str:
    """Write the error message for a run that answers none of the judged queries."""
    if not any(run.values()):
        return "the run is empty: it has no page for any query; search again, or read another file"
    some = f"the run has {shown(next(iter(run)), 60)!r} first, the judgements {shown(next(iter(relevant)), 60)!r}"
    alike = near_misses(run, relevant)
    hint = f"; {shown(alike[0][0], 60)!r} looks like {shown(alike[0][1], 60)!r}" if alike else ""
    return (
        f"none of the run's {len(run)} queries is among the {len(relevant)} judged ones ({some}{hint}); measure it "
        "with the judgements of the same data set and split"
    )


def _trec_eval(
    rankings: Mapping[str, Ranking], relevant: Judgements, wanted: Sequence[tuple[str, int]]
) -> Mapping[str, Mapping[str, float]]:
    names = {f"{_TREC_NAMES[kind]}{depth}" for kind, depth in wanted if kind in _TREC_NAMES}
    if not names:
        return {}
    judged = {query_id: dict(relevant[query_id]) for query_id in rankings}
    scores = {query_id: {page.page_id: float(page.score) for page in pages} for query_id, pages in rankings.items()}
    found: Mapping[str, Mapping[str, float]] = pytrec_eval.RelevanceEvaluator(judged, names).evaluate(scores)
    return found
