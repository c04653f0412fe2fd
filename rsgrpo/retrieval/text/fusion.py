"""Fuse two rankings into one: lexical search finds names and numbers, embeddings find meaning.

How much each ranking counts must be tuned: with equal weights the fusion is often worse than the better of the two. It
must not be tuned on the queries that a result is reported for. So :func:`split_queries` parts the judged queries,
:func:`tune_weight` looks at the judgements of the dev part alone, and its result refuses to fuse the rankings of a
query that it was tuned on.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from rsgrpo.config.checks import one_of
from rsgrpo.errors import shown
from rsgrpo.retrieval.measuring.measures import Judgements, reciprocal_rank
from rsgrpo.retrieval.measuring.trec_runs import Ranking, Run, RunError, ScoredPage, check_ranking, ordered

FusionMethod = Literal["weighted_sum", "reciprocal_rank"]
"""How the scores of two rankings are combined; see :func:`fuse`."""

RANK_CONSTANT = 60
"""Constant of reciprocal rank fusion, as in its paper: the larger, the less the first ranks stand out."""

TUNING_DEPTH = 10
"""Depth of the MRR that weights are tuned by: MRR@10, VisRAG's own measure."""

MIN_STANDARD_ERRORS = 2.0
"""How many standard errors a mixture must gain over the better run alone; two leave chance one case in forty."""

NUM_STEPS = 20
"""Weights are tried in steps of 1 / 20; finer steps would fit noise, as dev parts have some hundred queries."""


def fuse(first: Ranking, second: Ranking, weight: float, *, method: FusionMethod) -> tuple[ScoredPage, ...]:
    """Fuse two rankings of one query.

    Each page gets ``weight * s1 + (1 - weight) * s2``, with 0 for the ranking that lacks it, where s is by ``method``

    - ``weighted_sum``: its score brought to [0, 1]: the best page of a ranking has 1, its last 0, those between
      linearly. Where all scores are equal, all have 1.
    - ``reciprocal_rank``: ``1 / (60 + rank)``, ranks from 1 (reciprocal rank fusion, Cormack et al. 2009, with
      weights).

    Args:
        first: the pages of one ranking with their scores, sorted or not.
        second: the pages of the other ranking, sorted or not; its scores may be of another scale.
        weight: the weight of ``first``, from 0 to 1.
        method: the rule that turns scores or ranks into the numbers that are added.

    Returns:
        The pages by falling score; equal ones by their rank in ``first``, then in ``second``. At weight 1 the result
        is ``first`` itself, sorted, at 0 ``second``: pages of the other ranking are not appended, and scores stay.

    Raises:
        RunError: the weight is not from 0 to 1, a page stands twice, or a score is not finite.

    Example:
        ``first``: a 8, b 6, c 4; ``second``: b 0.9, d 0.5; weight 0.5, weighted sum: b 0.25 + 0.5 = 0.75, a 0.5, c 0, d
        0. By reciprocal rank: b 0.5/62 + 0.5/61 = 0.01626, a 0.5/61 = 0.00820, d 0.5/62 = 0.00806, c 0.5/63 = 0.00794.
    """
    if not 0 <= weight <= 1:
        raise RunError(f"the weight of the first ranking is {weight}, expected a number from 0 to 1")
    return _pair(first, second, method).at(weight)


@dataclass(frozen=True, kw_only=True, slots=True)
class QuerySplit:
    """Judgements to tune with, and judgements to report.

    Attributes:
        dev: the judgements to tune with, by query id.
        test: the judgements to report, by query id; none of these queries is in ``dev``.
    """

    dev: Judgements
    test: Judgements


@dataclass(frozen=True, kw_only=True, slots=True)
class TunedFusion:
    """A weight, and what it was tuned on.

    Attributes:
        method: the rule by which rankings are fused.
        weight: the weight of the first run, from 0 to 1; 0 and 1 where no mixture gained more than chance gives.
        dev_mrr: the mean MRR@10 over the dev queries at that weight, from 0 to 1.
        dev_mrr_by_weight: pairs of a weight and its MRR@10 for all weights that were tried, by rising weight.
        dev_query_ids: the ids of the queries that the weight was tuned on.
    """

    method: FusionMethod
    weight: float
    dev_mrr: float
    dev_mrr_by_weight: tuple[tuple[float, float], ...]
    dev_query_ids: frozenset[str]

    def fuse_runs(self, first: Run, second: Run) -> dict[str, tuple[ScoredPage, ...]]:
        """Fuse two runs of queries that the weight was not tuned on.

        Args:
            first: the rankings of the first run by query id. A query that only one run has is fused with an empty
                ranking.
            second: the rankings of the second run by query id.

        Returns:
            The fused rankings by query id, in the order of ``first``, then of ``second``.

        Raises:
            RunError: a query is one of those that the weight was tuned on, whose result would look too good; a page
                stands twice, or a score is not finite.
        """
        query_ids = list(dict.fromkeys((*first, *second)))
        seen = [query_id for query_id in query_ids if query_id in self.dev_query_ids]
        if seen:
            raise RunError(
                f"the weight was tuned on {len(seen)} of the {len(query_ids)} queries, such as "
                f"{shown(seen[0], 80)!r}; fuse and report the test part of split_queries alone"
            )
        return {
            query_id: fuse(first.get(query_id, ()), second.get(query_id, ()), self.weight, method=self.method)
            for query_id in query_ids
        }


def split_queries(relevant: Judgements, *, dev_frac: float, seed: int = 0) -> QuerySplit:
    """Part judged queries into those to tune with and those to report.

    Queries about the same page fall to the same side (by the page that comes first in the alphabet, where there are
    several). Each side depends on ids and ``seed`` alone, not on the order or number of queries.

    Args:
        relevant: the relevance of each judged page, by query id and page id.
        dev_frac: the share of the pages whose queries are for tuning, above 0 and below 1; it is met on average.
        seed: the number that decides the split; another number gives another split.

    Returns:
        The two sides; together they hold every query once.

    Raises:
        RunError: ``dev_frac`` is out of range, or a side has no query.
    """
    if not 0 < dev_frac < 1:
        raise RunError(f"dev_frac is {dev_frac}, expected a number between 0 and 1")
    dev: dict[str, Mapping[str, int]] = {}
    test: dict[str, Mapping[str, int]] = {}
    for query_id, pages in relevant.items():
        key = min((page for page, score in pages.items() if score > 0), default=query_id)
        digest = hashlib.sha256(f"{seed}/{key}".encode(errors="surrogatepass")).digest()
        side = dev if int.from_bytes(digest[:8], "big") < dev_frac * 2**64 else test
        side[query_id] = pages
    if not dev or not test:
        raise RunError(
            f"of {len(relevant)} queries {len(dev)} would be for tuning and {len(test)} for the result; judge more "
            "queries, or take another dev_frac"
        )
    return QuerySplit(dev=dev, test=test)


def tune_weight(first: Run, second: Run, split: QuerySplit, *, method: FusionMethod = "weighted_sum") -> TunedFusion:
    """Find the weight with the best MRR@10 over the dev queries; the test part is not looked at.

    A dev query that a run has no page for is fused with an empty ranking, and counts as 0 where neither has one. Where
    several weights are best, the middle one of them is taken.

    Of twenty mixtures one looks better than the better run alone by chance, even where the other run is noise. So a
    mixture must gain more than :data:`MIN_STANDARD_ERRORS` standard errors, with the standard error of the difference
    query by query; else the better run alone is taken, weight 1 or 0, which also saves the other search.

    Args:
        first: the rankings of the first run by query id; those of queries beyond the dev part are not used.
        second: the rankings of the second run by query id; those of queries beyond the dev part are not used.
        split: the judged queries as :func:`split_queries` parted them.
        method: the rule by which rankings are fused.

    Returns:
        The weight, with the dev queries that it was tuned on.

    Raises:
        RunError: neither run has a page for any dev query, or a relevant one among the first ten; a page stands twice,
            or a score is not finite.

    Example:
        Over 100 dev queries the first run alone has 0.60, weight 0.8 has 0.63, and the differences of the queries have
        the standard deviation 0.2: their mean, 0.03, is 1.5 times its standard error of 0.02, so the weight is 1.
    """
    if not any(run.get(query_id) for run in (first, second) for query_id in split.dev):
        raise RunError(
            f"neither run has a page for any of the {len(split.dev)} dev queries; search for these queries too, or "
            "split the judgements of the queries that were searched for"
        )
    pairs = [
        (_pair(first.get(query_id, ()), second.get(query_id, ()), method), pages)
        for query_id, pages in split.dev.items()
    ]
    weights = [step / NUM_STEPS for step in range(NUM_STEPS + 1)]
    ranks = np.array(  # [weights, dev queries] float64
        [[reciprocal_rank(pair.at(weight), pages, TUNING_DEPTH) for pair, pages in pairs] for weight in weights]
    )
    means = [fmean(of_weight) for of_weight in ranks.tolist()]
    best = max(means)
    if not best:
        raise RunError(
            f"at no weight a relevant page is among the first {TUNING_DEPTH} of any of the {len(split.dev)} dev "
            "queries; are the runs and the judgements of the same corpus?"
        )
    best_steps = [step for step, mrr in enumerate(means) if math.isclose(mrr, best, rel_tol=1e-12)]
    chosen = best_steps[(len(best_steps) - 1) // 2]
    alone = NUM_STEPS if means[NUM_STEPS] >= means[0] else 0
    if not _is_gain(ranks[chosen] - ranks[alone]):
        chosen = alone
    return TunedFusion(
        method=method,
        weight=weights[chosen],
        dev_mrr=means[chosen],
        dev_mrr_by_weight=tuple(zip(weights, means, strict=True)),
        dev_query_ids=frozenset(split.dev),
    )


def _is_gain(differences: NDArray[np.float64]) -> bool:
    """Whether a mean of differences, [queries] float64, is above 0 by more than chance."""
    if len(differences) == 1:  # one query has no spread to judge by
        return False
    standard_error = float(differences.std(ddof=1)) / math.sqrt(len(differences))
    return float(differences.mean()) > MIN_STANDARD_ERRORS * standard_error


@dataclass(frozen=True, kw_only=True, slots=True)
class _Pair:
    """Two rankings, sorted, and what each gives to its pages at full weight."""

    first: tuple[ScoredPage, ...]
    second: tuple[ScoredPage, ...]
    first_shares: Mapping[str, float]
    second_shares: Mapping[str, float]

    def at(self, weight: float) -> tuple[ScoredPage, ...]:
        """Fuse the two rankings with a weight of the first one, from 0 to 1."""
        if weight == 1:
            return self.first
        if weight == 0:
            return self.second
        scores = {
            page_id: weight * self.first_shares.get(page_id, 0.0) + (1 - weight) * self.second_shares.get(page_id, 0.0)
            for page_id in (*self.first_shares, *self.second_shares)
        }
        return ordered([ScoredPage(page_id=page_id, score=score) for page_id, score in scores.items()])


def _pair(first: Ranking, second: Ranking, method: FusionMethod) -> _Pair:
    one_of("method", method, tuple(_SHARES))
    shares = _SHARES[method]
    sides = []
    for ranking, name in ((first, "the first ranking"), (second, "the second ranking")):
        check_ranking(ranking, name)
        sides.append(ordered(ranking))
    return _Pair(first=sides[0], second=sides[1], first_shares=shares(sides[0]), second_shares=shares(sides[1]))


def _min_max(ranking: tuple[ScoredPage, ...]) -> dict[str, float]:
    if not ranking:
        return {}
    # Halves: the difference of two large scores may be beyond float64.
    lowest = ranking[-1].score / 2
    spread = ranking[0].score / 2 - lowest
    return {page.page_id: (page.score / 2 - lowest) / spread if spread else 1.0 for page in ranking}


def _reciprocal(ranking: tuple[ScoredPage, ...]) -> dict[str, float]:
    return {page.page_id: 1 / (RANK_CONSTANT + rank) for rank, page in enumerate(ranking, start=1)}


_SHARES = {"weighted_sum": _min_max, "reciprocal_rank": _reciprocal}
