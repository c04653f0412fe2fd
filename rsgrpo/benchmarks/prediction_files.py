"""Read and write prediction files; a row that cannot be read is named, not dropped."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rsgrpo.benchmarks.base import BenchmarkError, Prediction, PredictionFile

ID_KEYS = ("sample_id", "qid", "id", "index")
"""Where a row's id may stand, best first."""
TEXT_KEYS = ("text", "pred", "pred_response", "response", "prediction")
"""Where a row's answer may stand, best first."""


def read_prediction_rows(path: Path) -> PredictionFile:
    """Predictions of one file: JSON lines, or one JSON list.

    Args:
        path: the file.

    Returns:
        A prediction for every row with an id (text or whole number) and a text; the others as problems.

    Raises:
        BenchmarkError: there is no such file, or a ``.json`` file is no list of rows.
    """
    predictions: list[Prediction] = []
    problems: list[str] = []
    for place, row in _rows(path):
        found = prediction_of_row(row)
        if isinstance(found, str):
            problems.append(f"{path}, {place}: {found}")
        else:
            predictions.append(found)
    return PredictionFile(predictions=tuple(predictions), problems=tuple(problems))


def prediction_of_row(row: object) -> Prediction | str:
    """A row's prediction, or what is wrong with the row."""
    if not isinstance(row, dict):
        return row if isinstance(row, str) else f"got {type(row).__name__}, expected an object"
    sample_id = first_of(row, ID_KEYS)
    text = first_of(row, TEXT_KEYS)
    if not isinstance(sample_id, str | int) or isinstance(sample_id, bool):
        return f"no id under any of {', '.join(ID_KEYS)}"
    if not isinstance(text, str):
        return f"id {sample_id}: no text under any of {', '.join(TEXT_KEYS)}"
    position = row.get("needle_position", -1)
    return Prediction(
        sample_id=str(sample_id),
        text=text,
        needle_position=position if isinstance(position, int) else -1,
        retrieved=_flags(row.get("retrieved")),
        relevant=_flags(row.get("relevant")),
    )


def first_of(row: Mapping[str, Any], keys: Sequence[str]) -> object:
    """The value under the first of some keys that the row has; None without any."""
    return next((row[key] for key in keys if key in row), None)


def read_json(path: Path) -> object:
    """A JSON file's content.

    Raises:
        BenchmarkError: there is no such file, or it is not whole; the message names the place.
    """
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise BenchmarkError(f"there is no prediction file {path}") from error
    except json.JSONDecodeError as error:
        raise BenchmarkError(
            f"{path} is no whole JSON: {error.msg} at character {error.pos} (line {error.lineno}); "
            "a run that was killed may have left half a file"
        ) from error


def write_json(path: Path, content: object) -> None:
    """Replace a file by JSON, all at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(content, ensure_ascii=False, indent=2), encoding="utf-8")
    partial.replace(path)


def write_lines(path: Path, rows: Iterable[Mapping[str, object]]) -> None:
    """Replace a file by JSON lines, all at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    with partial.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    partial.replace(path)


def _rows(path: Path) -> Iterator[tuple[str, object]]:
    if path.suffix == ".json":
        content = read_json(path)
        if not isinstance(content, list):
            raise BenchmarkError(f"{path}: got {type(content).__name__}, expected a list of predictions")
        for index, row in enumerate(content):
            yield f"row {index}", row
        return
    if not path.is_file():
        raise BenchmarkError(f"there is no prediction file {path}")
    offset = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                place = f"line {number} (byte {offset})"
                try:
                    yield place, json.loads(line)
                except ValueError as error:
                    yield place, f"not JSON ({error})"
            offset += len(line)


def _flags(value: object) -> tuple[int, ...]:
    return tuple(int(flag) for flag in value) if isinstance(value, list) else ()
