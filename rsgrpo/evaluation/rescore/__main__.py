"""``rsgrpo rescore``: score saved predictions, print tables, write JSON, CSV and a picture."""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from rsgrpo.config.response import check_tag_name
from rsgrpo.errors import RsgrpoError, shown
from rsgrpo.evaluation.benchmarks import find_benchmarks
from rsgrpo.evaluation.benchmarks.base import ANSWER_SECTION, MODES, Benchmark, BenchmarkError, Columns
from rsgrpo.evaluation.benchmarks.milebench import GROUPS as MILEBENCH_GROUPS
from rsgrpo.evaluation.rescore.comparison import compare
from rsgrpo.evaluation.rescore.files import write_files
from rsgrpo.evaluation.rescore.locate import data_place, predictions_place
from rsgrpo.evaluation.rescore.scoring import Rescored, read_data, rescore, some_ids
from rsgrpo.evaluation.rescore.tables import anomalies_table, comparison_table, printed_table, scores_table
from rsgrpo.evaluation.rescore.warnings import comparison_warnings, run_warnings
from rsgrpo.failures import CommandParser, run_command
from rsgrpo.io.ids import well_formed

_NAMED_IDS = 10
_MAX_MESSAGE = 480  # characters
_SHOWN_ID = 60
_PIPE_COLUMNS = 160  # rich takes 80 where there is no terminal, too few for two runs
_EXAMPLES = """\
examples:
  uv run rsgrpo rescore --benchmark evisrag/chartqa --data EVisRAG-Test-ChartQA \\
      --predictions preds/base.jsonl --out rescored
  uv run rsgrpo rescore --benchmark milebench --data MileBench --predictions preds/base --compare preds/tuned \\
      --out rescored        # a whole family, two runs compared sample by sample
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Rescore; 0 on success, 1 where something outside the code is wrong, 2 after a mistake in the call."""
    return run_command(lambda: _command(arguments))


def command_parser() -> CommandParser:
    """What the command takes."""
    parser = CommandParser(
        prog="rsgrpo rescore",
        description="Score saved predictions without a model, by the original's rules and by strict ones.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--benchmark", required=True, help="a task such as evisrag/chartqa, or a family: milebench")
    parser.add_argument("--data", type=Path, required=True, help="the data set's file or folder, or the family's")
    parser.add_argument("--predictions", type=Path, required=True, help="a file or folder, ours or the original's")
    parser.add_argument("--compare", type=Path, help="another run's predictions, to compare sample by sample")
    parser.add_argument("--out", type=Path, required=True, help="folder for scores.json, *.csv and scores.png")
    parser.add_argument("--id-column", help="where the predictions' ids stand, if not where the benchmark's do")
    parser.add_argument("--prediction-column", help="where the answers stand, likewise")
    parser.add_argument(
        "--answer-section",
        default=ANSWER_SECTION,
        metavar="NAME",
        help=f"section of a prediction that holds the answer (default {ANSWER_SECTION}, the public tag)",
    )
    return parser


def _command(arguments: Sequence[str] | None) -> None:
    options = command_parser().parse_args(arguments)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a name that the terminal's encoding lacks must not end the run
    console = Console(width=None if sys.stdout.isatty() else _PIPE_COLUMNS)
    try:
        _rescore_all(options, console)
    except ValueError as error:
        if isinstance(error, RsgrpoError):
            raise
        raise RsgrpoError(f"{shown(options.benchmark)}: {shown(error, _MAX_MESSAGE)}") from error


def _rescore_all(options: argparse.Namespace, console: Console) -> None:
    check_tag_name("--answer-section", options.answer_section)
    benchmarks = find_benchmarks(options.benchmark)
    done: list[tuple[Benchmark, list[Rescored]]] = []
    taken: dict[tuple[Path, ...], str] = {}
    for benchmark in benchmarks:
        columns = replace(
            benchmark.columns,
            ids=(options.id_column,) if options.id_column else benchmark.columns.ids,
            texts=(options.prediction_column,) if options.prediction_column else benchmark.columns.texts,
        )
        data_path = data_place(benchmark, options.data)
        places = [predictions_place(benchmark, place) for place in (options.predictions, options.compare) if place]
        found = [place for place in places if place]
        if data_path is None or len(found) < len(places):
            lacking = "data" if data_path is None else "predictions (exactly one file)"
            console.print(f"{benchmark.name}: no {lacking}, left out")
            continue
        twin = taken.setdefault((data_path, *found), benchmark.name)
        if twin != benchmark.name:
            raise BenchmarkError(
                f"{twin} and {benchmark.name} would both be scored on {shown(data_path)}; name one task with "
                f"--benchmark, or the folders that hold all of {shown(options.benchmark)}"
            )
        folder = options.out if len(benchmarks) == 1 else options.out / benchmark.name.rpartition("/")[2]
        done.append(
            (benchmark, _rescore_one(benchmark, data_path, found, columns, options.answer_section, folder, console))
        )
    if not done:
        raise BenchmarkError(
            f"neither data nor predictions of {shown(options.benchmark)} lie in {shown(options.data)} and "
            f"{shown(options.predictions)}"
        )
    if len(done) > 1:
        console.print(_family_table(options.benchmark, done))


def _rescore_one(
    benchmark: Benchmark,
    data_path: Path,
    predictions: Sequence[Path],
    columns: Columns,
    answer_section: str,
    folder: Path,
    console: Console,
) -> list[Rescored]:
    data = read_data(benchmark, data_path)
    names = _run_names(predictions)
    runs = [
        rescore(benchmark, data, place, name, columns, answer_section)
        for place, name in zip(predictions, names, strict=True)
    ]
    if len(runs) == 2 and not runs[0].answered_ids & runs[1].answered_ids:
        first, second = (some_ids(sorted(run.answered_ids)) for run in runs)
        raise BenchmarkError(
            f"{benchmark.name}: no question is answered by both runs, so that there is nothing to compare: "
            f"{shown(names[0], _SHOWN_ID)} answers {first}, {shown(names[1], _SHOWN_ID)} {second}"
        )
    modes = MODES if len(runs) == 2 else ()
    comparisons = {mode: compare(runs[0].results[mode], runs[1].results[mode]) for mode in modes}
    paths = write_files(folder, runs, data, comparisons)  # first: who pipes the tables into head still gets the files
    # Above the table: who reads only the first number has read these.
    for run in runs:
        for line in run_warnings(run, data):
            _say(console, f"warning: {run.run}: {line}")
    for line in comparison_warnings(*runs) if len(runs) == 2 else ():
        _say(console, f"warning: {line}")
    console.print(scores_table(runs))
    console.print(printed_table(runs))
    console.print(anomalies_table(runs, data))
    for run in runs:
        remarks = [oddity.detail for oddity in run.gaps.oddities]
        for line in (*_named_ids(run), *_first(run.gaps.problems), *_first(remarks)):
            _say(console, f"{run.run}: {line}")
    if comparisons:
        console.print(comparison_table(comparisons, *names))
    for path in paths:
        _say(console, f"written: {path}")
    return runs


def _say(console: Console, line: str) -> None:
    """Print a line as it is: no markup, no colours, nothing that the terminal cannot show."""
    console.print(well_formed(line)[0], markup=False, highlight=False, soft_wrap=True)


def _first(lines: Sequence[str]) -> list[str]:
    """The first few items of a list, for a message; ``scores.json`` has all."""
    more = len(lines) - _NAMED_IDS
    return [*lines[:_NAMED_IDS], *([f"… and {more} more (scores.json)"] if more > 0 else [])]


def _named_ids(run: Rescored) -> list[str]:
    """The first ids of each kind of gap, for a message; ``scores.json`` has all."""
    gaps = run.gaps
    lines = []
    for title, ids in (
        ("no prediction for", [sample.sample_id for sample in gaps.missing]),
        ("unknown ids", gaps.unknown_ids),
        ("more than one prediction for", tuple(dict.fromkeys(gaps.doubled_ids))),
    ):
        if ids:
            more = f" and {len(ids) - _NAMED_IDS} more (scores.json)" if len(ids) > _NAMED_IDS else ""
            lines.append(f"{title} {', '.join(shown(sample_id, _SHOWN_ID) for sample_id in ids[:_NAMED_IDS])}{more}")
    return lines


def _run_names(predictions: Sequence[Path]) -> list[str]:
    """The names that tell the runs apart: file names, else the first folders that differ."""
    stems = [place.stem for place in predictions]
    if len(set(stems)) == len(stems):
        return stems
    for depth in range(2, max(len(place.parts) for place in predictions) + 1):
        parts = [place.parts[-depth] if depth <= len(place.parts) else "" for place in predictions]
        if len(set(parts)) == len(parts):
            return [f"{part}/{stem}" for part, stem in zip(parts, stems, strict=True)]
    return [f"{stem} ({number})" for number, stem in enumerate(stems, start=1)]


def _family_table(name: str, done: Sequence[tuple[Benchmark, list[Rescored]]]) -> Table:
    table = Table(title=f"{name}: headlines, in per cent", title_justify="left")
    table.add_column("benchmark")
    table.add_column("metric")
    titles = [f"{run.run if len(done[0][1]) > 1 else ''} {mode}".strip() for run in done[0][1] for mode in MODES]
    for title in titles:
        table.add_column(title, justify="right")
    values: dict[str, list[float]] = {}
    for benchmark, runs in done:
        values[benchmark.name] = [100 * run.results[mode].main.value for run in runs for mode in MODES]
        main_metric = runs[0].results["official"].main_metric
        table.add_row(benchmark.name, main_metric, *(f"{value:.2f}" for value in values[benchmark.name]))
    table.add_section()
    parts = {group: {f"milebench/{set_name}" for set_name in names} for group, names in MILEBENCH_GROUPS.items()}
    for title, names in {**parts, "all": set(values)}.items():
        rows = [row for benchmark_name, row in values.items() if benchmark_name in names]
        if rows:
            means = [sum(column) / len(column) for column in zip(*rows, strict=True)]
            table.add_row(f"mean of {title} ({len(rows)})", "", *(f"{mean:.2f}" for mean in means))
    return table


if __name__ == "__main__":
    sys.exit(main())
