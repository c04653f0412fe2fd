"""The files of a data set: which they are, and their items one by one."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rsgrpo.errors import RsgrpoError
from rsgrpo.natural_order import natural_key
from rsgrpo.tables import TABLE_SUFFIXES, TableError, table_rows

TEST_FILE = "top3_test.jsonl"
"""The data file of an EVisRAG-Test folder."""

IMAGE_TABLE = "images.parquet"
"""Pages as they are downloaded, beside the data file."""

_NO_DATA_FILES = (IMAGE_TABLE, "dataset_info.json", "state.json", "dataset_dict.json")
_RESULT_CACHES = "cache-*.arrow"  # what `datasets` leaves beside a saved data set
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_SUFFIXES = (".jsonl", ".json", *TABLE_SUFFIXES)


class DataError(RsgrpoError, ValueError):
    """A data set cannot be used; the message names the items and the way out."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """An item as it stands in a file; ``columns`` is None where the line is not a JSON object."""

    place: str
    default_id: str
    columns: dict[str, Any] | None
    detail: str = ""


def data_files(path: str) -> list[Path]:
    """The files of a data set, by EVisRAG's path rules.

    Args:
        path: a file; a folder: its ``top3_test.jsonl`` if it has one, else all files of its first data
            file's type (those named after the split where there are such); or the id of a data set on the
            hub, which is fetched and read as a folder. ``path@split`` names the split, ``train`` if not.

    Returns:
        The files, at least one.

    Raises:
        DataError: there is no such data set.
    """
    location, split = path, "train"
    if "@" in path and not Path(path).exists():
        location, _, split = path.rpartition("@")
    place = Path(location)
    if place.is_file():
        if place.suffix not in _SUFFIXES:
            raise DataError(f"{location} is no {', '.join(_SUFFIXES)} file; name the data file, or its folder")
        return [place]
    if not place.exists() and _HUB_ID.fullmatch(location) and place.suffix not in _SUFFIXES:
        place = _fetch_from_hub(location)
    if not place.is_dir():
        raise DataError(
            f"there is no file, folder or hub data set {location!r}; check data.sft_path, rl_path, test_path"
        )
    if (place / "dataset_dict.json").is_file() and (place / split).is_dir():
        place, split = place / split, "train"  # saved by `datasets`, a folder for each split
    if (place / TEST_FILE).is_file():
        return [place / TEST_FILE]
    files = sorted(
        (
            file
            for file in place.iterdir()
            if file.suffix in _SUFFIXES and file.name not in _NO_DATA_FILES and not file.match(_RESULT_CACHES)
        ),
        key=lambda file: natural_key(file.name),
    )
    if not files:
        raise DataError(f"the folder {location} holds no {', '.join(_SUFFIXES)} file; name the data file itself")
    files = [file for file in files if file.suffix == files[0].suffix]
    named = [file for file in files if split in re.split(r"[^a-z0-9]+", file.stem.lower())]
    if not named and split != "train":
        raise DataError(f"the folder {location} has no file for the split {split!r}; it holds {_names(files)}")
    return named or files


def _names(files: list[Path]) -> str:
    return ", ".join(file.name for file in files)


def _fetch_from_hub(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, repo_type="dataset"))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise DataError(
            f"{name!r} is no file or folder here, and no data set that can be fetched from the hub: {error}"
        ) from error


def read_rows(file: Path) -> Iterator[Row]:
    """The items of a data file.

    Args:
        file: JSONL, JSON (a list) or parquet.

    Yields:
        One row an item; a line that is not a JSON object comes as a row that says so.

    Raises:
        DataError: the file as a whole is not what its name says.
    """
    if file.suffix == ".jsonl":
        yield from _jsonl_rows(file)
        return
    if file.suffix == ".json":
        try:
            items = json.loads(file.read_bytes())
        except ValueError as error:
            raise DataError(f"{file} is not JSON: {error}; a file of one object a line must be named .jsonl") from error
        if not isinstance(items, list):
            raise DataError(f"{file} holds a JSON {type(items).__name__}; expected a list of objects")
    else:
        items = _table_items(file)
    for index, item in enumerate(items):
        yield _as_row(item, f"{file.name} item {index}", f"{file.stem}-{index}")


def _table_items(file: Path) -> Iterator[dict[str, Any]]:
    try:
        yield from table_rows(file)
    except TableError as error:
        raise DataError(str(error)) from error


def _jsonl_rows(file: Path) -> Iterator[Row]:
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            place, default_id = f"{file.name} line {number}", f"{file.stem}-{number}"
            try:
                item = json.loads(line)
            except ValueError as error:
                yield Row(place=place, default_id=default_id, columns=None, detail=f"the line is not JSON: {error}")
                continue
            yield _as_row(item, place, default_id)


def _as_row(item: object, place: str, default_id: str) -> Row:
    if isinstance(item, dict):
        return Row(place=place, default_id=default_id, columns=item)
    detail = f"expected a JSON object, got {type(item).__name__}"
    return Row(place=place, default_id=default_id, columns=None, detail=detail)
