"""Results as tables for a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.markup import escape
from rich.table import Table

from rsgrpo.evaluation.benchmarks.base import MODES, MetricSummary, Mode
from rsgrpo.evaluation.rescore.comparison import Comparison
from rsgrpo.evaluation.rescore.scoring import DataSet, Rescored
from rsgrpo.io.ids import well_formed

_MAX_GROUPS = 12  # a finer breakdown is in scores.json and metrics.csv


def scores_table(runs: Sequence[Rescored]) -> Table:
    """Every metric of every run in both modes, with its interval."""
    table = Table(title=f"{runs[0].name}: mean [95 % interval], in per cent", title_justify="left")
    for column in ("run", "metric", *MODES, "items"):
        table.add_column(column, justify="left" if column in ("run", "metric") else "right")
    for run in runs:
        official = run.results["official"]
        for name in official.metrics:
            strict = run.results["strict"].metrics[name]
            is_main = name == official.main_metric
            title = f"[bold]{name}[/bold]" if is_main else name
            table.add_row(
                _literal(run.run),
                title,
                _cell(official.metrics[name]),
                _cell(strict),
                _counts(official.metrics[name], strict),
            )
        for group in official.groups if len(official.groups) <= _MAX_GROUPS else ():
            twin = next(
                (
                    strict_group
                    for strict_group in run.results["strict"].groups
                    if (strict_group.kind, strict_group.name) == (group.kind, group.name)
                ),
                group,
            )
            metric = official.main_metric.removeprefix("macro ")
            official_metric, strict_metric = group.metrics[metric], twin.metrics[metric]
            title = _literal(f"  {metric}, {group.kind} {group.name}")
            table.add_row(
                _literal(run.run),
                title,
                _cell(official_metric),
                _cell(strict_metric),
                _counts(official_metric, strict_metric),
            )
    return table


def printed_table(runs: Sequence[Rescored]) -> Table:
    """What the original's own script prints."""
    table = Table(title="As the original prints it", title_justify="left")
    table.add_column("number")
    for run in runs:
        table.add_column(_literal(run.run), justify="right")
    columns = [run.results["official"].printed for run in runs]
    for name in dict.fromkeys(name for column in columns for name in column):
        table.add_row(_literal(name), *(f"{column[name]:.4f}" if name in column else "" for column in columns))
    return table


def anomalies_table(runs: Sequence[Rescored], data: DataSet) -> Table:
    """Everything that was wrong, with counts."""
    table = Table(title="Anomalies", title_justify="left")
    table.add_column("kind")
    for run in runs:
        for mode in MODES:
            table.add_column(_literal(f"{run.run}, {mode}"), justify="right")
    counts: list[Mapping[str, int]] = [run.results[mode].anomalies for run in runs for mode in MODES]
    for kind in dict.fromkeys(kind for column in counts for kind in column):
        table.add_row(kind, *(str(column.get(kind, 0)) for column in counts))
    for title, findings in (("record skipped", data.skipped), ("record odd", data.remarks)):
        for reason, count in findings.items():
            table.add_row(_literal(f"{title}: {reason}"), *([str(count)] * len(counts)))
    if not table.row_count:
        table.add_row("none", *(["0"] * len(counts)))
    return table


def comparison_table(comparisons: Mapping[Mode, Comparison], first: str, second: str) -> Table:
    """Paired tests of all metrics."""
    first_comparison = next(iter(comparisons.values()))
    first, second = _literal(first), _literal(second)
    table = Table(
        title=f"{second} minus {first}, sample by sample ({first_comparison.num_only_first} only in {first}, "
        f"{first_comparison.num_only_second} only in {second})",
        title_justify="left",
    )
    for column in ("mode", "metric", "pairs", first, second, "difference", "better", "worse", "test", "p"):
        table.add_column(column, justify="left" if column in ("mode", "metric", "test") else "right")
    for mode, comparison in comparisons.items():
        for test in comparison.tests:
            table.add_row(
                mode,
                test.metric,
                str(test.difference.count),
                f"{100 * test.mean_first:.2f}",
                f"{100 * test.mean_second:.2f}",
                _cell(test.difference, sign="+"),
                str(test.num_better),
                str(test.num_worse),
                test.test,
                f"{test.p_value:.2g}",
            )
    return table


def _literal(text: str) -> str:
    """Text that rich prints as it stands: brackets are no markup."""
    return escape(well_formed(text)[0])


def _cell(metric: MetricSummary, sign: str = "") -> str:
    return f"{100 * metric.value:{sign}.2f} \\[{100 * metric.low:{sign}.2f}, {100 * metric.high:{sign}.2f}]"


def _counts(official: MetricSummary, strict: MetricSummary) -> str:
    return str(strict.count) if official.count == strict.count else f"{official.count} / {strict.count}"
