"""Random access to the good records of a data set: where each stands is kept, none of what it says."""

from __future__ import annotations

import json
from array import array
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

from rsgrpo.data_files import DataError
from rsgrpo.readers.findings import BadRecordError, ReadReport
from rsgrpo.readers.options import Convert, ReaderOptions
from rsgrpo.readers.reader import FORMATS, open_reader
from rsgrpo.readers.records import OPENINGS, raw_records
from rsgrpo.readers.sources import source_files
from rsgrpo.tables import TABLE_SUFFIXES, table_row
from rsgrpo.types import Sample

_CLOSINGS = {"item": b"]", "data.item": b"]}"}


class IndexedSamples:
    """The samples of a data set by number; each is read from its file and decoded when it is asked for.

    Building it reads every record once, so that all defects are known before training starts. It keeps 28
    bytes a record.

    Args:
        format: a key of ``FORMATS``.
        path: as for :func:`open_reader`.
        options: what to check; bad records are always left out, see ``report``.

    Attributes:
        report: what was read and left out.

    Raises:
        DataError: there is no such data set.

    Example:
        >>> samples = IndexedSamples("llava", "mammoth_si_10M.json", ReaderOptions())
        >>> samples.sample(len(samples) - 1).turns[0].text
        '<image>\\nWhat is written here?'
    """

    def __init__(self, format: str, path: str, options: ReaderOptions) -> None:
        self._format = FORMATS[format]
        self._options = options
        self._files = [source.file for source in source_files(path, options.sampling)]
        self._converts: dict[int, Convert] = {}
        self._streams: dict[int, BinaryIO] = {}
        self._file_of = array("i")
        self._starts = array("q")
        self._stops = array("q")
        self._numbers = array("q")
        reader = open_reader(format, path, options=replace(options, on_bad_record="skip"))
        for _ in reader:
            state = reader.state
            self._file_of.append(state.file_index)
            self._starts.append(reader.last_start)
            self._stops.append(state.byte_offset)
            self._numbers.append(state.record_index - 1)
        self.report: ReadReport = reader.report

    def __len__(self) -> int:
        return len(self._starts)

    def number(self, index: int) -> int:
        """Number of a sample's record within its file."""
        return self._numbers[index]

    def sample(self, index: int) -> Sample:
        """A sample, read and decoded anew.

        Args:
            index: 0 to ``len(self) - 1``.

        Raises:
            DataError: the file was changed since, so that the record is another or none.
        """
        file_index = self._file_of[index]
        file = self._files[file_index]
        try:
            record = self._record(file_index, self._starts[index], self._stops[index])
            if file_index not in self._converts:
                self._converts[file_index] = self._format.open(file, replace(self._options, check_media=False))
            # Whether an image exists was seen before; where that is not clear a MediaFinder looks again by itself.
            return self._converts[file_index](self._numbers[index], record, lambda reason, detail: None)
        except (BadRecordError, ValueError, LookupError) as error:
            raise DataError(
                f"{file} was changed after it was read first: record {self._numbers[index]} (bytes "
                f"{self._starts[index]} to {self._stops[index]}) is none any more ({error}); start again"
            ) from error

    def _record(self, file_index: int, start: int, stop: int) -> dict[str, object]:
        file, prefix = self._files[file_index], self._format.prefix
        if file.suffix in TABLE_SUFFIXES:
            value: object = table_row(file, start)
        elif not start and file.suffix != ".jsonl":
            # The head of the file stands in front of it: the parser knows where that ends.
            value = next((value for end, value in raw_records(file, prefix=prefix) if end == stop), None)
        else:
            text = self._bytes(file_index, start, stop)
            if file.suffix == ".jsonl":
                value = json.loads(text)
            else:
                content = json.loads(OPENINGS[prefix] + text.lstrip(b" \t\r\n,") + _CLOSINGS[prefix])
                value = (content if prefix == "item" else content["data"])[-1]
        if not isinstance(value, dict):
            raise BadRecordError("wrong type", f"got {type(value).__name__}")
        return value

    def _bytes(self, file_index: int, start: int, stop: int) -> bytes:
        if file_index not in self._streams:
            self._streams[file_index] = Path(self._files[file_index]).open("rb")  # noqa: SIM115 - kept for all records
        stream = self._streams[file_index]
        stream.seek(start)
        return stream.read(stop - start)
