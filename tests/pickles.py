"""Find files that could run code when they are opened: pickles, alone or in a zip archive as torch writes them."""

from __future__ import annotations

import pickletools
import zipfile
from pathlib import Path

_MAX_BYTES = 1 << 20  # of a file that is read to see whether it is a pickle: its first instructions tell


def pickled_files(folder: Path) -> list[Path]:
    """Every file below a folder that is a pickle or holds one.

    Args:
        folder: to look through.
    """
    return [path for path in sorted(folder.rglob("*")) if path.is_file() and _is_pickled(path)]


def _is_pickled(path: Path) -> bool:
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            return any(_starts_a_pickle(archive.read(name)[:_MAX_BYTES]) for name in archive.namelist())
    with path.open("rb") as file:
        return _starts_a_pickle(file.read(_MAX_BYTES))


def _starts_a_pickle(content: bytes) -> bool:
    """Whether Python's unpickler would follow the first instructions: a version, or a whole program."""
    if content[:1] == b"\x80" and content[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return True
    try:
        return sum(1 for _ in pickletools.genops(content)) > 1
    except Exception:  # whatever it stumbles over: it is no program
        return False
