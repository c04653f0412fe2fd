"""Small training data for page retrievers: noise pages, and JSON lines that speak of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.tiny_model import write_images


def write_rows(file: Path, rows: Sequence[Mapping[str, Any] | str]) -> Path:
    """Write rows as JSON lines; a text stands as it is."""
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = (row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows)
    file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return file


def write_pages(folder: Path, count: int) -> None:
    """Write pages of 56 × 56 pixels as ``imgs/0.png`` and so on, no two alike."""
    write_images(folder / "imgs", [(56, 56)] * count)


def write_pairs_file(folder: Path, count: int, *, sources: Sequence[str] = ("",), negatives: int = 0) -> Path:
    """Write as many pages as pairs; a pair's negatives are the pages behind its own."""
    write_pages(folder, count)
    rows = [
        {
            "query": f"page number {number}?",
            "image": f"imgs/{number}.png",
            "source": sources[number % len(sources)],
            "negatives": [f"imgs/{(number + step) % count}.png" for step in range(1, negatives + 1)],
        }
        for number in range(count)
    ]
    return write_rows(folder / "pairs.jsonl", rows)


def write_test_set(folder: Path, numbers: Sequence[int]) -> Path:
    """Write a test set in VisRAG's layout over pages of :func:`write_pages` that lie in the folder above."""
    write_rows(folder / "corpus.jsonl", [{"corpus-id": f"p{n}", "image": f"../imgs/{n}.png"} for n in numbers])
    write_rows(folder / "queries.jsonl", [{"query-id": f"q{n}", "query": f"page number {n}?"} for n in numbers])
    write_rows(folder / "qrels.jsonl", [{"query-id": f"q{n}", "corpus-id": f"p{n}", "score": 1} for n in numbers])
    return folder
