"""Readers of the field's data formats; ``open_reader`` opens one, ``FORMATS`` lists them."""

from rsgrpo.data.readers.findings import Finding, ReadReport
from rsgrpo.data.readers.options import ReaderOptions
from rsgrpo.data.readers.reader import FORMATS, Reader, ReaderState, open_reader, read_samples

__all__ = [
    "FORMATS",
    "Finding",
    "ReadReport",
    "Reader",
    "ReaderOptions",
    "ReaderState",
    "open_reader",
    "read_samples",
]
