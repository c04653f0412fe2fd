"""Read, pair and score: one benchmark, one set of predictions, both modes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rsgrpo.benchmarks.base import MODES, Benchmark, BenchmarkResult, Gaps, Mode, pair_predictions
from rsgrpo.readers import ReaderOptions, read_samples
from rsgrpo.rescore.locate import family_of
from rsgrpo.types import Sample


@dataclass(frozen=True, kw_only=True, slots=True)
class DataSet:
    """The samples of a benchmark.

    Attributes:
        samples: in file order.
        skipped: records that could not be read, by reason.
        remarks: oddities of records that were read, by reason.
    """

    samples: tuple[Sample, ...]
    skipped: Mapping[str, int]
    remarks: Mapping[str, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class Rescored:
    """One run on one benchmark.

    Attributes:
        run: what the run is called in tables.
        name: the benchmark's task name.
        results: by mode.
        gaps: what did not pair.
    """

    run: str
    name: str
    results: Mapping[Mode, BenchmarkResult]
    gaps: Gaps


def read_data(benchmark: Benchmark, place: Path) -> DataSet:
    """Read a benchmark's samples; images are not looked for, bad records are counted.

    Raises:
        DataError: there is no such data set.
    """
    options = ReaderOptions(check_media=False, on_bad_record="skip")
    samples, report = read_samples(family_of(benchmark), place, options=options)
    return DataSet(
        samples=samples,
        skipped=report.counts(),
        remarks={finding.reason: finding.count for finding in report.remarks},
    )


def rescore(benchmark: Benchmark, data: DataSet, predictions: Path, run: str) -> Rescored:
    """Score one prediction file in both modes.

    Raises:
        BenchmarkError: the predictions cannot be read.
    """
    pairing = pair_predictions(data.samples, benchmark.read_predictions(predictions))
    return Rescored(
        run=run,
        name=benchmark.name,
        results={mode: benchmark.score(pairing.answered, mode, pairing.gaps) for mode in MODES},
        gaps=pairing.gaps,
    )
