"""``rsgrpo index``: bring documents into an index."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from recipes.indexing.command_line import MakeEmbedder, explain_settings, read_call
from recipes.indexing.embedding_lines import embedding_lines
from recipes.indexing.places import (
    PAGES_FOLDER,
    create_any_index,
    is_there,
    make_any_embedder,
    open_any_index,
    saved_embedder,
)
from recipes.indexing.settings import embedder_settings, index_settings, render_settings
from recipes.indexing.updating import IndexReport, PageSource, update_index
from rsgrpo.config.documents import RenderSettings
from rsgrpo.errors import shown
from rsgrpo.failures.command import CommandParser, UsageError, run_command
from rsgrpo.run.progress import readable_seconds

if TYPE_CHECKING:
    from rsgrpo.retrieval.index.page_index import PageIndex

MakeSource = Callable[["Changes", Path, RenderSettings], PageSource]
"""Makes the changes in the store of pages in a folder, and gives the store."""

_EXAMPLES = """\
examples:
  uv run rsgrpo index manuals --out manuals.index --embedder Qwen/Qwen3-VL-Embedding-2B
  uv run rsgrpo index manuals new.pdf --out manuals.index             # again: only what is new or has changed
  uv run rsgrpo index manuals --out manuals.index --embedder runs/embedder embedder.preset=visrag
  uv run rsgrpo index scans --out scans.index documents.ocr=rapidocr documents.on_bad_document=skip
  uv run rsgrpo index --out manuals.index --remove old.pdf
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Changes:
    """What shall change in a store of pages.

    Attributes:
        add: files, and folders of files, to add.
        remove: names of documents to take out.
    """

    add: tuple[Path, ...] = ()
    remove: tuple[str, ...] = ()


def command_parser() -> CommandParser:
    """Make the parser of what ``rsgrpo index`` takes beside settings."""
    parser = CommandParser(
        prog="rsgrpo index",
        description="Render documents to pages, embed the pages, and keep their vectors in an index.",
        epilog=_EXAMPLES,
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
    explain_settings(parser)
    return parser


def main(
    arguments: Sequence[str] | None = None,
    make_source: MakeSource | None = None,
    make_embedder: MakeEmbedder | None = None,
) -> int:
    """Run ``rsgrpo index``.

    Args:
        arguments: the arguments behind the command's name; None: those of this process.
        make_source: the function that renders documents into the store of pages; None: ``rsgrpo.documents`` does.
        make_embedder: the function that makes the embedder; None: the one that the settings describe is made.

    Returns:
        The exit status of the process.
    """
    return run_command(
        lambda: _index(arguments, make_source, make_embedder or make_any_embedder),
        way_on="what is done stays, and the same command goes on",
    )


def _index(arguments: Sequence[str] | None, make_source: MakeSource | None, make_embedder: MakeEmbedder) -> None:
    from rsgrpo.documents.ocr import check_ocr

    options, given = read_call(command_parser(), arguments)
    changes = Changes(add=tuple(options.documents), remove=tuple(options.remove))
    if changes == Changes():
        raise UsageError("nothing to do; name documents or folders to add, or --remove DOCUMENT")
    settings = index_settings(given)
    has_index = is_there(options.out, settings)
    if not (has_index or changes.add):
        raise UsageError(f"there is no index {shown(options.out)} to take documents out of; check the path")
    if make_source is None:
        _check_changes(changes, options.out / PAGES_FOLDER)  # before a model is loaded
    saved = saved_embedder(options.out, settings) if has_index else None
    config = embedder_settings(given, options.embedder, saved)
    rendering = render_settings(given, config)
    check_ocr(rendering.ocr)
    embedder = make_embedder(config)
    with closing(
        open_any_index(options.out, settings, is_writable=True)
        if has_index
        else create_any_index(options.out, settings, embedder.identity, embedder.settings)
    ) as index:
        index.identity.check(embedder.identity, index.name)  # before hours of rendering
        if make_source is None and len(index):
            _check_store(options.out / PAGES_FOLDER, index)
        source = (make_source or _page_store)(changes, options.out / PAGES_FOLDER, rendering)
        report = update_index(index, embedder, source, dates=source.dates(), on_progress=embedding_lines())
        print(_told(report, len(index), index.name))


def _page_store(changes: Changes, folder: Path, rendering: RenderSettings) -> PageSource:
    from recipes.indexing.pages import add_documents
    from rsgrpo.documents.page_store import PageStore

    if changes.remove:
        PageStore.open(folder).remove(*changes.remove)
    if changes.add:
        add_documents(changes.add, folder, rendering, Console(soft_wrap=not sys.stdout.isatty()))
    return PageStore.open(folder)


def _check_changes(changes: Changes, folder: Path) -> None:
    """Refuse paths that do not exist, and documents to take out that are not in the store.

    Raises:
        RsgrpoError: a path does not exist, or the store has no document of a name.
    """
    from rsgrpo.documents.page_store import PageStore
    from rsgrpo.documents.sources import find_documents

    if changes.add:
        find_documents(changes.add)
    if changes.remove:
        PageStore.open(folder).check_documents(changes.remove)


def _check_store(folder: Path, index: PageIndex) -> None:
    """Refuse to begin a new store of pages for an index that has pages: all that it lacks would be taken out.

    Raises:
        PageIndexError: there is no store of pages.
    """
    from rsgrpo.documents.stored_images import STORE_FILE
    from rsgrpo.retrieval.index.page_index import PageIndexError

    if not (folder / STORE_FILE).exists():
        raise PageIndexError(
            f"{index.name} holds {len(index)} pages, and their images are not in {shown(folder)}: pages that are not "
            "there would be taken out; put that folder back, or begin another index"
        )


def _told(report: IndexReport, num_pages: int, name: str) -> str:
    blank = f", {report.num_blank} blank ones left out" if report.num_blank else ""
    return (
        f"{name}: {num_pages} pages; {report.num_embedded} embedded, {report.num_unchanged} unchanged, "
        f"{report.num_removed} removed{blank}, in {readable_seconds(report.seconds)}"
    )
