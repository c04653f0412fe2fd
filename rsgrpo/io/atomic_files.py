"""Small files that are written whole or not at all, and read with one sentence for whatever is wrong with them."""

from __future__ import annotations

import json
import os
import reprlib
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from rsgrpo.errors import RsgrpoError, shown
from rsgrpo.io.special_files import open_regular

PARTIAL_SUFFIX = ".partial"
"""The suffix of a file or folder that is being written, or was when its process died."""

_values = reprlib.Repr()
_values.maxstring = _values.maxother = _values.maxlong = 60


class FileError(RsgrpoError, ValueError):
    """A file that rsgrpo wrote cannot be read; the message names it and what is wrong."""


def shown_value(value: object) -> str:
    """A value for a message, cut where it is long."""
    return _values.repr(value)


def shown_error(error: BaseException) -> str:
    """An exception's words without the path that they may repeat, cut where they are long."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return shown(" ".join((text or type(error).__name__).split()))


@contextmanager
def replacing(path: Path, *, is_cache: bool = False) -> Iterator[IO[bytes]]:
    """A file to write in the block; it takes the place of ``path`` at the end, or vanishes if the block fails.

    What is there afterwards is the old file or the new one, even if the machine loses its power.

    Args:
        path: the file to replace; its folder is made if need be.
        is_cache: whether its content can be made again: then several processes may write it at once, and it may be
            lost with the machine's power.

    Yields:
        The file, open for bytes.

    Raises:
        OSError: the disk is full, or there is no permission.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    mark = f".{uuid.uuid4().hex}" if is_cache else ""
    partial = path.with_name(f"{path.name}{mark}{PARTIAL_SUFFIX}")
    try:
        with partial.open("wb") as file:
            yield file
            if not is_cache:
                file.flush()
                os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A folder to fill in the block; it appears under its name at the end.

    Args:
        folder: the folder to make, which is not there yet; the one that holds it is made if need be.

    Yields:
        The folder to fill, empty.
    """
    partial = folder.with_name(folder.name + PARTIAL_SUFFIX)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    yield partial
    partial.replace(folder)


def write_text(path: Path, text: str) -> None:
    """Write a text in UTF-8, whole or not at all.

    Args:
        path: the file to write.
        text: the new content; lone surrogates, which UTF-8 cannot say, become question marks.
    """
    with replacing(path) as file:
        file.write(text.encode("utf-8", "replace"))


def write_json(path: Path, document: object, *, indent: int | None = None) -> None:
    """Write JSON, whole or not at all.

    Args:
        path: the file to write.
        document: JSON values without NaN or infinity.
        indent: how many spaces a level is indented; None: all on one line.

    Raises:
        ValueError: a number is not finite.
    """
    content = json_bytes(document, indent=indent)
    with replacing(path) as file:
        file.write(content)


def json_bytes(document: object, *, indent: int | None = None) -> bytes:
    """JSON in UTF-8, and a line break; a lone surrogate, which UTF-8 cannot say, becomes the escape that says it.

    Args:
        document: JSON values without NaN or infinity.
        indent: how many spaces a level is indented; None: all on one line.

    Raises:
        ValueError: a number is not finite.
    """
    text = json.dumps(document, ensure_ascii=False, allow_nan=False, indent=indent)
    return f"{text}\n".encode("utf-8", "backslashreplace")


def parse_json(text: bytes | str) -> Any:
    """JSON values.

    Raises:
        ValueError: the text is no JSON; also where Python gives up on its depth.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("brackets nested too deeply") from error


def read_bytes(path: Path) -> bytes:
    """A file's content.

    Raises:
        FileError: the file is missing, empty, a folder, or may not be read.
    """
    try:
        with open_regular(str(path)) as file:
            content = file.readall()
    except FileNotFoundError as error:
        raise FileError(f"{shown(path)} is missing") from error
    except OSError as error:
        raise FileError(f"{shown(path)} cannot be read ({shown_error(error)})") from error
    if not content.strip(b"\0 \t\r\n"):
        raise FileError(f"{shown(path)} is empty")
    return content


def read_json(path: Path) -> Any:
    """JSON that :func:`write_json` wrote.

    Raises:
        FileError: the file is missing, empty, cut, no JSON, a folder, or may not be read.
    """
    try:
        return parse_json(read_bytes(path))
    except FileError:
        raise
    except ValueError as error:
        raise FileError(f"{shown(path)} is no JSON ({shown_error(error)})") from error


def read_json_object(path: Path) -> dict[str, Any]:
    """A JSON object that :func:`write_json` wrote.

    Raises:
        FileError: the file cannot be read as in :func:`read_json`, or holds no JSON object.
    """
    document = read_json(path)
    if not isinstance(document, dict):
        raise FileError(f"{shown(path)} holds a {type(document).__name__} where an object is expected")
    return document
