"""Rankings of pages for queries, and the TREC files that hold them.

A file has a line for each page of each query, ``query Q0 page rank score tag``, parted by tabs as VisRAG writes it or
by blanks as ``trec_eval`` does; ``query page score`` is read too. The score counts, not the rank. Large runs come as
several files: one for each process that embedded queries, or one for each part of the corpus; merged, they are one run.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from rsgrpo.config.checks import one_of
from rsgrpo.errors import RsgrpoError, shown
from rsgrpo.io.atomic_files import read_bytes, replacing
from rsgrpo.io.ids import well_formed

Mode = Literal["official", "strict"]
"""``official``: as VisRAG's evaluation counts, so that numbers compare with published ones; ``strict``: nothing is left
out or chosen in silence."""


class RunError(RsgrpoError, ValueError):
    """A run, or a file of one, cannot be used; the message names the query or the line, and the way out."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoredPage:
    """A page that was found for a query.

    Attributes:
        page_id: the id of the page in its corpus.
        score: the score that the search gave the page, of any scale: the higher, the more relevant.
    """

    page_id: str
    score: float


Ranking = Sequence[ScoredPage]
"""The pages that were found for one query, best first unless a function says that it sorts."""

Run = Mapping[str, Ranking]
"""Rankings by query id. A query with an empty ranking counts as one that is not there: files cannot hold it."""


def ordered(ranking: Ranking) -> tuple[ScoredPage, ...]:
    """Sort a ranking by falling score; pages of equal score keep their order, as in VisRAG's writer and its MRR.

    Args:
        ranking: the pages in any order.

    Returns:
        The pages, best first.

    Example:
        Pages a, b, c with the scores 0.5, 0.9, 0.5 become b, a, c.
    """
    return tuple(sorted(ranking, key=lambda page: -page.score))


def check_ranking(ranking: Ranking, name: str) -> None:
    """Refuse a ranking that cannot be measured or fused.

    Args:
        ranking: the pages with their scores.
        name: the name that messages call the ranking by, such as ``query 'q7'``.

    Raises:
        RunError: a page stands twice, a score is no finite number, or an id is empty or holds a zero byte or half a
            character.
    """
    seen: set[str] = set()
    for page in ranking:
        if not math.isfinite(page.score):
            raise RunError(
                f"{name}: the score of page {shown(page.page_id, 80)!r} is {page.score}, expected a finite number; "
                "leave the page out, or look for NaN in the embeddings"
            )
        if page.page_id in seen:
            raise RunError(
                f"{name} has page {shown(page.page_id, 80)!r} twice; a ranking names a page once (several parts of a "
                "corpus: merge_runs)"
            )
        check_id(page.page_id, "page")
        seen.add(page.page_id)


def check_run(run: Run) -> None:
    """Refuse a run with a ranking that cannot be measured.

    Args:
        run: the rankings by query id.

    Raises:
        RunError: :func:`check_ranking` refuses the ranking of a query, or :func:`check_id` its id.
    """
    for query_id, ranking in run.items():
        check_id(query_id, "query")
        check_ranking(ranking, f"query {shown(query_id, 80)!r}")


def check_id(value: str, kind: str) -> None:
    """Refuse an id that trec_eval, which is C, would cut at a zero byte or crash at.

    Args:
        value: the id to check.
        kind: the kind of the id, for messages: ``query`` or ``page``.

    Raises:
        RunError: the id is empty, or holds a zero byte or half a character (a lone surrogate).
    """
    if not value or "\0" in value or well_formed(value)[0] != value:
        raise RunError(
            f"the {kind} id {shown(ascii(value), 80)} is no id: expected a text that is not empty and holds neither a "
            "zero byte nor half a character (a lone surrogate); write it anew"
        )


def merge_runs(
    runs: Iterable[Run], *, depth: int | None = None, mode: Mode = "strict"
) -> dict[str, tuple[ScoredPage, ...]]:
    """Merge several runs into one: runs of different queries, or of the same queries over parts of the corpus.

    Args:
        runs: the runs to merge; their order decides between pages of equal score.
        depth: the largest number of pages that a query keeps; None: all.
        mode: the rule for a page that two runs have for one query. ``official``: the first run's score counts, as in
            VisRAG. ``strict``: the page is refused, since parts of a corpus do not overlap.

    Returns:
        The rankings by query id, each by falling score; queries come in the order in which the runs first have them.

    Raises:
        RunError: there is no run, ``depth`` is below 1, a page is there twice in one run (in ``strict`` mode: in two),
            or a score is not finite.

    Example:
        ``{q: a 0.9, b 0.5}`` and ``{q: c 0.7, b 0.99}`` with ``depth=2`` and ``mode="official"`` give ``{q: a 0.9, c
        0.7}``.
    """
    one_of("mode", mode, get_args(Mode))
    if depth is not None and depth < 1:
        raise RunError(f"depth is {depth}, expected a whole number of at least 1, or None for all pages")
    merged: dict[str, dict[str, ScoredPage]] = {}
    num_runs = 0
    for run in runs:
        num_runs += 1
        check_run(run)
        for query_id, ranking in run.items():
            pages = merged.setdefault(query_id, {})
            twice = next((page for page in ranking if page.page_id in pages), None) if mode == "strict" else None
            if twice is not None:
                raise RunError(
                    f"query {shown(query_id, 80)!r} has page {shown(twice.page_id, 80)!r} in two of the runs; give "
                    "each file once and each page to one part of the corpus, or merge with mode='official', where the "
                    "first counts"
                )
            for page in ranking:
                pages.setdefault(page.page_id, page)
    if not num_runs:
        raise RunError("there is no run to merge; name at least one")
    return {query_id: ordered(tuple(pages.values()))[:depth] for query_id, pages in merged.items()}


def read_run(*files: Path, mode: Mode = "strict") -> dict[str, tuple[ScoredPage, ...]]:
    """Read a run from a file, or from the several files that it was written in.

    Args:
        files: the files, in UTF-8 with six or three fields in each line; empty lines do not count.
        mode: the rule of :func:`merge_runs` for a page that two files have for one query; within one file a query may
            never have a page twice.

    Returns:
        The rankings by query id, each by falling score; pages of equal score stay in the file's order.

    Raises:
        FileError: a file is missing, empty, or cannot be read.
        RunError: a line is not a line of a run, a query has a page twice, or no file is given; the message names file
            and line.
    """
    return merge_runs([_rankings(file) for file in files], mode=mode)


def write_run(file: Path, run: Run, *, tag: str = "rsgrpo") -> None:
    """Write a run as VisRAG and ``trec_eval`` read it, whole or not at all.

    Args:
        file: the file to write, which is replaced.
        run: the rankings by query id; they are sorted by score, and ranks count from 1. Scores are written so that they
            are read back as the same float64.
        tag: the last field of every line, such as the retriever's name.

    Raises:
        RunError: an id or the tag is empty or has blanks in it, a page stands twice, a score is not finite, or no query
            has a page.

    Example:
        ``q1⇥Q0⇥page_7⇥1⇥0.83⇥rsgrpo``
    """
    check_run(run)
    _check_word(tag, "the tag")
    lines = []
    for query_id, ranking in run.items():
        _check_word(query_id, "the query id")
        for rank, page in enumerate(ordered(ranking), start=1):
            _check_word(page.page_id, "the page id")
            lines.append(f"{query_id}\tQ0\t{page.page_id}\t{rank}\t{float(page.score)!r}\t{tag}\n")
    if not lines:
        raise RunError(f"the run for {shown(file)} holds no page for any query; search again before writing it")
    with replacing(file) as opened:
        opened.write("".join(lines).encode())


def _rankings(file: Path) -> dict[str, list[ScoredPage]]:
    rankings: dict[str, list[ScoredPage]] = {}
    lines_of: dict[tuple[str, str], int] = {}
    for number, line in enumerate(read_bytes(file).split(b"\n"), start=1):
        if not line.strip():
            continue
        where = f"{shown(file)}, line {number}"
        query_id, page_id, score = _fields(line, where)
        first = lines_of.setdefault((query_id, page_id), number)
        if first != number:
            raise RunError(
                f"{where}: query {shown(query_id, 60)!r} has page {shown(page_id, 60)!r} in line {first} already; "
                "leave one of them out"
            )
        rankings.setdefault(query_id, []).append(ScoredPage(page_id=page_id, score=score))
    return rankings


def _fields(line: bytes, where: str) -> tuple[str, str, float]:
    """Read query, page and score off a line."""
    try:
        text = line.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RunError(f"{where}: byte 0x{line[error.start]:02x} is not UTF-8; convert the file with iconv") from error
    parts = [part.strip() for part in text.split("\t")] if "\t" in text.strip() else text.split()
    if len(parts) not in (3, 6):
        raise RunError(
            f"{where}: {len(parts)} fields, expected 6 (query, Q0, page, rank, score, tag) or 3 (query, page, score), "
            "parted by tabs; blanks within an id? write them as underscores, in the corpus too"
        )
    query_id, page_id, score = (parts[0], parts[2], parts[4]) if len(parts) == 6 else parts
    for name, word in (("the query id", query_id), ("the page id", page_id)):
        _check_word(word, f"{where}: {name}")
    try:
        value = float(score)
    except ValueError as error:
        raise RunError(f"{where}: the score is {shown(score, 60)!r}, expected a number") from error
    if not math.isfinite(value):
        raise RunError(f"{where}: the score is {shown(score, 60)}, expected a finite number; leave the line out")
    return query_id, page_id, value


def _check_word(word: str, name: str) -> None:
    if word.split() != [word]:
        raise RunError(
            f"{name} is {shown(word, 80)!r}, expected one word: blanks part the fields of a run file; write them as "
            "underscores, in the corpus, the queries and the judgements too"
        )
