"""The files of a data set: which they are, and what is wrong where there are none."""

from __future__ import annotations

import errno
import glob
import os
import re
from collections.abc import Iterable
from pathlib import Path

from rsgrpo.data.file_bytes import DataError, check_kind
from rsgrpo.data.hub import HubError, fetch_from_hub
from rsgrpo.data.media_paths import address_scheme, likely_cause, spellings
from rsgrpo.data.tables import TABLE_SUFFIXES
from rsgrpo.errors import shown
from rsgrpo.io.natural_order import natural_key
from rsgrpo.io.special_files import special_kind

TEST_FILE = "top3_test.jsonl"
"""The name of the data file of an EVisRAG-Test folder."""

IMAGE_TABLE = "images.parquet"
"""The name of the table of pages that is downloaded beside the data file."""

_NO_DATA_FILES = (IMAGE_TABLE, "dataset_info.json", "dataset_infos.json", "state.json", "dataset_dict.json")
_RESULT_CACHES = "cache-*.arrow"  # what `datasets` leaves beside a saved data set
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_HUB_PAGE = re.compile(r"(?:https?://(?:www\.)?(?:huggingface\.co|hf\.co)|hf:/)/datasets/([\w.-]+/[\w.-]+)")
_SUFFIXES = (".jsonl", ".ndjson", ".json", *TABLE_SUFFIXES)
_WAYS_OUT = {
    ".gz": "unpack it: gunzip",
    ".bz2": "unpack it: bunzip2",
    ".xz": "unpack it: unxz",
    ".zst": "unpack it: unzstd",
    ".zip": "unpack it: unzip",
    ".tar": "unpack it: tar xf",
    ".tgz": "unpack it: tar xzf",
    ".csv": "convert it: pandas.read_csv(…).to_json(…, orient='records', lines=True)",
    ".tsv": "convert it: pandas.read_csv(…, sep='\\t').to_json(…, orient='records', lines=True)",
    ".xlsx": "convert it: pandas.read_excel(…).to_json(…, orient='records', lines=True)",
    ".xls": "convert it: pandas.read_excel(…).to_json(…, orient='records', lines=True)",
    ".pkl": "a pickle can run code; let who made it write JSONL",
    ".pickle": "a pickle can run code; let who made it write JSONL",
    ".yaml": "a manifest is a source of data.mixture",
    ".yml": "a manifest is a source of data.mixture",
}

__all__ = ["IMAGE_TABLE", "TEST_FILE", "DataError", "check_output", "data_files"]


def data_files(path: str) -> list[Path]:
    """The files of a data set.

    Args:
        path: a file, a ``file://`` URL or a pattern such as ``part-*.jsonl``, ``~`` and ``$NAME`` resolved; a folder:
            its ``top3_test.jsonl`` if it has one, else all files of its first data file's type (those named after
            the split where there are such), or those of its only folder with data; or the id of a data set on the
            hub, which is fetched and read as a folder. ``path@split`` names the split, ``train`` if not.

    Returns:
        The files, at least one, in natural order; none is empty or plainly of another kind.

    Raises:
        DataError: there is no such data set, or a file of it does not hold what its name says.
    """
    try:
        files = _found(path)
    except OSError as error:
        reason = (
            "is no path: it is too long" if error.errno == errno.ENAMETOOLONG else f"cannot be read: {error.strerror}"
        )
        raise DataError(f"the data path {shown(path)!r} {reason}; name a file or folder that you may read") from error
    for file in files:
        check_kind(file)
    return files


def check_output(file: Path, sources: Iterable[Path], option: str) -> None:
    """Refuse to write a file over one that it is made from, under whichever name: what was read would be lost.

    Args:
        file: the file to write.
        sources: the files that are read for it.
        option: what names the file on the command line, such as ``--out``.

    Raises:
        DataError: the file is one of the sources.
    """
    for source in sources:
        if file.exists() and file.samefile(source):
            raise DataError(f"{shown(file)} is the data set itself; name another file with {option}")


def _found(path: str) -> list[Path]:
    if not path.strip():
        raise DataError("the data path is empty; name a file, a folder, or a data set of the hub")
    _refuse_address(path)
    location, split = path, "train"
    place = _existing(path)
    if place is None and "@" in path:
        location, _, split = path.rpartition("@")
        place = _existing(location)
    if place is None and any(mark in location for mark in "*?["):
        matches = [Path(name) for spelling in spellings(location) for name in glob.glob(spelling)]  # noqa: PTH207 - absolute too
        if matches:
            return sorted(dict.fromkeys(matches), key=lambda file: natural_key(str(file)))
    if place is None:
        place = _elsewhere(location)
    if place.is_file():
        return [_known_kind(place)]
    if not place.is_dir():
        kind = special_kind(place) or "neither a file nor a folder"
        raise DataError(f"{shown(location)} is {kind}; name a data file")
    return _files_of_folder(place, location, split)


def _existing(location: str) -> Path | None:
    if "\0" in location:
        return None
    return next((Path(spelling) for spelling in spellings(location) if spelling and os.path.exists(spelling)), None)  # noqa: PTH110


def _refuse_address(path: str) -> None:
    scheme = address_scheme(path)
    page = _HUB_PAGE.match(path.strip())
    if page:
        raise DataError(f"{shown(path)} is an address; name the hub's data set as {page[1]!r}")
    if scheme:
        raise DataError(
            f"{shown(path)} is an address ({scheme}://), which is not read from; download the data set and "
            "name its file or folder"
        )


def _known_kind(file: Path) -> Path:
    suffix = file.suffix.lower()
    if suffix in _SUFFIXES:
        return file
    way_out = _WAYS_OUT.get(suffix, "rename it if it holds one of these")
    raise DataError(f"{shown(file)} is no {', '.join(_SUFFIXES)} file; {way_out}")


def _elsewhere(location: str) -> Path:
    """The folder of a data set fetched from the hub, for a name that is no path here; an error if it is none."""
    place = Path(location)
    kind = special_kind(place)
    if kind:
        raise DataError(f"{shown(location)} is {kind}; fix the link")
    is_name = _HUB_ID.fullmatch(location) and place.suffix.lower() not in (*_SUFFIXES, *_WAYS_OUT)
    if is_name and not place.parent.is_dir():
        return _fetch_from_hub(location)
    cause = likely_cause(location, [f"{Path.cwd()}/"])
    where = "" if place.is_absolute() else f" (looked for in {shown(Path.cwd(), 80)})"
    raise DataError(
        f"there is no file, folder or hub data set {shown(location, 120)!r}{where}"
        + (f": {shown(cause, 150)}" if cause else "; check the path")
    )


def _files_of_folder(folder: Path, location: str, split: str) -> list[Path]:
    if (folder / "dataset_dict.json").is_file() and (folder / split).is_dir():
        folder, split = folder / split, "train"  # saved by `datasets`, a folder for each split
    if (folder / TEST_FILE).is_file():
        return [folder / TEST_FILE]
    files = _data_files_in(folder)
    if not files:  # as the hub's data sets keep them, in data/
        below = {
            subfolder: found
            for subfolder in sorted(folder.iterdir())
            if subfolder.is_dir() and (found := _data_files_in(subfolder))
        }
        if len(below) > 1:
            raise DataError(
                f"the folder {shown(location, 120)} holds no {', '.join(_SUFFIXES)} file itself, but its folders "
                f"{shown(', '.join(subfolder.name for subfolder in below), 120)} do; name one of them"
            )
        files = [file for found in below.values() for file in found]
    if not files:
        others = sorted({file.suffix for file in folder.iterdir() if file.suffix.lower() in _WAYS_OUT})
        way_out = f"; of its {others[0]} files: {_WAYS_OUT[others[0].lower()]}" if others else ""
        raise DataError(
            f"the folder {shown(location)} holds no {', '.join(_SUFFIXES)} file{way_out}; name the data file itself"
        )
    files = [file for file in files if file.suffix == files[0].suffix]
    named = [file for file in files if split in re.split(r"[^a-z0-9]+", file.stem.lower())]
    if not named and split != "train":
        raise DataError(
            f"the folder {shown(location, 120)} has no file for the split {split!r}; it holds {_names(files)}"
        )
    return named or files


def _data_files_in(folder: Path) -> list[Path]:
    return sorted(
        (
            file
            for file in folder.iterdir()
            if file.suffix.lower() in _SUFFIXES
            and file.name not in _NO_DATA_FILES
            and not file.name.startswith(".")
            and not file.match(_RESULT_CACHES)
            and file.is_file()
        ),
        key=lambda file: natural_key(file.name),
    )


def _names(files: list[Path]) -> str:
    return shown(", ".join(file.name for file in files), 120)


def _fetch_from_hub(name: str) -> Path:
    try:
        return fetch_from_hub(name, "data set")
    except HubError as error:
        raise DataError(f"{shown(name)!r} is no file or folder here, and {error}") from error
