"""From a prediction file's bytes to its rows, by what it holds and not by its name.

Read are JSON lines, a JSON list, an object that wraps one list (``{"results": […]}``), and an object from id to
answer. The text may be UTF-8, UTF-16 or UTF-32, with or without a byte order mark. Everything else is named.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rsgrpo.errors import shown
from rsgrpo.evaluation.benchmarks.base import BenchmarkError, Columns

_BINARY = {
    b"\x1f\x8b": "gzip data",
    b"PK\x03\x04": "a zip archive or an Excel workbook",
    b"PAR1": "a parquet table",
    b"%PDF": "a PDF",
    b"\x89PNG": "a picture",
    b"\xff\xd8\xff": "a picture",
    b"BZh": "bzip2 data",
    b"\xfd7zXZ": "xz data",
    b"\x28\xb5\x2f\xfd": "zstd data",
    b"SQLite format": "an SQLite database",
    b"\x80\x04": "a Python pickle",
    b"\x93NUMPY": "a numpy array",
}
_LFS_POINTER = "version https://git-lfs"
_WRAPPERS = frozenset(("results", "result", "predictions", "preds", "answers", "responses", "outputs", "data"))
_CUT = ("unexpected end of data", "truncated data")
_LONGEST_CHARACTER_BYTES = 4
_SHOWN = 60


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One entry of a prediction file.

    Attributes:
        place: the place of the entry in the file, for messages.
        value: the JSON value of the entry.
        problem: why the entry could not be read; then ``value`` means nothing.
    """

    place: str
    value: object = None
    problem: str = ""


def prediction_rows(path: Path, columns: Columns) -> list[Row]:
    """The rows of a prediction file.

    Args:
        path: the prediction file.
        columns: the columns by which a row is told from an object of ids and answers.

    Returns:
        The rows in the order of the file, at least one.

    Raises:
        BenchmarkError: there is no such file, it is empty, or it is of another kind, which the message names.
    """
    text = read_text(path)
    content, problem = _parsed(text)
    if problem:
        return _lines(path, text, problem)
    rows = _rows_of(path, text, content, columns)
    if not rows:
        raise BenchmarkError(f"{shown(path)} holds no predictions; name the file with the model's answers")
    return rows


def read_json(path: Path) -> object:
    """A JSON file's content.

    Raises:
        BenchmarkError: there is no such file, or its JSON is broken; the message names the place.
    """
    content, problem = _parsed(read_text(path))
    if problem:
        raise BenchmarkError(
            f"{shown(path)} is no whole JSON: {problem}; a run that was killed may have left half a file"
        )
    return content


def read_text(path: Path) -> str:
    """A text file's content, line ends as ``\\n``; half a character at its end is left out.

    Raises:
        BenchmarkError: there is no such file, it is empty, or it is no text in a Unicode encoding.
    """
    data = _bytes(path)
    kind = next((kind for magic, kind in _BINARY.items() if data.startswith(magic)), "")
    if kind:
        raise BenchmarkError(f"{shown(path)} is {kind}, not JSON; unpack or convert it to JSON lines")
    encoding = json.detect_encoding(data)
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        if error.reason not in _CUT or error.start < len(data) - _LONGEST_CHARACTER_BYTES:
            number = data.count(b"\n", 0, error.start) + 1
            raise BenchmarkError(
                f"{shown(path)} is not {encoding.removesuffix('-sig')}: byte 0x{data[error.start]:02x} at byte "
                f"{error.start} (line {number}); it may be Windows-1252 or another local encoding: save it as UTF-8"
            ) from error
        text = data[: error.start].decode(encoding)
    text = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    if not text.strip("\0 \t\n"):
        raise BenchmarkError(f"{shown(path)} is empty; the run that should have written it may have failed")
    if text.startswith(_LFS_POINTER):
        raise BenchmarkError(f"{shown(path)} is a Git LFS pointer, not the file itself; run git lfs pull")
    return text


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise BenchmarkError(f"there is no prediction file {shown(path)}") from error
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise BenchmarkError(f"the prediction file {shown(path)} cannot be read: {shown(reason)}") from error


def _parsed(text: str) -> tuple[Any, str]:
    """The JSON value of a text, or what is wrong with it."""
    try:
        return json.loads(text), ""
    except json.JSONDecodeError as error:
        return None, f"{error.msg} at character {error.pos} (line {error.lineno})"
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, brackets nested thousands deep
        return None, shown(error, _SHOWN)


def _lines(path: Path, text: str, problem: str) -> list[Row]:
    rows = []
    for number, line in enumerate(text.split("\n"), start=1):
        bare = line.strip("\0 \t\ufeff")
        if bare:
            value, defect = _parsed(bare)
            rows.append(Row(place=f"line {number}", value=value, problem=defect and f"not JSON ({defect})"))
    if any(not row.problem and isinstance(row.value, dict | list) for row in rows):
        return rows
    first = text.strip("\0 \t\n").partition("\n")[0]
    if first[0] in "[{":
        raise BenchmarkError(
            f"{shown(path)} is no whole JSON, and no line of it is either: {problem}; a run that was killed may have "
            "left half a file"
        )
    kind = "a table (CSV or TSV)" if "," in first or "\t" in first else "plain text"
    raise BenchmarkError(
        f"{shown(path)} is no JSON: its first line is {shown(first, _SHOWN)!r}, so it looks like {kind}; write one "
        'JSON object a line, such as {"sample_id": "7", "text": "…"}'
    )


def _rows_of(path: Path, text: str, content: object, columns: Columns) -> list[Row]:
    if isinstance(content, list):
        return [Row(place=f"row {index}", value=value) for index, value in enumerate(content)]
    if not isinstance(content, dict):
        raise BenchmarkError(f"{shown(path)}: got {_kind(content)}, expected a list of predictions or one a line")
    if not content:
        return []
    if content.keys() & {*columns.ids, *columns.texts}:
        return [Row(place="line 1", value=content)]
    lists = [name for name, value in content.items() if isinstance(value, list) and _is_list_of_rows(value)]
    if len(lists) == 1:
        return [
            Row(place=f"{shown(lists[0], _SHOWN)}[{index}]", value=row) for index, row in enumerate(content[lists[0]])
        ]
    pairs = _answers_by_id(content, text, columns)
    if not lists and all(map(_may_be_answer, (value for _, value in pairs))):
        return [_row_of_pair(name, value, columns) for name, value in pairs]
    names = ", ".join(shown(name, _SHOWN) for name in [*content][:5])
    found = f"lists under {', '.join(shown(name, _SHOWN) for name in lists[:5])}" if lists else f"the keys {names}"
    raise BenchmarkError(
        f"{shown(path)} is an object with {found}; expected a list of predictions, one object per line, an object with "
        "one list, or one from id to answer"
    )


def _answers_by_id(content: dict[str, Any], text: str, columns: Columns) -> list[tuple[str, Any]]:
    """The entries of an object from id to answer, or of the one inside it that is named as such."""
    wrapped = [name for name, value in content.items() if isinstance(value, dict) and name.lower() in _WRAPPERS]
    if len(wrapped) == 1 and not content[wrapped[0]].keys() & {*columns.ids, *columns.texts}:
        return list(content[wrapped[0]].items())
    return _pairs(text)


def _may_be_answer(value: object) -> bool:
    """Whether a value may be an answer in an object from id to answer: all but lists of other things than texts."""
    return not isinstance(value, list) or (bool(value) and all(isinstance(part, str) for part in value))


def _is_list_of_rows(value: list[Any]) -> bool:
    return any(isinstance(row, dict) for row in value)


def _pairs(text: str) -> list[tuple[str, Any]]:
    """The names and values of the outermost object with doubled names kept, which Python's own reading drops."""
    outermost: list[tuple[str, Any]] = []

    def keep(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        outermost[:] = pairs
        return dict(pairs)

    json.loads(text, object_pairs_hook=keep)
    return outermost


def _row_of_pair(name: str, value: object, columns: Columns) -> Row:
    """A row for one entry of an object from id to answer; a value that is an object itself is the row."""
    place = f"entry {shown(name, _SHOWN)!r}"
    if isinstance(value, Mapping):
        has_id = any(value.get(key) is not None for key in columns.ids)
        return Row(place=place, value=dict(value) if has_id else {**value, columns.ids[0]: name})
    return Row(place=place, value={columns.ids[0]: name, columns.texts[0]: value})


def _kind(value: object) -> str:
    return "null" if value is None else type(value).__name__
