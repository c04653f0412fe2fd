"""The data sets over tickets: questions for an answering policy, pairs and a test corpus for a page retriever.

Both speak of the same pages. The 2,016 pairs of marks are dealt out once: those of the test corpus, and all others for
training. Supervised training, reinforcement learning and the test have handwriting of their own. The held-out
questions of the policy show pages of the retriever's test corpus, and are asked in the words of its queries.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rsgrpo.config import QuickstartConfig
from rsgrpo.data.synthetic.gold_responses import has_answer
from rsgrpo.data.synthetic.scans import NUMBERS, split_scans
from rsgrpo.data.synthetic.tickets import (
    PHRASINGS,
    Ticket,
    TicketPool,
    TicketQuestion,
    draw_ticket,
    make_ticket,
    make_ticket_question,
    mark_pairs,
    ticket_pool,
    ticket_query,
)
from rsgrpo.io.atomic_files import new_folder

RETRIEVER_SOURCE = "quickstart"
"""The name of the source in the rows of training pairs."""

_SFT, _RL, _TEST = range(3)
_SPLIT_FILE = "train-00000-of-00001.parquet"  # VisRAG's only split is called train
# Supervised training sees a pair of marks with several digits, so that marks do not tell the digit; where a retriever
# learns, as in its test, one page answers a question.
_TICKETS_A_PAIR = (4, 1, 1)
_DRAWN = {"tickets": 10, "questions": 20, "pairs": 30, "queries": 40}  # what is drawn from a generator of its own


@dataclass(frozen=True, kw_only=True, slots=True)
class RetrieverPaths:
    """Where the data sets of the retriever lie.

    Attributes:
        train_path: a JSONL file of training pairs with ``query``, ``image`` (relative to the file's folder) and
            ``source``.
        test_path: a folder in VisRAG's layout (corpus, queries with answers, qrels with what stands on the page), which
            :func:`rsgrpo.retrieval.measuring.relevance_files.read_retrieval_set` reads.
    """

    train_path: str
    test_path: str


def make_pools(config: QuickstartConfig, seed: int) -> tuple[TicketPool, TicketPool, TicketPool]:
    """Draw the tickets of supervised training, reinforcement learning and the test.

    Args:
        config: how many pages the test has, and how many scans each split gets.
        seed: the seed that everything is drawn from.

    Returns:
        Three pools. No scan is in two of them; no pair of marks of the test is in the other two. For each of its
        pairs supervised training has four tickets, the others one.
    """
    pairs = mark_pairs(seed)
    sizes = (config.sft_scans_per_digit, config.rl_scans_per_digit, config.test_scans_per_digit)
    pools = []
    for split, scans in enumerate(split_scans(sizes, seed)):
        rng = np.random.default_rng((seed, _DRAWN["tickets"] + split))
        of_split = range(config.num_test_pages) if split == _TEST else range(config.num_test_pages, len(pairs))
        chosen = [pair for pair in of_split for _ in range(_TICKETS_A_PAIR[split])]
        pools.append(ticket_pool(make_ticket(pair, pairs, scans, rng) for pair in chosen))
    return pools[_SFT], pools[_RL], pools[_TEST]


def make_ticket_questions(config: QuickstartConfig, seed: int) -> tuple[tuple[TicketQuestion, ...], ...]:
    """Draw all questions: supervised, reinforcement, test.

    Args:
        config: how many questions there are of each kind, and the share without an answer.
        seed: the seed that everything is drawn from.

    Returns:
        Three tuples of questions; in each the share of unanswerable questions is exact up to rounding.
    """
    sizes = (config.num_sft_samples, config.num_rl_samples, config.num_test_samples)
    splits = []
    for split, (size, pool) in enumerate(zip(sizes, make_pools(config, seed), strict=True)):
        rng = np.random.default_rng((seed, _DRAWN["questions"] + split))
        questions = [
            make_ticket_question(pool, is_sufficient=has_answer(index, config.unanswerable_frac), rng=rng)
            for index in range(size)
        ]
        splits.append(tuple(questions[index] for index in rng.permutation(size)))
    return tuple(splits)


def build_retriever_data(config: QuickstartConfig, folder: Path, seed: int) -> RetrieverPaths:
    """Write training pairs and a test corpus; the folder appears all at once, and a complete one is left as it is.

    Args:
        config: how many pairs and pages there are, and the size of a page.
        folder: the folder to write.
        seed: the seed that everything is drawn from.

    Returns:
        The paths of the two data sets.
    """
    paths = RetrieverPaths(train_path=str(folder / "train.jsonl"), test_path=str(folder / "test"))
    if folder.exists():
        return paths
    _, training, test = make_pools(config, seed)
    with new_folder(folder) as partial:
        _write_pairs(partial, training, config, seed)
        _write_test(partial / "test", test.tickets, config, seed)
    return paths


def _write_pairs(folder: Path, pool: TicketPool, config: QuickstartConfig, seed: int) -> None:
    rng = np.random.default_rng((seed, _DRAWN["pairs"]))
    (folder / "imgs").mkdir()
    lines = []
    order: list[int] = []
    for _ in range(config.num_retriever_samples):
        order = order or [int(index) for index in rng.permutation(len(pool.tickets))]
        ticket = pool.tickets[order.pop()]
        image = f"imgs/{ticket.page_id}.png"
        if not (folder / image).exists():
            draw_ticket(ticket, config.image_pixels).save(folder / image)
        query = ticket_query(ticket.marks, int(rng.integers(len(PHRASINGS))))
        lines.append(json.dumps({"query": query, "image": image, "source": RETRIEVER_SOURCE}) + "\n")
    (folder / "train.jsonl").write_text("".join(lines), encoding="utf-8")


def _write_test(folder: Path, tickets: Sequence[Ticket], config: QuickstartConfig, seed: int) -> None:
    rng = np.random.default_rng((seed, _DRAWN["queries"]))
    corpus, queries, qrels = [], [], []
    for number, ticket in enumerate(tickets):
        buffer = io.BytesIO()
        draw_ticket(ticket, config.image_pixels).save(buffer, "PNG")
        query = ticket_query(ticket.marks, int(rng.integers(len(PHRASINGS))))
        query_id = f"query-{number:04d}"
        path = f"{ticket.page_id}.png"
        corpus.append({"corpus-id": ticket.page_id, "image": {"bytes": buffer.getvalue(), "path": path}})
        queries.append({"query-id": query_id, "query": query, "answer": NUMBERS[ticket.digit]})
        judgement = {"query-id": query_id, "corpus-id": ticket.page_id, "score": 1}
        qrels.append({**judgement, "evidence": ticket.transcript})  # by which reading is told from reasoning
    for part, rows in (("corpus", corpus), ("queries", queries), ("qrels", qrels)):
        _write_rows(folder / part / _SPLIT_FILE, rows)


def _write_rows(file: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    file.parent.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(list(rows)), file)
