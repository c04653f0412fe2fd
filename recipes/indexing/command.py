"""The commands ``rsgrpo index`` (bring documents into an index) and ``rsgrpo search`` (find a question's pages)."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from recipes.indexing.places import create_any_index, is_there, open_any_index
from recipes.indexing.settings import (
    GivenSettings,
    embedder_settings,
    index_settings,
    render_settings,
    split_settings,
)
from recipes.indexing.updating import IndexReport, PageSource, update_index
from rsgrpo.config.documents import RenderSettings
from rsgrpo.config.embedder import EmbedderConfig
from rsgrpo.errors import shown
from rsgrpo.failures.command import CommandParser, UsageError, run_command
from rsgrpo.io.ids import well_formed
from rsgrpo.run.progress import readable_seconds

if TYPE_CHECKING:  # they take long to import, which a slip in the call need not wait for
    from rsgrpo.retrieval.embedder import Embedder
    from rsgrpo.retrieval.page_index import FoundPage, PageFilter

MakeEmbedder = Callable[[EmbedderConfig], "Embedder"]
"""Makes an embedder from its settings; tests make one that needs no model."""

MakeSource = Callable[["Changes", Path, RenderSettings], PageSource]
"""Makes the changes in the store of pages in a folder, and gives the store."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Changes:
    """What shall change in a store of pages.

    Attributes:
        add: files, and folders of files, to add.
        remove: names of documents to take out.
    """

    add: tuple[Path, ...] = ()
    remove: tuple[str, ...] = ()


PAGES_FOLDER = "pages"
"""Name of the folder with the pages' images, in the index's folder."""

_PIPE_COLUMNS = 160  # rich takes 80 where there is no terminal, too few for titles
_DEFAULT_RESULTS = 5
_MAX_RESULTS = 10_000
_INDEX_EXAMPLES = """\
examples:
  uv run rsgrpo index manuals --out manuals.index --embedder Qwen/Qwen3-VL-Embedding-2B
  uv run rsgrpo index manuals new.pdf --out manuals.index             # again: only what is new or has changed
  uv run rsgrpo index manuals --out manuals.index --embedder runs/embedder embedder.preset=visrag
  uv run rsgrpo index manuals --out manuals.index documents.on_bad_document=skip
  uv run rsgrpo index --out manuals.index --remove old.pdf
"""
_SEARCH_EXAMPLES = """\
examples:
  uv run rsgrpo search manuals.index "How is the axis scaled logarithmically?"
  uv run rsgrpo search manuals.index "Who signed?" -k 10 --folder contracts --since 2026-01-01
"""


def index_parser() -> CommandParser:
    """Make the parser of what ``rsgrpo index`` takes beside settings."""
    parser = CommandParser(
        prog="rsgrpo index",
        description="Render documents to pages, embed the pages, and keep their vectors in an index.",
        epilog=_INDEX_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("documents", metavar="FILE", nargs="*", type=Path, help="documents, and folders of documents")
    parser.add_argument("--out", metavar="INDEX", required=True, type=Path, help="the index's folder")
    parser.add_argument("--embedder", metavar="MODEL", default="", help="a folder or a name on the hub")
    parser.add_argument(
        "--remove",
        metavar="DOCUMENT",
        action="append",
        default=[],
        help="take a document out of the index; may stand more than once",
    )
    _explain_settings(parser)
    return parser


def search_parser() -> CommandParser:
    """Make the parser of what ``rsgrpo search`` takes beside settings."""
    parser = CommandParser(
        prog="rsgrpo search",
        description="The pages of an index that answer a question best.",
        epilog=_SEARCH_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("index", metavar="INDEX", type=Path, help="the index's folder")
    parser.add_argument("question", help="in one argument, so in quotes")
    parser.add_argument("-k", type=int, default=_DEFAULT_RESULTS, help=f"pages to show ({_DEFAULT_RESULTS})")
    parser.add_argument("--document", action="append", default=[], help="only pages of it; may stand more than once")
    parser.add_argument("--folder", action="append", default=[], help="only pages below it; likewise")
    parser.add_argument("--since", default="", metavar="DATE", help="only documents of this day or later: 2026-01-31")
    parser.add_argument("--until", default="", metavar="DATE", help="only documents of this day or earlier")
    parser.add_argument("--embedder", metavar="MODEL", default="", help="where the index's embedder lies now")
    _explain_settings(parser)
    return parser


def _explain_settings(parser: CommandParser) -> None:
    parser.add_argument_group(
        "settings",
        "embedder.NAME=VALUE, index.NAME=VALUE and documents.NAME=VALUE; docs/settings.md lists them, such as "
        "index.num_probes=8",
    )


def index_documents(
    arguments: Sequence[str] | None = None,
    make_source: MakeSource | None = None,
    make_embedder: MakeEmbedder | None = None,
) -> int:
    """Run ``rsgrpo index``.

    Args:
        arguments: the arguments behind the command's name; None: those of this process.
        make_source: the function that renders documents into the store of pages; None: ``rsgrpo.documents`` does.
        make_embedder: the function that makes the embedder; None: an embedder of sentence-transformers is made.

    Returns:
        The exit status of the process.
    """
    return run_command(lambda: _index(arguments, make_source or _page_store, make_embedder or _sentence_embedder))


def search_index(arguments: Sequence[str] | None = None, make_embedder: MakeEmbedder | None = None) -> int:
    """Run ``rsgrpo search``.

    Args:
        arguments: the arguments behind the command's name; None: those of this process.
        make_embedder: the function that makes the embedder; None: an embedder of sentence-transformers is made.

    Returns:
        The exit status of the process.
    """
    return run_command(lambda: _search(arguments, make_embedder or _sentence_embedder))


def _index(arguments: Sequence[str] | None, make_source: MakeSource, make_embedder: MakeEmbedder) -> None:
    options, given = _read(index_parser(), arguments)
    changes = Changes(add=tuple(options.documents), remove=tuple(options.remove))
    if changes == Changes():
        raise UsageError("nothing to do; name documents or folders to add, or --remove DOCUMENT")
    settings = index_settings(given)
    has_index = is_there(options.out, settings)
    saved = open_any_index(options.out, settings).embedder if has_index else None
    config = embedder_settings(given, options.embedder, saved)
    rendering = render_settings(given, config)
    embedder = make_embedder(config)
    with closing(
        open_any_index(options.out, settings, is_writable=True)
        if has_index
        else create_any_index(options.out, settings, embedder.identity, embedder.settings)
    ) as index:
        index.identity.check(embedder.identity, index.name)  # before hours of rendering
        source = make_source(changes, options.out / PAGES_FOLDER, rendering)
        report = update_index(index, embedder, source, dates=source.dates())
        print(_told(report, len(index), index.name))


def _search(arguments: Sequence[str] | None, make_embedder: MakeEmbedder) -> None:
    from rsgrpo.retrieval.page_index import PageFilter, PageIndexError, find_pages

    options, given = _read(search_parser(), arguments)
    if not 1 <= options.k <= _MAX_RESULTS:
        raise UsageError(f"-k {options.k} asks for no number of pages; give one from 1 to {_MAX_RESULTS}")
    allowed = PageFilter(
        documents=tuple(options.document),
        folders=tuple(options.folder),
        first_date=options.since,
        last_date=options.until,
    )
    index = open_any_index(options.index, index_settings(given))
    if not len(index):
        raise PageIndexError(f"{index.name} holds no page; add documents with rsgrpo index")
    if index.embedder is None and not (options.embedder or given.embedder):
        raise UsageError(f"{index.name} does not say how to run its embedder; add --embedder MODEL")
    embedder = make_embedder(embedder_settings(given, options.embedder, index.embedder))
    (found,) = find_pages(index, embedder, [options.question], options.k, allowed)
    if not found:
        raise PageIndexError(f"none of the {len(index)} pages of {index.name} meets {_filter_told(allowed)}; widen it")
    Console(width=None if sys.stdout.isatty() else _PIPE_COLUMNS).print(_table(found))


def _read(parser: CommandParser, arguments: Sequence[str] | None) -> tuple[argparse.Namespace, GivenSettings]:
    rest, given = split_settings(sys.argv[1:] if arguments is None else arguments)
    return parser.parse_args(rest), given


def _page_store(changes: Changes, folder: Path, rendering: RenderSettings) -> PageSource:
    from recipes.indexing.pages import add_documents
    from rsgrpo.documents.page_store import PageStore

    if changes.remove:
        PageStore.open(folder).remove(*changes.remove)
    if changes.add:
        add_documents(changes.add, folder, rendering, Console(soft_wrap=not sys.stdout.isatty()))
    return PageStore.open(folder)


def _sentence_embedder(config: EmbedderConfig) -> Embedder:
    from rsgrpo.retrieval.sentence_embedder import SentenceEmbedder

    return SentenceEmbedder(config)


def _told(report: IndexReport, num_pages: int, name: str) -> str:
    blank = f", {report.num_blank} blank ones left out" if report.num_blank else ""
    return (
        f"{name}: {num_pages} pages; {report.num_embedded} embedded, {report.num_unchanged} unchanged, "
        f"{report.num_removed} removed{blank}, in {readable_seconds(report.seconds)}"
    )


def _filter_told(allowed: PageFilter) -> str:
    parts = {
        "--document": ", ".join(allowed.documents),
        "--folder": ", ".join(allowed.folders),
        "--since": allowed.first_date,
        "--until": allowed.last_date,
    }
    return shown(" and ".join(f"{name} {value}" for name, value in parts.items() if value) or "the question", 200)


def _table(found: Sequence[FoundPage]) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in ("rank", "score"):
        table.add_column(name, justify="right")
    table.add_column("document", overflow="fold")
    table.add_column("page", justify="right")
    table.add_column("title", overflow="ellipsis", no_wrap=True)
    for hit in found:
        document, title = (Text(well_formed(text)[0]) for text in (hit.page.document, hit.page.title))
        table.add_row(str(hit.rank), f"{hit.score:.4f}", document, str(hit.page.page_number), title)
    return table
