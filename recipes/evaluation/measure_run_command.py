"""``rsgrpo measure-run``: MRR, recall and nDCG of a run in TREC's format, and of two runs query by query."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from rsgrpo.errors import shown
from rsgrpo.failures.command import CommandParser, UsageError, run_command

if TYPE_CHECKING:  # they take long to import, which a slip in the call need not wait for
    from rsgrpo.evaluation.benchmarks.base import BenchmarkResult
    from rsgrpo.evaluation.rescore.comparison import Comparison
    from rsgrpo.retrieval.measuring.measures import RunMeasures
    from rsgrpo.retrieval.measuring.trec_runs import Mode

_PIPE_COLUMNS = 120
_MODES = ("official", "strict")
_MAX_K = 100_000
_SHOWN_IDS = 5
_EXAMPLES = """\
examples:
  uv run rsgrpo measure-run run.trec --data VisRAG-Ret-Test-ChartQA
  uv run rsgrpo measure-run part.0.trec part.1.trec --data SET --mode strict
  uv run rsgrpo measure-run bm25.trec --compare embedder.trec --data SET
  uv run rsgrpo measure-run runs/r/retrieval/vidore/v3_hr@english/run.trec --data runs/r/retrieval/vidore/v3_hr@english
"""


def command_parser() -> CommandParser:
    """Make the parser of what ``rsgrpo measure-run`` takes."""
    parser = CommandParser(
        prog="rsgrpo measure-run",
        description="Measure how well a run finds the relevant pages, and compare two runs query by query.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", metavar="RUN.trec", type=Path, nargs="+", help="the files of one run, which are merged")
    parser.add_argument(
        "--data",
        required=True,
        type=Path,
        metavar="SET",
        help="data set in VisRAG's layout, or a folder with its qrels",
    )
    parser.add_argument("--split", default="train", help="split of the data set (default train, VisRAG's only one)")
    parser.add_argument(
        "--mode",
        choices=_MODES,
        default="official",
        help="official: queries that the run has no page for are left out, as in VisRAG; strict: they count as 0",
    )
    parser.add_argument("-k", type=int, default=10, help="how many first pages the measures look at (10)")
    parser.add_argument(
        "--compare", metavar="OTHER.trec", type=Path, nargs="+", default=[], help="the files of a second run"
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``rsgrpo measure-run``.

    Args:
        arguments: the arguments behind the command's name; None: those of this process.

    Returns:
        The exit status of the process.
    """
    return run_command(lambda: _measure(arguments), way_on="nothing was changed; call it again")


def _measure(arguments: Sequence[str] | None) -> None:
    from rsgrpo.data.files import DataError
    from rsgrpo.retrieval.measuring.measured_search import measures_at
    from rsgrpo.retrieval.measuring.measures import measure_run
    from rsgrpo.retrieval.measuring.relevance_files import read_judgements
    from rsgrpo.retrieval.measuring.trec_runs import read_run

    given = command_parser().parse_args(arguments)
    if not 1 <= given.k <= _MAX_K:
        raise UsageError(f"-k {given.k} is no number of pages; give one from 1 to {_MAX_K}")
    relevant = read_judgements(given.data, split=given.split)
    without_page = [query for query, pages in relevant.items() if max(pages.values(), default=0) <= 0]
    if len(without_page) == len(relevant):
        raise DataError(f"no query of {shown(given.data)} has a relevant page, so that there is nothing to find")
    measures = measures_at(given.k)
    measured = [
        measure_run(read_run(*files, mode=given.mode), relevant, mode=given.mode, measures=measures)
        for files in (given.run, given.compare)
        if files
    ]
    console = Console(width=None if sys.stdout.isatty() else _PIPE_COLUMNS)
    results = [_result(one, given.mode, measures) for one in measured]
    if given.compare:
        from rsgrpo.evaluation.rescore.comparison import compare

        console.print(_comparison_table(compare(results[0], results[1])))
    else:
        console.print(_table(results[0]))
    for one, files in zip(measured, (given.run, given.compare), strict=False):
        for line in _notes(one, len(relevant), given.mode):
            _say(console, files[0], line)
    if without_page:
        told = f"{len(without_page)} judged queries have no relevant page and count as 0: {_some(without_page)}"
        _say(console, given.data, told)


def _say(console: Console, about: Path, line: str) -> None:
    console.print(f"{shown(about)}: {line}", markup=False, highlight=False, soft_wrap=True)


def _result(measured: RunMeasures, mode: Mode, measures: Sequence[str]) -> BenchmarkResult:
    """Make of a run's measures what intervals and comparisons are computed from."""
    from rsgrpo.evaluation.benchmarks.aggregate import build_result
    from rsgrpo.evaluation.benchmarks.base import ScoredItem

    return build_result(
        name="retrieval",
        mode=mode,
        main_metric=measures[0],
        metric_names=measures,
        items=[ScoredItem(sample_id=query_id, metrics=dict(values)) for query_id, values in measured.per_query.items()],
        counts={},
        printed={},
    )


def _table(result: BenchmarkResult) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("measure")
    for name in (result.mode, "95 % interval", "queries"):
        table.add_column(name, justify="right")
    for name, found in result.metrics.items():
        table.add_row(name, f"{found.value:.4f}", f"[{found.low:.4f}, {found.high:.4f}]", str(found.count))
    return table


def _comparison_table(comparison: Comparison) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("measure")
    for name in ("first", "second", "difference", "95 % interval", "better", "worse", "p"):
        table.add_column(name, justify="right")
    for test in comparison.tests:
        difference = test.difference
        table.add_row(
            test.metric,
            f"{test.mean_first:.4f}",
            f"{test.mean_second:.4f}",
            f"{difference.value:+.4f}",
            f"[{difference.low:+.4f}, {difference.high:+.4f}]",
            str(test.num_better),
            str(test.num_worse),
            f"{test.p_value:.3g}",
        )
    only = comparison.num_only_first + comparison.num_only_second
    table.caption = f"{len(comparison.pairs)} queries that both runs answer" + (
        f"; {comparison.num_only_first} only the first, {comparison.num_only_second} only the second" if only else ""
    )
    return table


def _notes(measured: RunMeasures, num_judged: int, mode: Mode) -> list[str]:
    notes = []
    missing, unjudged = measured.missing_queries, measured.unjudged_queries
    if missing:
        counted = "left out of the means" if mode == "official" else "counted as 0"
        notes.append(f"no page for {len(missing)} of {num_judged} judged queries, {counted}: {_some(missing)}")
    if unjudged:
        notes.append(f"{len(unjudged)} queries have no judgement and do not count: {_some(unjudged)}")
    return notes


def _some(ids: Sequence[str]) -> str:
    more = f" and {len(ids) - _SHOWN_IDS} more" if len(ids) > _SHOWN_IDS else ""
    return ", ".join(shown(one, 60) for one in ids[:_SHOWN_IDS]) + more
