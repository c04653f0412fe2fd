"""Random access to the good records of a data set: where each stands is kept, none of what it says."""

from __future__ import annotations

import zlib
from array import array
from dataclasses import replace
from typing import BinaryIO

from rsgrpo.data.file_bytes import DataError, open_utf8
from rsgrpo.data.readers.findings import BadRecordError, ReadReport
from rsgrpo.data.readers.options import Convert, ReaderOptions
from rsgrpo.data.readers.reader import FORMATS, open_reader
from rsgrpo.data.readers.records import is_table
from rsgrpo.data.readers.sources import source_files
from rsgrpo.data.tables import table_row
from rsgrpo.errors import shown
from rsgrpo.io.json_values import decode_json
from rsgrpo.types import Sample


class IndexedSamples:
    """The samples of a data set by number; each is read from its file and decoded when it is asked for.

    Building it reads every record once, so that all defects are known before training starts. It keeps 32
    bytes a record, a checksum among them that tells a file which was changed since.

    Args:
        format: a key of ``FORMATS``.
        path: the files, as for :func:`open_reader`.
        options: what to check; bad records are always left out, see ``report``, but with ``on_bad_record=skip`` not
            more of them than ``max_skipped_frac``.

    Attributes:
        report: the report on what was read and left out.

    Raises:
        DataError: there is no such data set, or too much of it cannot be used.

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
        self._checksums = array("I")
        limit = options.max_skipped_frac if options.on_bad_record == "skip" else 1.0
        reader = open_reader(format, path, options=replace(options, on_bad_record="skip", max_skipped_frac=limit))
        for _ in reader:
            file_index, start, stop = reader.state.file_index, reader.last_start, reader.state.byte_offset
            self._file_of.append(file_index)
            self._starts.append(start)
            self._stops.append(stop)
            self._numbers.append(reader.last_number)
            is_row = is_table(self._files[file_index])
            self._checksums.append(0 if is_row else zlib.crc32(self._bytes(file_index, start, stop)))
        self.report: ReadReport = reader.report

    def __len__(self) -> int:
        return len(self._starts)

    def number(self, index: int) -> int:
        """Number of a sample's record within its file."""
        return self._numbers[index]

    def sample(self, index: int) -> Sample:
        """A sample, read and decoded anew.

        Args:
            index: the index of the sample, 0 to ``len(self) - 1``.

        Raises:
            DataError: the file was changed since it was indexed, so that the record is another one or missing.
        """
        file_index = self._file_of[index]
        file = self._files[file_index]
        try:
            record = self._record(index)
            if file_index not in self._converts:
                self._converts[file_index] = self._format.open(file, replace(self._options, check_media=False))
            # Whether an image exists was seen before; where that is not clear a MediaFinder looks again by itself.
            return self._converts[file_index](self._numbers[index], record, lambda reason, detail: None)
        except (BadRecordError, ValueError, LookupError) as error:
            place = (
                f"row {self._starts[index]}"
                if is_table(file)
                else f"record {self._numbers[index]} (bytes {self._starts[index]} to {self._stops[index]})"
            )
            raise DataError(
                f"{shown(file)} was changed after it was read first: {place} is not what it was ({shown(error)}); "
                "start again"
            ) from error

    def _record(self, index: int) -> dict[str, object]:
        file_index, start, stop = self._file_of[index], self._starts[index], self._stops[index]
        file = self._files[file_index]
        if is_table(file):
            value: object = table_row(file, start)
        else:
            text = self._bytes(file_index, start, stop)
            if zlib.crc32(text) != self._checksums[index]:
                raise BadRecordError("changed", "its bytes are others")
            value, _ = decode_json(text)
        if not isinstance(value, dict):
            raise BadRecordError("wrong type", f"got {type(value).__name__}")
        return value

    def _bytes(self, file_index: int, start: int, stop: int) -> bytes:
        if file_index not in self._streams:
            self._streams[file_index] = open_utf8(self._files[file_index])  # kept for all records
        stream = self._streams[file_index]
        stream.seek(start)
        return stream.read(stop - start)
