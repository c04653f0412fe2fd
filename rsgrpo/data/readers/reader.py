"""Reads any of the field's data formats as samples: streaming, resumable, every bad record named and counted."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from rsgrpo.config.checks import one_of
from rsgrpo.data.files import DataError
from rsgrpo.data.readers.benchmark_questions import mig_bench, milebench, visual_haystacks
from rsgrpo.data.readers.conversations import llava, mgrounding, mirage, sharegpt
from rsgrpo.data.readers.evisrag import evisrag
from rsgrpo.data.readers.findings import TOO_DEEP, BadRecordError, ReadReport, Remark, Tally, short_report
from rsgrpo.data.readers.options import Convert, ReaderOptions
from rsgrpo.data.readers.records import RawRecord, place_of, raw_records
from rsgrpo.data.readers.seen import SeenIds
from rsgrpo.data.readers.skipping import check_skipped
from rsgrpo.data.readers.sources import SourceFile, source_files, wanted_records
from rsgrpo.errors import shown
from rsgrpo.types import Sample


@dataclass(frozen=True, kw_only=True, slots=True)
class Format:
    """A data format.

    Attributes:
        open: the function that makes the converter of one file.
        prefix: the place of the list of records within a JSON file, by ijson's name.
        has_unique_ids: whether an id that stands twice makes the second record unusable (predictions go by it); else it
            is only remarked on, and the second id gets its record's number added.
    """

    open: Callable[[Path, ReaderOptions], Convert]
    prefix: str = "item"
    has_unique_ids: bool = True


FORMATS: Mapping[str, Format] = {
    "evisrag": Format(open=evisrag),
    "llava": Format(open=llava, has_unique_ids=False),
    "sharegpt": Format(open=sharegpt, has_unique_ids=False),
    "mirage": Format(open=mirage, has_unique_ids=False),
    "mgrounding": Format(open=mgrounding, has_unique_ids=False),
    "milebench": Format(open=milebench, prefix="data.item"),
    "vhs": Format(open=visual_haystacks),
    "mig_bench": Format(open=mig_bench),
}
"""All formats by the name that ``data.format`` knows."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ReaderState:
    """Where a reader stands, enough to go on from there in another process.

    Attributes:
        file_index: the 0-based index of the file in the data set.
        byte_offset: the byte offset behind the last record that was read (the row number in a parquet file).
        record_index: the 0-based number of the next record within its file.
    """

    file_index: int = 0
    byte_offset: int = 0
    record_index: int = 0


class Reader:
    """Iterates over the samples of a data set, once, in the files' order and in constant memory.

    Args:
        format: a key of ``FORMATS``.
        sources: the data set's files, and what is wanted of each.
        options: what to check and what to do about defects.
        state: where to go on; ids and counts start afresh there.

    Attributes:
        last_start: the offset of the first byte of the record of the sample that was given last (its end is
            ``state.byte_offset``).
        last_number: the 0-based number of that record within its file.
    """

    def __init__(
        self, format: str, sources: tuple[SourceFile, ...], options: ReaderOptions, state: ReaderState
    ) -> None:
        self._sources = sources
        self._name = format
        self._format = FORMATS[format]
        self._options = options
        self._file_index = state.file_index
        self._byte_offset = state.byte_offset
        self._record_index = state.record_index
        self.last_start = state.byte_offset
        self.last_number = state.record_index
        self._num_records = 0
        self._num_samples = 0
        self._skipped = Tally()
        self._remarks = Tally()

    @property
    def state(self) -> ReaderState:
        """Where a new reader must start to give the sample after the last one given."""
        return ReaderState(file_index=self._file_index, byte_offset=self._byte_offset, record_index=self._record_index)

    @property
    def report(self) -> ReadReport:
        """What was read and left out so far."""
        return ReadReport(
            num_records=self._num_records,
            num_samples=self._num_samples,
            skipped=self._skipped.findings(),
            remarks=self._remarks.findings(),
        )

    def __iter__(self) -> Iterator[Sample]:
        """The samples.

        Raises:
            DataError: a file does not hold what its name says, a record cannot be used (``on_bad_record=error``), or
                more of them than ``max_skipped_frac`` allows cannot (``skip``; then at the end).
        """
        seen = SeenIds()
        while self._file_index < len(self._sources):
            yield from self._read_file(self._sources[self._file_index], seen)
            self._file_index += 1
            self._byte_offset = self._record_index = 0
        if self._options.on_bad_record == "skip":
            check_skipped(
                ", ".join(source.file.name for source in self._sources[:3]),
                self._skipped.findings(),
                self._num_records,
                self._options.max_skipped_frac,
            )

    def _read_file(self, source: SourceFile, seen: SeenIds) -> Iterator[Sample]:
        file = source.file
        convert = self._format.open(file, self._options)
        wanted = wanted_records(source, self._format.prefix, (self._options.seed, self._file_index))

        raw: RawRecord | None = None

        def remark(reason: str, detail: str) -> None:
            assert raw is not None
            self._remarks.add(reason, f"{place_of(file, raw, self._record_index)}: {detail}")

        for raw in raw_records(file, prefix=self._format.prefix, offset=self._byte_offset):
            if wanted is not None:
                if self._record_index >= len(wanted):
                    return
                if not wanted[self._record_index]:
                    self._pass(raw)
                    continue
            self._num_records += 1
            sample: Sample | None = None
            try:
                sample = self._converted(raw, convert, remark)
                if not seen.add(sample.sample_id):
                    sample = self._renamed(sample, remark)
            except BadRecordError as error:
                sample = None
                self._refuse(file, raw, error)
            self._pass(raw)
            if sample is not None:
                self._num_samples += 1
                yield sample

    def _converted(self, raw: RawRecord, convert: Convert, remark: Remark) -> Sample:
        value = raw.value
        if isinstance(value, BadRecordError):
            raise value
        if not isinstance(value, dict):
            raise BadRecordError("wrong type", f"expected a JSON object, got {type(value).__name__}")
        if raw.num_mended:
            remark("half a character", f"{raw.num_mended} lone surrogates in its texts were replaced by U+FFFD")
        try:
            return convert(self._record_index, value, remark)
        except RecursionError as error:
            raise BadRecordError("nested too deeply", TOO_DEEP) from error

    def _pass(self, raw: RawRecord) -> None:
        """Move the state behind a record."""
        self.last_start, self._byte_offset = raw.start, raw.end
        self.last_number = self._record_index
        self._record_index += 1

    def _renamed(self, sample: Sample, remark: Callable[[str, str], None]) -> Sample:
        detail = f"the id {sample.sample_id!r} stands further up already"
        if self._format.has_unique_ids:
            raise BadRecordError("id twice", detail)
        remark("id twice", detail)
        return replace(sample, sample_id=f"{sample.sample_id}#{self._record_index}")

    def _refuse(self, file: Path, raw: RawRecord, error: BadRecordError) -> None:
        place = place_of(file, raw, self._record_index)
        self._num_records += error.num_records - 1
        self._skipped.add(error.reason, f"{place}: {error.detail}", error.num_records)
        if self._options.on_bad_record == "error":
            raise DataError(
                f"{self._name}: {place} cannot be used ({error.reason}): {shown(error.detail, 300)}\n"
                "repair it, or skip bad records (on_bad_record=skip), which are then counted"
            )


def open_reader(
    format: str,
    path: str | Path,
    *,
    options: ReaderOptions | None = None,
    state: ReaderState | None = None,
) -> Reader:
    """Open a data set.

    Args:
        format: the name of the format, a key of ``FORMATS``: ``evisrag``, ``milebench``, ``vhs``, ``mig_bench``, …
        path: a JSON list, JSONL or parquet file, a folder of them, a data set on the hub, names in braces
            (``part_{1,2}.json``), or a LLaVA manifest (YAML).
        options: what to check and what to do about defects; None: the defaults.
        state: where an earlier reader stood; None: the start.

    Returns:
        A reader to iterate over; its ``report`` and ``state`` go along.

    Raises:
        DataError: there is no such data set.

    Example:
        >>> reader = open_reader("vhs", "visual_haystack_10.json", options=ReaderOptions(on_bad_record="skip"))
        >>> samples = list(reader)
        >>> print(reader.report.text())
        1000 of 1000 records can be used
    """
    one_of("data.format", format, tuple(FORMATS))
    wanted = options or ReaderOptions()
    return Reader(format, source_files(str(path), wanted.sampling), wanted, state or ReaderState())


def read_samples(
    format: str, path: str | Path, *, options: ReaderOptions | None = None
) -> tuple[tuple[Sample, ...], ReadReport]:
    """Read a whole data set that fits into memory, such as a benchmark.

    Args:
        format: the name of the format, as for :func:`open_reader`.
        path: the files, as for :func:`open_reader`.
        options: what to check and what to do about defects; with ``on_bad_record=error`` the message shows all kinds of
            defects with their counts.

    Returns:
        All samples, and the report on what was left out or remarked on.

    Raises:
        DataError: there is no such data set, or (``on_bad_record=error``) something is wrong with it.
    """
    wanted = options or ReaderOptions()
    is_strict = wanted.on_bad_record == "error"
    limit = 1.0 if is_strict else wanted.max_skipped_frac  # what stops at the first one needs no limit
    reader = open_reader(format, path, options=replace(wanted, on_bad_record="skip", max_skipped_frac=limit))
    samples = tuple(reader)
    report = reader.report
    if report.skipped and is_strict:
        raise DataError(
            short_report(
                f"{shown(path)}: {report.num_samples} of {report.num_records} records can be used",
                report.skipped,
                "repair them, or skip bad records (on_bad_record=skip), which are then counted",
            )
        )
    return samples, report
