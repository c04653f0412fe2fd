"""``rsgrpo tune-search``: find how much the text of pages should count beside their vectors."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from recipes.indexing.command_line import MakeEmbedder, explain_settings, read_call
from recipes.indexing.places import make_any_embedder, open_any_index
from recipes.indexing.settings import embedder_settings, index_settings
from recipes.indexing.texts import open_texts, texts_told
from rsgrpo.failures.command import CommandParser, UsageError, run_command

if TYPE_CHECKING:  # they take long to import, which a slip in the call need not wait for
    from rsgrpo.retrieval.embedders.embedder import AnyEmbedder
    from rsgrpo.retrieval.index.page_index import PageIndex
    from rsgrpo.retrieval.measuring.relevance_files import JudgedQueries
    from rsgrpo.retrieval.text.hybrid import FoundBoth, TunedSearch
    from rsgrpo.retrieval.text.text_search import TextSearch

_DEV_FRAC = 0.3
_SEARCHES = {"text": "text (BM25)", "vectors": "vectors", "hybrid": "both, by the weight"}
_METHODS = ("weighted_sum", "reciprocal_rank")
_EXAMPLES = """\
examples:
  uv run rsgrpo tune-search manuals.index --queries judged
  uv run rsgrpo tune-search manuals.index --queries judged --dev-frac 0.5 index.language=german

SET is a folder with queries.jsonl and qrels.jsonl, whose corpus-id is a page of the index:
  {"query-id": "q1", "query": "How is the axis scaled?"}
  {"query-id": "q1", "corpus-id": "plot.pdf#12", "score": 1}
"""


def command_parser() -> CommandParser:
    """Make the parser of what ``rsgrpo tune-search`` takes beside settings."""
    parser = CommandParser(
        prog="rsgrpo tune-search",
        description="Find how much the text of pages should count beside their vectors: on one part of judged "
        "questions, measured on the other. Later searches of the index use it.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("index", metavar="INDEX", type=Path, help="the index's folder")
    parser.add_argument(
        "--queries", metavar="SET", required=True, type=Path, help="folder of judged questions, in VisRAG's layout"
    )
    parser.add_argument("--split", default="train", help="split of SET to read, where it has several (train)")
    parser.add_argument(
        "--dev-frac", type=float, default=_DEV_FRAC, help=f"share of the questions to tune on ({_DEV_FRAC})"
    )
    parser.add_argument("--seed", type=int, default=0, help="decides which questions are tuned on (0)")
    parser.add_argument("--method", choices=_METHODS, default=_METHODS[0], help=f"rule of fusion ({_METHODS[0]})")
    parser.add_argument("--embedder", metavar="MODEL", default="", help="where the index's embedder lies now")
    explain_settings(parser)
    return parser


def main(arguments: Sequence[str] | None = None, make_embedder: MakeEmbedder | None = None) -> int:
    """Run ``rsgrpo tune-search``.

    Args:
        arguments: the arguments behind the command's name; None: those of this process.
        make_embedder: the function that makes the embedder; None: an embedder of sentence-transformers is made.

    Returns:
        The exit status of the process.
    """
    return run_command(
        lambda: _tune(arguments, make_embedder or make_any_embedder), way_on="the index is as it was; tune again"
    )


def _tune(arguments: Sequence[str] | None, make_embedder: MakeEmbedder) -> None:
    from rsgrpo.retrieval.index.page_index import PageIndexError
    from rsgrpo.retrieval.measuring.relevance_files import read_judged_queries
    from rsgrpo.retrieval.text.hybrid import tune_search, write_tuned

    options, given = read_call(command_parser(), arguments)
    if given.documents:
        raise UsageError(
            f"documents.{next(iter(given.documents))} has no place here: nothing is rendered; leave it out"
        )
    if not 0 < options.dev_frac < 1:
        raise UsageError(f"--dev-frac {options.dev_frac:g} leaves a part empty; give a number between 0 and 1")
    settings = index_settings(given)
    judged = read_judged_queries(options.queries, split=options.split)
    index = open_any_index(options.index, settings)
    if not len(index):
        raise PageIndexError(f"{index.name} holds no page; add documents with rsgrpo index")
    judged.check_pages((page.page_id for page in index.pages()), index.name)
    if index.embedder is None and not (options.embedder or given.embedder):
        raise UsageError(f"{index.name} does not say how to run its embedder; add --embedder MODEL")
    text = open_texts(index, options.index, settings.language)
    if told := texts_told(text):
        print(told, file=sys.stderr)
    embedder = make_embedder(embedder_settings(given, options.embedder, index.embedder))
    tuned = tune_search(
        _found(index, text, embedder, judged),
        judged.relevant,
        text,
        index.identity,
        queries=str(options.queries),
        dev_frac=options.dev_frac,
        seed=options.seed,
        method=options.method,
    )
    write_tuned(options.index, tuned)
    _print(tuned, index.name)


def _found(index: PageIndex, text: TextSearch, embedder: AnyEmbedder, judged: JudgedQueries) -> FoundBoth:
    """Ask both searches for the pages of every question."""
    from rsgrpo.retrieval.index.page_index import FoundPage
    from rsgrpo.retrieval.measuring.measured_search import search_queries
    from rsgrpo.retrieval.text.hybrid import DEPTH, FoundBoth

    pages = {page.page_id: page for page in index.pages()}
    by_vectors = search_queries(index, embedder, judged.queries, depth=DEPTH).run
    return FoundBoth(
        text={query.query_id: text.search(query.text, DEPTH) for query in judged.queries},
        vectors={
            query_id: [
                FoundPage(page=pages[hit.page_id], score=hit.score, rank=rank) for rank, hit in enumerate(ranking, 1)
            ]
            for query_id, ranking in by_vectors.items()
        },
    )


def _print(tuned: TunedSearch, name: str) -> None:
    console = Console(soft_wrap=not sys.stdout.isatty())
    table = Table(box=None, pad_edge=False)
    table.add_column(f"{tuned.num_test_queries:,} other questions")
    for measure in next(iter(tuned.measures.values())):
        table.add_column(measure, justify="right")
    for search, values in tuned.measures.items():
        table.add_row(_SEARCHES[search], *(f"{value:.3f}" for value in values.values()))
    console.print(table)
    if tuned.weight in (0, 1):
        alone = "the text" if tuned.weight else "the vectors"
        console.print(f"no mixture found more than {alone} alone, beyond chance", markup=False, highlight=False)
    console.print(
        f"{name}: the text counts {tuned.weight:g}, the vectors {1 - tuned.weight:g}, tuned on "
        f"{tuned.num_dev_queries:,} questions; rsgrpo search uses it from now on",
        markup=False,
        highlight=False,
    )
