"""Results as files: JSON for programs, CSV for spreadsheets, a picture for people."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from rsgrpo.evaluation.benchmarks.base import BenchmarkResult, Mode
from rsgrpo.evaluation.rescore.comparison import Comparison
from rsgrpo.evaluation.rescore.scoring import DataSet, Rescored
from rsgrpo.evaluation.rescore.warnings import run_warnings
from rsgrpo.io.atomic_files import replacing, write_json


def write_files(
    folder: Path, runs: Sequence[Rescored], data: DataSet, comparisons: Mapping[Mode, Comparison]
) -> list[Path]:
    """Write ``scores.json``, ``metrics.csv``, ``items.csv``, ``scores.png``; of two runs also ``comparison.csv``.

    Args:
        folder: the folder to write, made if need be; files of these names are replaced.
        runs: the scored runs, one or two, of the same benchmark.
        data: the data set that they were scored on.
        comparisons: the comparisons by mode; empty for one run.

    Returns:
        The paths of the files that were written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / name for name in ("scores.json", "metrics.csv", "items.csv", "scores.png")]
    write_json(paths[0], _content(runs, data, comparisons), indent=2)
    _write_csv(paths[1], ("run", "mode", "group", "metric", "value", "low", "high", "count"), _metric_rows(runs))
    _write_csv(
        paths[2], ("run", "mode", "sample_id", "groups", "parsed", "anomalies", "metric", "value"), _item_rows(runs)
    )
    from rsgrpo.evaluation.rescore.picture import draw_scores  # here, because matplotlib takes a second

    draw_scores(paths[3], runs)
    if comparisons:
        paths.append(folder / "comparison.csv")
        _write_csv(
            paths[-1],
            ("mode", "sample_id", "metric", "first", "second", "difference", "parsed_first", "parsed_second"),
            _pair_rows(comparisons),
        )
    return paths


def _content(runs: Sequence[Rescored], data: DataSet, comparisons: Mapping[Mode, Comparison]) -> dict[str, object]:
    return {
        "benchmark": runs[0].name,
        "num_samples": len(data.samples),
        "records_skipped": dict(data.skipped),
        "records_odd": dict(data.remarks),
        "runs": [
            {
                "run": run.run,
                "missing": [sample.sample_id for sample in run.gaps.missing],
                "unknown_ids": list(run.gaps.unknown_ids),
                "doubled_ids": list(run.gaps.doubled_ids),
                "problems": list(run.gaps.problems),
                "oddities": [oddity.detail for oddity in run.gaps.oddities],
                "warnings": list(run_warnings(run, data)),
                "modes": {mode: _result_content(result) for mode, result in run.results.items()},
            }
            for run in runs
        ],
        "comparison": {
            mode: {
                "num_pairs": len(comparison.pairs),
                "num_only_first": comparison.num_only_first,
                "num_only_second": comparison.num_only_second,
                "tests": [dataclasses.asdict(test) for test in comparison.tests],
            }
            for mode, comparison in comparisons.items()
        },
    }


def _result_content(result: BenchmarkResult) -> dict[str, object]:
    return {
        "main_metric": result.main_metric,
        "metrics": {name: dataclasses.asdict(metric) for name, metric in result.metrics.items()},
        "groups": [
            {
                "kind": group.kind,
                "name": group.name,
                "metrics": {name: dataclasses.asdict(metric) for name, metric in group.metrics.items()},
            }
            for group in result.groups
        ],
        "printed": dict(result.printed),
        "anomalies": dict(result.anomalies),
    }


def _metric_rows(runs: Sequence[Rescored]) -> Iterable[Sequence[object]]:
    for run in runs:
        for mode, result in run.results.items():
            parts = [
                ("", result.metrics),
                *((f"{subset.kind}={subset.name}", subset.metrics) for subset in result.groups),
            ]
            for group, metrics in parts:
                for name, metric in metrics.items():
                    yield run.run, mode, group, name, metric.value, metric.low, metric.high, metric.count


def _item_rows(runs: Sequence[Rescored]) -> Iterable[Sequence[object]]:
    for run in runs:
        for mode, result in run.results.items():
            for item in result.items:
                groups = ";".join(f"{kind}={name}" for kind, name in item.groups.items())
                for name, value in item.metrics.items():
                    anomalies = ";".join(item.anomalies)
                    yield run.run, mode, item.sample_id, groups, item.parsed, anomalies, name, value


def _pair_rows(comparisons: Mapping[Mode, Comparison]) -> Iterable[Sequence[object]]:
    for mode, comparison in comparisons.items():
        for pair in comparison.pairs:
            for name, before in pair.first.metrics.items():
                after = pair.second.metrics[name]
                yield (
                    *(mode, pair.sample_id, name, before, after, after - before),
                    *(pair.first.parsed, pair.second.parsed),
                )


def _write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    with replacing(path) as file:
        text = io.TextIOWrapper(file, encoding="utf-8", errors="backslashreplace", newline="")
        writer = csv.writer(text)
        writer.writerow(header)
        writer.writerows(rows)
        text.detach()  # which flushes it, and leaves the file open
