"""``rsgrpo search``: find the pages of an index that answer a question."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from rich.console import Console
from rich.table import Table
from rich.text import Text

from recipes.indexing.command_line import MakeEmbedder, explain_settings, read_call
from recipes.indexing.places import make_any_embedder, open_any_index
from recipes.indexing.searching import Question, SearchBy, search
from recipes.indexing.settings import embedder_settings, index_settings
from rsgrpo.errors import shown
from rsgrpo.failures.command import CommandParser, UsageError, run_command
from rsgrpo.io.ids import likely_names, well_formed

if TYPE_CHECKING:  # it takes long to import, which a slip in the call need not wait for
    from rsgrpo.retrieval.embedders.embedder import AnyEmbedder
    from rsgrpo.retrieval.index.page_index import FoundPage, PageFilter, PageIndex

_PIPE_COLUMNS = 160  # rich takes 80 where there is no terminal, too few for titles
_DEFAULT_RESULTS = 5
_MAX_RESULTS = 10_000
_SHOWN_NAME = 4096  # as long as a path may be
_EXAMPLES = """\
examples:
  uv run rsgrpo search manuals.index "How is the axis scaled logarithmically?"
  uv run rsgrpo search manuals.index "ERR_QUEUE_FULL 0x2f" --by text   # names and numbers; no model is loaded
  uv run rsgrpo search manuals.index "Who signed?" -k 10 --folder contracts --since 2026-01-01
"""


def command_parser() -> CommandParser:
    """Make the parser of what ``rsgrpo search`` takes beside settings."""
    parser = CommandParser(
        prog="rsgrpo search",
        description="The pages of an index that answer a question best.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("index", metavar="INDEX", type=Path, help="the index's folder")
    parser.add_argument("question", help="in one argument, so in quotes")
    parser.add_argument("-k", type=int, default=_DEFAULT_RESULTS, help=f"pages to show ({_DEFAULT_RESULTS})")
    parser.add_argument(
        "--by",
        choices=get_args(SearchBy),
        help="the pages' vectors, their text (BM25), or both, fused by the weight that rsgrpo tune-search found; "
        "default: hybrid where the index has such a weight, else vector",
    )
    parser.add_argument("--document", action="append", default=[], help="only pages of it; may stand more than once")
    parser.add_argument("--folder", action="append", default=[], help="only pages below it; likewise")
    parser.add_argument("--since", default="", metavar="DATE", help="only documents of this day or later: 2026-01-31")
    parser.add_argument("--until", default="", metavar="DATE", help="only documents of this day or earlier")
    parser.add_argument("--embedder", metavar="MODEL", default="", help="where the index's embedder lies now")
    explain_settings(parser)
    return parser


def main(arguments: Sequence[str] | None = None, make_embedder: MakeEmbedder | None = None) -> int:
    """Run ``rsgrpo search``.

    Args:
        arguments: the arguments behind the command's name; None: those of this process.
        make_embedder: the function that makes the embedder; None: the one that the settings describe is made.

    Returns:
        The exit status of the process.
    """
    return run_command(
        lambda: _search(arguments, make_embedder or make_any_embedder), way_on="nothing was changed; ask again"
    )


def _search(arguments: Sequence[str] | None, make_embedder: MakeEmbedder) -> None:
    from rsgrpo.retrieval.index.page_index import PageFilter, PageIndexError

    options, given = read_call(command_parser(), arguments)
    if not 1 <= options.k <= _MAX_RESULTS:
        raise UsageError(f"-k {options.k} asks for no number of pages; give one from 1 to {_MAX_RESULTS}")
    if given.documents:
        raise UsageError(
            f"documents.{next(iter(given.documents))} says how documents are rendered, and a search renders none; "
            "leave it out"
        )
    if not options.question.strip():
        raise UsageError("the question is empty; ask something")
    allowed = PageFilter(
        documents=tuple(options.document),
        folders=tuple(options.folder),
        first_date=options.since,
        last_date=options.until,
    )
    settings = index_settings(given)
    index = open_any_index(options.index, settings)
    if not len(index):
        raise PageIndexError(f"{index.name} holds no page; add documents with rsgrpo index")

    def embedder() -> AnyEmbedder:
        if index.embedder is None and not (options.embedder or given.embedder):
            raise UsageError(f"{index.name} does not say how to run its embedder; add --embedder MODEL")
        return make_embedder(embedder_settings(given, options.embedder, index.embedder))

    _check_named(index, allowed)
    question = Question(text=options.question, k=options.k, allowed=allowed)
    found = search(index, options.index, question, options.by, settings.language, embedder)
    for remark in found.remarks:
        print(f"{remark}", file=sys.stderr)
    if not found.pages:
        words = "" if found.by == "vector" else " and has a word of the question"
        told = _filter_told(allowed)
        raise PageIndexError(
            f"none of the {len(index)} pages of {index.name} "
            + (f"meets {told}{words}; widen it" if told else "has a word of the question; ask in other words")
        )
    Console(width=None if sys.stdout.isatty() else _PIPE_COLUMNS).print(_table(found.pages))


def _check_named(index: PageIndex, allowed: PageFilter) -> None:
    """Refuse documents and folders that the index does not have: of several names the others alone would be searched.

    Raises:
        UsageError: the index has no such document or folder; the message names the nearest.
    """
    from rsgrpo.retrieval.index.page_index import PageFilter

    for document in allowed.documents:
        if not index.pages(PageFilter(documents=(document,))):
            known = list(dict.fromkeys(page.document for page in index.pages()))
            raise UsageError(
                f"{index.name} has no document {shown(document, 120)!r}{likely_names(document, known)}; check the name"
            )
    for place in allowed.folders:
        if not index.pages(PageFilter(folders=(place,))):
            known = list(dict.fromkeys(page.folder for page in index.pages()))
            raise UsageError(
                f"{index.name} has no page in a folder {shown(place, 120)!r}{likely_names(place, known)}; "
                "check the name"
            )


def _filter_told(allowed: PageFilter) -> str:
    parts = {
        "--document": ", ".join(allowed.documents),
        "--folder": ", ".join(allowed.folders),
        "--since": allowed.first_date,
        "--until": allowed.last_date,
    }
    return shown(" and ".join(f"{name} {value}" for name, value in parts.items() if value), 200)


def _table(found: Sequence[FoundPage]) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in ("rank", "score"):
        table.add_column(name, justify="right")
    table.add_column("document", overflow="fold")
    table.add_column("page", justify="right")
    table.add_column("title", overflow="ellipsis", no_wrap=True)
    for hit in found:
        # A line break or an escape sequence in a name would reach the terminal.
        document, title = (
            Text(shown(well_formed(text)[0], _SHOWN_NAME)) for text in (hit.page.document, hit.page.title)
        )
        table.add_row(str(hit.rank), f"{hit.score:.4f}", document, str(hit.page.page_number), title)
    return table
