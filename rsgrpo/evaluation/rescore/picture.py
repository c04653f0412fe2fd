"""Scores as a picture: one row a metric, one mark a run and mode, whiskers for the 95 % interval."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from rsgrpo.errors import shown
from rsgrpo.evaluation.benchmarks.base import MODES, BenchmarkResult, MetricSummary
from rsgrpo.evaluation.rescore.scoring import Rescored
from rsgrpo.io.atomic_files import replacing
from rsgrpo.io.ids import well_formed

_COLOURS = ("#1f5fa8", "#c4561a")  # one a run
_MARKERS = {"official": "o", "strict": "s"}
_MAX_GROUPS = 20  # more rows cannot be read
_SHOWN = 60  # characters of a name
_ROW_INCHES, _MARK_SPACING = 0.42, 0.16


def draw_scores(path: Path, runs: Sequence[Rescored]) -> None:
    """Draw one or two runs of a benchmark into a PNG file.

    Args:
        path: the file to write, replaced if there.
        runs: runs of the same benchmark; filled marks are official, hollow ones strict.
    """
    rows = _rows(runs[0].results["official"])
    figure = Figure(figsize=(8.0, 1.6 + _ROW_INCHES * len(rows)), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    series = [(run, mode, colour) for run, colour in zip(runs, _COLOURS, strict=False) for mode in MODES]
    for number, (run, mode, colour) in enumerate(series):
        values = dict(_rows(run.results[mode]))
        offset = (number - (len(series) - 1) / 2) * _MARK_SPACING
        heights = [position + offset for position, (title, _) in enumerate(rows) if title in values]
        chosen = [values[title] for title, _ in rows if title in values]
        axes.errorbar(
            [100 * metric.value for metric in chosen],
            heights,
            xerr=[
                [100 * max(metric.value - metric.low, 0.0) for metric in chosen],
                [100 * max(metric.high - metric.value, 0.0) for metric in chosen],
            ],
            fmt=_MARKERS[mode],
            color=colour,
            markerfacecolor=colour if mode == "official" else "white",
            markersize=6,
            linewidth=1.2,
            capsize=2,
            label=_literal(f"{run.run}, {mode}"),
        )
    axes.set_yticks(range(len(rows)), [_literal(title) for title, _ in rows])
    axes.invert_yaxis()
    axes.set_xlim(-2, 102)
    axes.set_xlabel("per cent, with 95 % bootstrap interval")
    axes.set_title(_literal(runs[0].name), loc="left")
    axes.grid(axis="x", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.tick_params(axis="y", length=0)
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    with replacing(path) as file:
        canvas.print_png(file)


def _literal(text: str) -> str:
    """Text that matplotlib draws as it stands: a dollar starts no formula, an underscore in front hides no entry."""
    plain = shown(well_formed(text)[0], _SHOWN).replace("$", r"\$")
    return f" {plain}" if plain.startswith("_") else plain


def _rows(result: BenchmarkResult) -> list[tuple[str, MetricSummary]]:
    metric = result.main_metric.removeprefix("macro ")
    groups = result.groups if len(result.groups) <= _MAX_GROUPS else ()
    return [
        *result.metrics.items(),
        *((f"{metric}, {group.kind} {group.name}", group.metrics[metric]) for group in groups),
    ]
