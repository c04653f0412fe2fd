"""Which files a data set consists of, and which of their records are wanted."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rsgrpo.data.files import DataError, data_files
from rsgrpo.data.readers.records import raw_records
from rsgrpo.errors import shown
from rsgrpo.io.special_files import open_regular, special_kind

_SAMPLING = re.compile(r"all|(first|end|random):(\d+)(%?)")
_BRACES = re.compile(r"\{([^{}]*)\}")
_MANIFEST_SUFFIXES = (".yaml", ".yml")


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceFile:
    """A data file and the share of it that is wanted.

    Attributes:
        file: the path of a JSON list, JSONL or parquet file.
        sampling: which of its records are wanted: ``all``, ``first:N``, ``end:N`` or ``random:N``; N may be a share
            such as ``10%``.
    """

    file: Path
    sampling: str = "all"


def check_sampling(sampling: str) -> None:
    """Refuse what is not ``all``, ``first:N``, ``end:N`` or ``random:N`` with a number or a share up to 100 %.

    Raises:
        DataError: the text is none of these.
    """
    found = _SAMPLING.fullmatch(sampling)
    if found is None or (found[3] and int(found[2]) > 100):
        raise DataError(
            f"sampling {sampling!r} is not known; choose all, first:N, end:N or random:N, N may be a share like 10%"
        )


def source_files(path: str, sampling: str) -> tuple[SourceFile, ...]:
    """The files of a data set.

    Args:
        path: a LLaVA manifest (YAML with ``datasets: [{json_path, sampling_strategy}]``, paths relative to it);
            names in braces, ``part_{1,2}.json``; or whatever :func:`rsgrpo.data.files.data_files` finds.
        sampling: what is wanted of each file; must be ``all`` for a manifest, which says it itself.

    Raises:
        DataError: there is no such data set, or the manifest names no files.
    """
    check_sampling(sampling)
    if Path(path).suffix in _MANIFEST_SUFFIXES:
        if sampling != "all":
            raise DataError(f"{path} says itself how to sample; leave sampling={sampling!r} out")
        return _manifest(Path(path))
    braces = _BRACES.search(path)
    if braces is None:
        return tuple(SourceFile(file=file, sampling=sampling) for file in data_files(path))
    names = [path[: braces.start()] + name.strip() + path[braces.end() :] for name in braces[1].split(",")]
    return tuple(source for name in names for source in source_files(name, sampling))


def _manifest(file: Path) -> tuple[SourceFile, ...]:
    import yaml

    try:
        with open_regular(str(file)) as stream:
            content: Any = yaml.safe_load(stream.readall().decode("utf-8"))
    except OSError as error:
        kind = special_kind(file)
        told = f"is {kind}" if kind else f"cannot be read: {error.strerror}"
        raise DataError(f"{shown(file)} {told}; name a YAML manifest") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError(f"{file} cannot be read as a YAML manifest: {error}") from error
    entries = content.get("datasets") if isinstance(content, dict) else None
    if not isinstance(entries, list) or not entries:
        raise DataError(f"{file} has no list 'datasets'; expected datasets: [{{json_path: …, sampling_strategy: all}}]")
    sources: list[SourceFile] = []
    for number, entry in enumerate(entries):
        if not isinstance(entry, dict) or not isinstance(entry.get("json_path"), str):
            raise DataError(f"{file}: entry {number} has no json_path, got {entry!r:.80}")
        sampling = entry.get("sampling_strategy", "all")
        if not isinstance(sampling, str):
            raise DataError(f"{file}: entry {number}: sampling_strategy must be text, got {sampling!r:.80}")
        place = Path(entry["json_path"])
        beside = place if place.is_absolute() else file.parent / place
        sources += source_files(str(beside if "{" in beside.name or beside.exists() else place), sampling)
    return tuple(sources)


def wanted_records(source: SourceFile, prefix: str, seed: tuple[int, int]) -> bytearray | None:
    """Which records of a file are wanted.

    Args:
        source: the file, and which share of it is wanted.
        prefix: where the records stand, see :func:`rsgrpo.data.readers.records.raw_records`.
        seed: the seed of ``random``, which draws without repetition and keeps the file's order.

    Returns:
        One byte for each record, 1 where it is wanted, up to the last that is; None: all records are wanted.

    Example:
        ``end:50%`` of a file with three records is ``bytearray([0, 1, 1])``: shares are rounded up.
    """
    found = _SAMPLING.fullmatch(source.sampling)
    if found is None or source.sampling == "all":
        return None
    kind, number, is_share = found[1], int(found[2]), bool(found[3])
    if kind == "first" and not is_share:
        return bytearray(b"\1" * number)  # nothing to count
    total = sum(1 for _ in raw_records(source.file, prefix=prefix))
    count = min(total, math.ceil(total * number / 100) if is_share else number)
    if kind == "first":
        return bytearray(b"\1" * count)
    mask = np.zeros(total, dtype=np.uint8)
    if kind == "end":
        mask[total - count :] = 1
    else:
        mask[np.random.default_rng(seed).permutation(total)[:count]] = 1
    return bytearray(mask.tobytes())
