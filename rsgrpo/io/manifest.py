"""Whether a folder still holds what was written into it: every file's size and SHA-256, noted when it was complete.

The file ``manifest.json`` is written last. One that lists the manifest of a folder below it vouches for that folder,
too. Whoever goes on from a checkpoint checks all of it, the shares of all ranks included: all nodes see one file
system, as they must for any checkpoint. ``sha256sum`` gives the same digests.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from rsgrpo.errors import shown
from rsgrpo.io.atomic_files import FileError, read_json_object, shown_error, shown_value, write_json
from rsgrpo.io.record_codec import RecordError, from_plain, to_plain, version_problem

MANIFEST_FILE = "manifest.json"
CHECKPOINT_VERSION = 3
"""The version of the form of everything in a checkpoint; 1 had no manifest, and pickles, which this release does not
open."""

_FILES_OF_VERSION_1 = ("driver.pkl", "policy/mp_rank_00_model_states.pt", "batch.pkl")


@dataclass(frozen=True, kw_only=True, slots=True)
class FileDigest:
    """One file when it was complete.

    Attributes:
        name: the path of the file in the folder, with ``/``.
        num_bytes: the size of the file in bytes.
        sha256: the SHA-256 of the file as 64 hexadecimal digits.
    """

    name: str
    num_bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """What stands in ``manifest.json``.

    Attributes:
        version: the version of the form, :data:`CHECKPOINT_VERSION`.
        files: the digests of all files that belong to the folder.
    """

    version: int
    files: tuple[FileDigest, ...] = field(default_factory=tuple)


def digest(folder: Path, name: str) -> FileDigest:
    """Size and SHA-256 of a file as it stands there now.

    Args:
        folder: the folder that the file lies in.
        name: the path of the file in the folder, with ``/``.

    Raises:
        OSError: the file cannot be read.
    """
    with (folder / name).open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        return FileDigest(name=name, num_bytes=file.tell(), sha256=sha256)


def _digests(folder: Path, names: Sequence[str]) -> list[FileDigest]:
    """Digests of several files, which are read at the same time: hashing leaves the interpreter free."""
    with ThreadPoolExecutor(max_workers=max(1, min(len(names), os.cpu_count() or 1))) as pool:
        return list(pool.map(lambda name: digest(folder, name), names))


def write_manifest(folder: Path, known: Iterable[FileDigest] = ()) -> None:
    """Note every file of a complete folder.

    Args:
        folder: the folder, in which nothing changes any more. Of a folder below that has a manifest of its own only
            that is noted.
        known: the digests that need not be computed again, such as those that ranks made of what they wrote.
    """
    found = {file_digest.name: file_digest for file_digest in known}
    missing = [name for name in _counted(folder) if name not in found]
    found |= {file_digest.name: file_digest for file_digest in _digests(folder, missing)}
    manifest = Manifest(version=CHECKPOINT_VERSION, files=tuple(found[name] for name in sorted(found)))
    write_json(folder / MANIFEST_FILE, to_plain(manifest), indent=1)


def _counted(folder: Path) -> list[str]:
    """Names of the files that a manifest lists."""
    names = []
    for path in sorted(folder.iterdir()):
        if path.is_file():
            names += [path.name] if path.name != MANIFEST_FILE else []
        elif (path / MANIFEST_FILE).exists():
            names.append(f"{path.name}/{MANIFEST_FILE}")
        else:
            names += [f"{path.name}/{name}" for name in _counted(path)]
    return names


def folder_problem(folder: Path, needed: Iterable[str] = ()) -> str:
    """What keeps a folder from being used.

    Args:
        folder: the folder that :func:`write_manifest` completed.
        needed: names that must be among its files.

    Returns:
        What is wrong, without the folder's name; empty: every file is what it was.
    """
    try:
        names, problem = _read_manifest(folder)
        if problem:
            return problem
        if absent := sorted(set(needed) - set(names)):
            return f"{MANIFEST_FILE} does not list {absent[0]}"
        for name, expected in names.items():
            if size_problem := _size_problem(folder / name, expected):
                return f"{name} {size_problem}"
        found = _digests(folder, list(names))
    except OSError as error:
        name = Path(error.filename).name if isinstance(error.filename, str) else "a file"
        return f"{name} cannot be read ({shown_error(error)})"
    for file_digest in found:
        if file_digest.sha256 != names[file_digest.name].sha256:
            return f"{file_digest.name} has other bytes than when it was written"
    for name in names:
        if name.endswith(f"/{MANIFEST_FILE}"):
            inner = (folder / name).parent
            if inner_problem := folder_problem(inner):
                return f"{inner.name}/{inner_problem}"
    return ""


def _read_manifest(folder: Path) -> tuple[Mapping[str, FileDigest], str]:
    """The digests of a manifest's files by name, or what is wrong with it."""
    path = folder / MANIFEST_FILE
    if not path.exists():
        old = next((name for name in _FILES_OF_VERSION_1 if (folder / name).exists()), "")
        return {}, version_problem("it", 1, CHECKPOINT_VERSION) if old else f"{MANIFEST_FILE} is missing"
    try:
        document = read_json_object(path)
    except FileError as error:
        return {}, str(error).replace(shown(path), MANIFEST_FILE)
    if document.get("version") != CHECKPOINT_VERSION:
        return {}, version_problem("it", document.get("version"), CHECKPOINT_VERSION)
    try:
        files = from_plain(Manifest, document).files
    except RecordError as error:
        return {}, f"{MANIFEST_FILE} is no manifest ({error})"
    if outside := [file.name for file in files if file.name.startswith("/") or ".." in file.name.split("/")]:
        return {}, f"{MANIFEST_FILE} names a file outside the folder: {shown_value(outside[0])}"
    return {file.name: file for file in files}, ""


def _size_problem(path: Path, expected: FileDigest) -> str:
    if not path.exists():
        return "is missing"
    if not path.is_file():
        return "is no file"
    num_bytes = path.stat().st_size
    if num_bytes != expected.num_bytes:
        return "is empty" if not num_bytes else f"has {num_bytes} bytes instead of {expected.num_bytes}"
    return ""
