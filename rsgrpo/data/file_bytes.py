"""A data file as UTF-8, and what it is if it is no JSON at all."""

from __future__ import annotations

import codecs
import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from rsgrpo.data.lfs import LFS_ADVICE, is_lfs_pointer
from rsgrpo.errors import RsgrpoError, shown
from rsgrpo.io.special_files import open_regular

BYTE_ORDER_MARK = codecs.BOM_UTF8
_HEAD_BYTES = 256
_WIDE_ENCODINGS = (  # UTF-32 first: its mark begins as that of UTF-16 does
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_MOST_WIDE_BYTES = 1 << 30  # a file in UTF-16 is held in memory as UTF-8; a larger one is better converted once
_OTHER_KINDS = (
    (b"\x1f\x8b", "is compressed with gzip; unpack it: gunzip FILE"),
    (b"BZh", "is compressed with bzip2; unpack it: bunzip2 FILE"),
    (b"\xfd7zXZ", "is compressed with xz; unpack it: unxz FILE"),
    (b"\x28\xb5\x2f\xfd", "is compressed with zstd; unpack it: unzstd FILE"),
    (b"PK\x03\x04", "is a zip archive (or a spreadsheet); unpack it and name the data file"),
    (b"PAR1", "is parquet; rename it to .parquet"),
    (b"ARROW1", "is an Arrow table; rename it to .arrow"),
)


class DataError(RsgrpoError, ValueError):
    """A data set cannot be used; the message names the items and the way out."""


@contextmanager
def naming(name: str) -> Iterator[None]:
    """Say of which of several data sets an error in the block is, as its parts are called alike.

    Args:
        name: the setting, task or folder that the user knows the data set by.

    Raises:
        DataError: the error, with the name in front.
    """
    try:
        yield
    except DataError as error:
        raise DataError(f"{shown(name, 160)}: {error}") from error


def check_kind(file: Path) -> None:
    """Refuse a file that holds something else than its name says.

    Args:
        file: a data file.

    Raises:
        DataError: the file cannot be opened, is empty, a Git LFS pointer, packed, or a web page.
    """
    try:
        with open_regular(str(file)) as stream:
            head = stream.read(_HEAD_BYTES) or b""
    except OSError as error:
        raise DataError(f"{shown(file)} cannot be read: {error.strerror}; make it readable, or name another") from error
    if not head:
        raise DataError(f"{shown(file)} is empty (0 bytes): it holds no items; write or download it again")
    if is_lfs_pointer(head):
        raise DataError(f"{shown(file)} {LFS_ADVICE}")
    if file.suffix.lower() in (".parquet", ".arrow"):
        if file.suffix.lower() == ".parquet" and not head.startswith(b"PAR1"):
            raise DataError(
                f"{shown(file)} is no parquet file: it begins with {head[:12]!r} instead of b'PAR1'; download it again"
            )
        return
    for start, advice in _OTHER_KINDS:
        if head.startswith(start):
            raise DataError(f"{shown(file)} {advice}")
    if head.lstrip()[:9].lower().startswith((b"<!doctype", b"<html")):
        raise DataError(f"{shown(file)} holds a web page instead of data; download the file itself")
    if b"\0" in head[:4] and not any(head.startswith(mark) for mark, _ in _WIDE_ENCODINGS):
        raise DataError(
            f"{shown(file)} begins with the bytes {head[:8].hex(' ')}: UTF-16 without a byte order mark, or no text; "
            "convert it to UTF-8 (iconv -f UTF-16LE -t UTF-8)"
        )


def open_utf8(file: Path) -> BinaryIO:
    """Open a text file as UTF-8.

    Args:
        file: UTF-8, with or without a byte order mark (which stays: places are bytes of the file), or UTF-16 or
            UTF-32 with one; such a file is held in memory, and places are bytes of its UTF-8 form.

    Raises:
        DataError: the file cannot be opened, or is not in the encoding that its byte order mark says.
    """
    try:
        stream = file.open("rb")
        head = stream.read(4)
        stream.seek(0)
        encoding = next((name for mark, name in _WIDE_ENCODINGS if head.startswith(mark)), "")
        if not encoding:
            return stream
        with stream:
            if file.stat().st_size > _MOST_WIDE_BYTES:
                raise DataError(f"{shown(file)} is too large for {encoding}; convert it: iconv -f {encoding} -t UTF-8")
            return io.BytesIO(stream.read().decode(encoding, "surrogatepass").encode("utf-8", "surrogatepass"))
    except OSError as error:
        raise DataError(f"{shown(file)} cannot be read: {error.strerror}; make it readable, or name another") from error
    except UnicodeDecodeError as error:
        raise DataError(
            f"{shown(file)} says that it is {encoding}, but its byte {error.start} is not ({error.reason}); write it "
            "again as UTF-8"
        ) from error
