"""What stands on a relevant page of what a question needs: an optional column ``evidence`` of the judgements."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from rsgrpo.data.files import DataError
from rsgrpo.io.ids import plain_id
from rsgrpo.retrieval.measuring.relevance_files import part_rows


def read_gold_evidence(folder: Path, *, split: str = "train") -> Mapping[str, Mapping[str, str]]:
    """Read the gold evidence of a data set in VisRAG's layout.

    Args:
        folder: the folder of the data set, whose judgements :func:`read_judgements` has accepted.
        split: the split whose files are read where there are several.

    Returns:
        The texts, by query id and page id; of pages without one there is none.

    Raises:
        DataError: a text is none.

    Example:
        ``{"query-id": "q1", "corpus-id": "p7", "score": 1, "evidence": "total 17"}`` gives ``{"q1": {"p7": …}}``.
    """
    found: dict[str, dict[str, str]] = {}
    for _, place, row in part_rows(folder, "qrels", split):
        text = row.get("evidence")
        if text is None or text == "":
            continue
        query_id, page_id = (plain_id(row.get(key)) for key in ("query-id", "corpus-id"))
        if not isinstance(text, str) or query_id is None or page_id is None:
            raise DataError(f"qrels: {place}: evidence is {text!r:.60}, expected a text")
        found.setdefault(query_id, {})[page_id] = text
    return found
