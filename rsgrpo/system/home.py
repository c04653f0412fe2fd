"""The home folder, in which libraries keep their caches: one that can be written, whatever the environment says."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from rsgrpo.errors import RsgrpoError, shown

_CACHE = ".cache"


class HomeError(RsgrpoError):
    """There is no place for the caches of libraries; the message says why."""


def choose_home() -> str:
    """Give libraries a home folder where this user has none, or one that cannot be written.

    The environment of this process, and of those that it starts, names it afterwards.

    Returns:
        A line about the new home folder for the user; empty where nothing was changed.

    Raises:
        HomeError: no such folder can be made.
    """
    # Libraries ask for the user's name, and fail where the system knows none.
    os.environ.setdefault("USER", str(os.getuid()))
    try:
        home = os.environ.get("HOME") or str(Path.home())
    except RuntimeError:  # the user id has no entry in the system's list of users, as in some containers
        home = ""
    problem = _problem(home)
    if not problem:
        os.environ["HOME"] = home
        return ""
    instead = Path(tempfile.gettempdir()) / f"rsgrpo-home-{os.getuid()}"
    try:
        instead.mkdir(mode=0o700, exist_ok=True)
        is_ours = instead.lstat().st_uid == os.getuid() and not instead.is_symlink()
        other = _problem(str(instead)) if is_ours else "is another user's"
    except OSError as error:
        other = f"cannot be made: {error.strerror}"
    if other:
        raise HomeError(
            f"HOME={shown(home)} {problem}, and {instead} {other}; set HOME to a folder that can be written, for the "
            "caches of libraries"
        )
    os.environ["HOME"] = str(instead)
    return f"HOME={shown(home)} {problem}: {instead} is used for caches"


def _problem(home: str) -> str:
    """Why libraries cannot keep caches in a folder; empty if they can."""
    if not home or not Path(home).is_absolute() or not Path(home).is_dir():
        return "is no folder"
    cache = Path(home) / _CACHE
    try:
        with tempfile.TemporaryFile(dir=cache if cache.is_dir() else home):
            return ""
    except OSError as error:
        return f"cannot be written ({error.strerror})"
