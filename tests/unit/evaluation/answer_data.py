"""Small sets of questions with answers over a corpus of coloured pages, in VisRAG's layout."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rsgrpo.retrieval.measuring.trec_runs import ScoredPage, write_run
from tests.unit.evaluation.retrieval_data import COLOURS, png

SIZES: Mapping[str, tuple[int, int]] = {"red": (56, 28), "blue": (28, 56)}
"""Width and height of pages that are not 56 × 56."""


def write_part(folder: Path, part: str, rows: Sequence[Mapping[str, Any]]) -> None:
    (folder / part).mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(list(rows)), folder / part / "train-00000-of-00001.parquet")


def write_answer_set(
    folder: Path,
    queries: Sequence[Mapping[str, Any]],
    relevant: Sequence[Mapping[str, Any]],
    texts: Mapping[str, str] | None = None,
) -> Path:
    """Write a set whose pages are those of ``COLOURS``, each with its text where texts are given."""
    pages = [
        {
            "corpus-id": page_id,
            "image": {"bytes": png(colour, SIZES.get(page_id, (56, 56))), "path": f"{page_id}.png"},
            **({"text": texts.get(page_id, "")} if texts is not None else {}),
        }
        for page_id, colour in COLOURS.items()
    ]
    write_part(folder, "corpus", pages)
    write_part(folder, "queries", queries)
    write_part(folder, "qrels", relevant)
    return folder


def judged(*pairs: tuple[str, str], **evidence: str) -> list[dict[str, Any]]:
    """Judgements of relevant pages; ``evidence`` gives what stands on a page, by the page's id."""
    return [
        {
            "query-id": query_id,
            "corpus-id": page_id,
            "score": 1,
            **({"evidence": evidence.get(page_id, "")} if evidence else {}),
        }
        for query_id, page_id in pairs
    ]


def write_trec(file: Path, rankings: Mapping[str, Sequence[tuple[str, float]]]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    write_run(
        file,
        {
            query_id: [ScoredPage(page_id=page_id, score=score) for page_id, score in ranking]
            for query_id, ranking in rankings.items()
        },
    )
    return file
