"""Read, pair and score: one benchmark, one set of predictions, both modes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rsgrpo.data.readers import ReaderOptions, read_samples
from rsgrpo.errors import shown
from rsgrpo.evaluation.benchmarks.base import (
    ANSWER_SECTION,
    MODES,
    NOT_TEXT,
    Benchmark,
    BenchmarkError,
    BenchmarkResult,
    Columns,
    Gaps,
    Mode,
    Pairing,
    PredictionFile,
    pair_predictions,
)
from rsgrpo.evaluation.benchmarks.visrag_gen import VisRagGenBenchmark, gen_sample
from rsgrpo.evaluation.rescore.locate import family_of
from rsgrpo.io.ids import near_misses
from rsgrpo.retrieval.measuring.relevance_files import read_queries
from rsgrpo.types import Sample

_SHOWN_PATH, _SHOWN_COLUMNS, _SHOWN_ID = 100, 60, 24  # characters, so that a whole message stays below 500


@dataclass(frozen=True, kw_only=True, slots=True)
class DataSet:
    """The samples of a benchmark.

    Attributes:
        samples: the samples, in the order of the file.
        skipped: how many records could not be read, by reason.
        remarks: how many records were read with an oddity, by reason.
    """

    samples: tuple[Sample, ...]
    skipped: Mapping[str, int]
    remarks: Mapping[str, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class Rescored:
    """One run on one benchmark.

    Attributes:
        run: the name of the run in tables.
        name: the name of the benchmark's task.
        results: the results by mode (``official``, ``strict``).
        gaps: the samples and predictions that found no partner.
        answered_ids: the ids of samples with at least one prediction.
    """

    run: str
    name: str
    results: Mapping[Mode, BenchmarkResult]
    gaps: Gaps
    answered_ids: frozenset[str]


def read_data(benchmark: Benchmark, place: Path) -> DataSet:
    """Read a benchmark's samples; images are not looked for, bad records are counted.

    Raises:
        DataError: there is no such data set.
        BenchmarkError: none of the data set's records can be used.
    """
    if isinstance(benchmark, VisRagGenBenchmark):
        return _gen_data(benchmark, place)
    options = ReaderOptions(check_media=False, on_bad_record="skip", max_skipped_frac=1.0)
    samples, report = read_samples(family_of(benchmark), place, options=options)
    if not samples:
        first = report.skipped[0].examples[0] if report.skipped else "it holds none"
        raise BenchmarkError(
            f"{benchmark.name}: {shown(place)} holds no question that can be used ({shown(first)}); give its data "
            "with --data"
        )
    return DataSet(
        samples=samples,
        skipped=report.counts(),
        remarks={finding.reason: finding.count for finding in report.remarks},
    )


def _gen_data(benchmark: VisRagGenBenchmark, folder: Path) -> DataSet:
    queries = read_queries(folder)
    samples = tuple(sample for query in queries if (sample := gen_sample(query, benchmark.name)) is not None)
    if not samples:
        raise BenchmarkError(
            f"{benchmark.name}: none of {len(queries)} queries of {shown(folder)} has an answer; give VisRAG's own set "
            "with --data"
        )
    left_out = len(queries) - len(samples)
    return DataSet(samples=samples, skipped={"no answer": left_out} if left_out else {}, remarks={})


def rescore(
    benchmark: Benchmark,
    data: DataSet,
    predictions: Path,
    run: str,
    columns: Columns | None = None,
    answer_section: str = ANSWER_SECTION,
) -> Rescored:
    """Score one prediction file in both modes.

    Args:
        benchmark: the benchmark whose rules are applied.
        data: the data set with its samples.
        predictions: the prediction file or folder.
        run: what the run is called in tables.
        columns: where ids and answers stand, if not where the benchmark looks for them.
        answer_section: the section of a prediction that holds the answer.

    Raises:
        BenchmarkError: the predictions cannot be read, or there is nothing to score: no row is a prediction, none
            answers a question of the data set, or no answer is a text.
    """
    columns = columns or benchmark.columns
    file = benchmark.read_predictions(predictions, columns)
    pairing = pair_predictions(data.samples, file)
    _check_any(benchmark, data, predictions, file, pairing)
    return Rescored(
        run=run,
        name=benchmark.name,
        results={
            mode: benchmark.score(pairing.answered, mode, pairing.gaps, answer_section=answer_section) for mode in MODES
        },
        gaps=pairing.gaps,
        answered_ids=frozenset(answer.sample.sample_id for answer in pairing.answered),
    )


def _check_any(benchmark: Benchmark, data: DataSet, place: Path, file: PredictionFile, pairing: Pairing) -> None:
    """Refuse what would give a score out of nothing."""
    where = f"{benchmark.name}: {shown(place, _SHOWN_PATH)}"
    if not file.predictions:
        first = file.problems[0].removeprefix(f"{shown(place)}, ")
        found = f" (columns: {shown(', '.join(file.columns), _SHOWN_COLUMNS)})" if file.columns else ""
        raise BenchmarkError(
            f"{where}: none of {len(file.problems)} rows is a prediction{found}, the first: {shown(first)}; name the "
            "columns with --id-column and --prediction-column"
        )
    if not pairing.answered:
        raise BenchmarkError(f"{where}: {_no_match(data, pairing)}; give the data set that these predictions answer")
    if all(answer.defect for answer in pairing.answered):
        first = next(oddity.detail for oddity in file.oddities if oddity.kind == NOT_TEXT)
        raise BenchmarkError(
            f"{where}: none of {len(pairing.answered)} answers is a text, the first: "
            f"{shown(first.removeprefix(f'{shown(place)}, '))}; name the column of the answers with --prediction-column"
        )


def _no_match(data: DataSet, pairing: Pairing) -> str:
    seen = list(dict.fromkeys(pairing.gaps.unknown_ids))
    wanted = [sample.sample_id for sample in data.samples]
    text = (
        f"none of {len(pairing.gaps.unknown_ids)} predictions has an id of the data set: seen are {some_ids(seen)}, "
        f"wanted {some_ids(wanted)}"
    )
    alike = near_misses(seen, wanted)
    if alike:
        first, second = (shown(sample_id, _SHOWN_ID) for sample_id in alike[0])
        text += f" ('{first}' looks like '{second}'; {len(alike)} such)"
    return text


def some_ids(ids: Sequence[str], limit: int = 3) -> str:
    """The first few ids for a message.

    Example:
        ``some_ids(["1", "2", "3", "4"]) == "'1', '2', '3' …"``
    """
    return ", ".join(f"'{shown(sample_id, _SHOWN_ID)}'" for sample_id in ids[:limit]) + (
        " …" if len(ids) > limit else ""
    )
