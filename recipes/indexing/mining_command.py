"""``rsgrpo mine-negatives``: give the training pairs of a page retriever hard negatives."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from recipes.indexing.command_line import explain_settings, read_call
from recipes.indexing.embedding_lines import embedding_lines
from recipes.indexing.places import MakeSingleEmbedder, create_any_index, is_there, make_single_embedder, open_any_index
from recipes.indexing.settings import (
    GivenSettings,
    data_settings,
    embedder_settings,
    index_settings,
    split_data_settings,
)
from rsgrpo.errors import shown
from rsgrpo.failures.command import CommandParser, UsageError, run_command

if TYPE_CHECKING:  # it takes long to import, which a slip in the call need not wait for
    from rsgrpo.retrieval.embedders.embedder import Embedder
    from rsgrpo.retrieval.index.page_index import PageIndex
    from rsgrpo.retrieval.training.mining import MiningReport

_NO_BOUND = "none"
_EXAMPLES = """\
examples:
  uv run rsgrpo mine-negatives pairs.jsonl --embedder runs/first/models/retriever --out mined/pairs.jsonl
  uv run rsgrpo mine-negatives VisRAG-Ret-Train-In-domain-data --embedder Qwen/Qwen3-VL-Embedding-2B \\
      --out mined/pairs.jsonl --index mined/pages.index --pages 7 --share 0.9
"""


def command_parser() -> CommandParser:
    """Make the parser of what ``rsgrpo mine-negatives`` takes beside settings."""
    parser = CommandParser(
        prog="rsgrpo mine-negatives",
        description="Find for every question of a retriever's training pairs the pages that score high and are not its "
        "own, and write the\npairs with them as JSON lines. Pages that may be right as well are left out: those of the "
        "same question, and those whose\nscore comes too close to the right page's.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "pairs", metavar="PAIRS", nargs="+", help="JSON lines, or VisRAG-Ret's parquet; files or folders"
    )
    parser.add_argument("--out", metavar="FILE", required=True, type=Path, help="the JSON lines to write")
    parser.add_argument("--embedder", metavar="MODEL", default="", help="a folder or a name on the hub")
    parser.add_argument(
        "--index", metavar="FOLDER", type=Path, help="where to keep the pages' vectors, to go on or to mine again"
    )
    parser.add_argument("--pages", type=int, default=4, help="negatives of a question at most (4)")
    parser.add_argument("--depth", type=int, default=100, help="best pages among which they are looked for (100)")
    parser.add_argument(
        "--margin",
        type=_bound,
        default=0.0,
        help="how far a negative's score may lie above the right page's, below 0: must lie below it; none: any (0)",
    )
    parser.add_argument(
        "--share",
        type=_bound,
        default=0.95,
        help="largest share of the right page's score that a negative's may have; none: any (0.95)",
    )
    explain_settings(parser, "data.NAME=VALUE (such as data.on_bad_sample=skip), embedder.NAME=VALUE, index.NAME=VALUE")
    return parser


def main(arguments: Sequence[str] | None = None, make_embedder: MakeSingleEmbedder | None = None) -> int:
    """Run ``rsgrpo mine-negatives``.

    Args:
        arguments: the arguments behind the command's name; None: those of this process.
        make_embedder: the function that makes the embedder; None: an embedder of sentence-transformers is made.

    Returns:
        The exit status of the process.
    """
    return run_command(
        lambda: _mine(arguments, make_embedder or make_single_embedder),
        way_on="with --index, what is embedded stays, and the same command goes on",
    )


def _bound(text: str) -> float | None:
    try:
        return None if text == _NO_BOUND else float(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number nor {_NO_BOUND!r}") from error


def _mine(arguments: Sequence[str] | None, make_embedder: MakeSingleEmbedder) -> None:
    from rsgrpo.config.image_rules import ImageRules
    from rsgrpo.data.files import check_output
    from rsgrpo.retrieval.training.mined_pairs import index_pages, with_mined_negatives, write_training_pairs
    from rsgrpo.retrieval.training.mining import MiningRules
    from rsgrpo.retrieval.training.training_pairs import pair_files, read_training_pairs

    rest, of_data = split_data_settings(sys.argv[1:] if arguments is None else arguments)
    options, given = read_call(command_parser(), rest)
    if given.documents:
        raise UsageError(f"documents.{next(iter(given.documents))} says how documents are rendered; leave it out")
    if options.out.is_dir():
        raise UsageError(f"--out {shown(options.out)} is a folder; name the file to write, such as pairs.jsonl in it")
    check_output(options.out, [file for path in options.pairs for file in pair_files(path)], "--out")
    rules = MiningRules(num_pages=options.pages, depth=options.depth, margin=options.margin, share=options.share)
    config = embedder_settings(given, options.embedder)
    reading = ImageRules(min_pixels=config.min_pixels or None, max_pixels=config.max_pixels)
    loaded = read_training_pairs(options.pairs, data_settings(of_data), reading)
    pairs = loaded.pairs
    embedder = make_embedder(config)
    with _opened(options.index, given, embedder) as index:
        index_pages(pairs, embedder, index, is_kept=options.index is not None, on_progress=embedding_lines())
        mined, report = with_mined_negatives(pairs, embedder, index, rules)
    write_training_pairs(options.out, mined)
    print(_told(report, options.out, sum(finding.count for finding in loaded.skipped)))


@contextmanager
def _opened(folder: Path | None, given: GivenSettings, embedder: Embedder) -> Iterator[PageIndex]:
    """Open or make the index of the pages; without a folder it lies in a temporary one and is not kept."""
    settings = index_settings(given)
    with tempfile.TemporaryDirectory(prefix="rsgrpo-mining-") as scratch:
        place = folder or Path(scratch) / "pages.index"
        with closing(
            open_any_index(place, settings, is_writable=True)
            if is_there(place, settings)
            else create_any_index(place, settings, embedder.identity, embedder.settings)
        ) as index:
            yield index


def _told(report: MiningReport, file: Path, num_left_out: int) -> str:
    left_out = f"; {num_left_out:,} rows left out, as they cannot be used" if num_left_out else ""
    return (
        f"{shown(file)}: {report.num_questions:,} pairs with {report.num_negatives:,} negatives, "
        f"{report.num_without:,} without any; {report.num_close:,} pages left out, as their score comes too close to "
        f"the right page's; the right page comes first for {report.first_frac:.1%}{left_out}"
    )


if __name__ == "__main__":
    sys.exit(main())
