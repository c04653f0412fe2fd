"""Short ways to write rankings and judgements, and drawn ones for property tests."""

from __future__ import annotations

from collections.abc import Iterable

from hypothesis import strategies as st

from rsgrpo.retrieval.measuring.trec_runs import ScoredPage

IDS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=4).filter(
    lambda text: text.split() == [text]
)
"""Ids that a run file can hold."""

SCORES = st.floats(allow_nan=False, allow_infinity=False) | st.sampled_from((0.0, -0.0, 0.5, 1.0))
"""Scores that tie more often than drawn floats alone would."""


def pages(*scored: tuple[str, float]) -> tuple[ScoredPage, ...]:
    """Make a ranking from page ids and scores."""
    return tuple(ScoredPage(page_id=page_id, score=score) for page_id, score in scored)


def ids(ranking: Iterable[ScoredPage]) -> list[str]:
    """List the page ids of a ranking."""
    return [page.page_id for page in ranking]


@st.composite
def rankings(draw: st.DrawFn, page_ids: st.SearchStrategy[str] = IDS, min_size: int = 0) -> tuple[ScoredPage, ...]:
    """Draw a ranking, not sorted."""
    found = draw(st.dictionaries(page_ids, SCORES, min_size=min_size, max_size=8))
    return pages(*found.items())
