"""Read prediction files; a row that cannot be read is named, not dropped."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from rsgrpo.errors import shown
from rsgrpo.evaluation.benchmarks.base import (
    MENDED_TEXT,
    NOT_TEXT,
    ODD_FLAGS,
    ODD_POSITION,
    Columns,
    Oddity,
    Prediction,
    PredictionFile,
)
from rsgrpo.evaluation.benchmarks.prediction_text import prediction_rows
from rsgrpo.io.ids import plain_id, well_formed

_SHOWN = 60
_LARGEST_POSITION = 10**9


class RowReader:
    """Turns rows into predictions and notes what was wrong with them.

    Args:
        path: the file or folder, for messages.
        columns: where ids and answers stand.
    """

    def __init__(self, path: Path, columns: Columns) -> None:
        self._path = path
        self._columns = columns
        self._predictions: list[Prediction] = []
        self._problems: list[str] = []
        self._oddities: list[Oddity] = []
        self._seen_columns: dict[str, None] = {}

    def add_problem(self, place: str, problem: str) -> None:
        """Count a row that is no prediction."""
        self._problems.append(f"{shown(self._path)}, {place}: {problem}")

    def add_row(self, place: str, row: object) -> None:
        """Read a row by its columns."""
        if not isinstance(row, Mapping):
            self.add_problem(place, f"got {'null' if row is None else type(row).__name__}, expected an object")
            return
        if not row.keys() <= self._seen_columns.keys():
            self._seen_columns.update(dict.fromkeys(row))
        ids = [row[name] for name in self._columns.ids if row.get(name) is not None]
        sample_id = plain_id(ids[0]) if ids else None
        if sample_id is None:
            got = f", got {shown(repr(ids[0]), _SHOWN)}" if ids else ""
            self.add_problem(place, f"no id (text or whole number) under {_either(self._columns.ids)}{got}")
            return
        present = [name for name in self._columns.texts if name in row]
        if not present:
            wanted = _either(self._columns.texts)
            self.add_problem(place, f"id {shown(sample_id, _SHOWN)}: no answer under {wanted}")
            return
        value = next((row[name] for name in present if row[name] is not None), None)
        self.add(
            place,
            sample_id,
            value,
            position=row.get("needle_position"),
            retrieved=row.get("retrieved"),
            relevant=row.get("relevant"),
        )

    def add(
        self,
        place: str,
        sample_id: str,
        value: object,
        *,
        position: object = None,
        retrieved: object = None,
        relevant: object = None,
        question: str = "",
    ) -> None:
        """Take an answer; one that is no text is noted.

        Args:
            place: where the row stands in the file, for messages.
            sample_id: the id as it is compared.
            value: the answer; what is no text is noted.
            position: the position of the needle; None without.
            retrieved: 0 or 1 for each image, by what was retrieved; None without.
            relevant: 0 or 1 for each image, by gold; None without.
            question: what the file says was asked; empty without.
        """
        where = (place, sample_id)
        text, defect = _answer(value)
        text, num_mended = well_formed(text)
        if defect:
            self._note(NOT_TEXT, where, f"the answer is {defect}, expected a text")
        if num_mended:
            self._note(MENDED_TEXT, where, f"{num_mended} lone surrogates (half characters) replaced")
        self._predictions.append(
            Prediction(
                sample_id=sample_id,
                text=text,
                defect=defect,
                question=question,
                needle_position=self._position(where, position),
                retrieved=self._flags(where, "retrieved", retrieved),
                relevant=self._flags(where, "relevant", relevant),
            )
        )

    def file(self) -> PredictionFile:
        """Everything that was read so far."""
        return PredictionFile(
            predictions=tuple(self._predictions),
            problems=tuple(self._problems),
            oddities=tuple(self._oddities),
            columns=tuple(self._seen_columns),
        )

    def _note(self, kind: str, where: tuple[str, str], detail: str) -> None:
        place, sample_id = where
        place = f"{shown(self._path)}, {place}, id {shown(sample_id, _SHOWN)}"
        self._oddities.append(Oddity(kind=kind, detail=f"{place}: {detail}"))

    def _position(self, where: tuple[str, str], value: object) -> int:
        if value is None or (value == -1 and not isinstance(value, bool)):
            return -1
        name = plain_id(value)
        is_whole = name is not None and name.isdecimal() and len(name) < len(str(_LARGEST_POSITION))
        if not is_whole or isinstance(value, str):
            outcome = "read as a number" if is_whole else "left out"
            self._note(
                ODD_POSITION,
                where,
                f"needle_position is {shown(repr(value), _SHOWN)}, expected a whole number; {outcome}",
            )
        return int(name) if is_whole and name is not None else -1

    def _flags(self, where: tuple[str, str], name: str, value: object) -> tuple[int, ...]:
        if value is None:
            return ()
        # True == 1 and 1.0 == 1: all three mean yes.
        if isinstance(value, list) and all(isinstance(flag, bool | int | float) and flag in (0, 1) for flag in value):
            return tuple(int(flag) for flag in value)
        self._note(
            ODD_FLAGS,
            where,
            f"{name} is {shown(repr(value), _SHOWN)}, expected a list of 0 and 1; the list is left out",
        )
        return ()


def read_prediction_rows(path: Path, columns: Columns) -> PredictionFile:
    """Predictions of one file.

    Args:
        path: the file; what it holds decides how it is read, see :mod:`rsgrpo.evaluation.benchmarks.prediction_text`.
        columns: where ids and answers stand.

    Returns:
        A prediction for every row with an id and an answer; the others as problems.

    Raises:
        BenchmarkError: there is no such file, or it holds no rows.
    """
    reader = RowReader(path, columns)
    for row in prediction_rows(path, columns):
        if row.problem:
            reader.add_problem(row.place, row.problem)
        else:
            reader.add_row(row.place, row.value)
    return reader.file()


def _answer(value: object) -> tuple[str, str]:
    """An answer's text, and what it is if it is none.

    What strict mode can still read: a number, and a list of one text. No original reads either.
    """
    if isinstance(value, str):
        return value, ""
    if value is None:
        return "", "null"
    if isinstance(value, bool):
        return "", "true or false"
    if isinstance(value, int | float):
        return (str(value), "a number") if math.isfinite(value) else ("", f"{value}")
    if isinstance(value, list):
        is_one_text = len(value) == 1 and isinstance(value[0], str)
        return (value[0] if is_one_text else ""), f"a list of {len(value)}"
    return "", "an object"


def _either(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"
