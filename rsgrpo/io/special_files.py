"""Paths that name neither a file nor a folder: pipes, sockets, devices, links that lead in a circle or nowhere.

Opening a pipe waits for its other end, and a device may never end: such paths are refused before they are read.
"""

from __future__ import annotations

import errno
import io
import os
import stat
from pathlib import Path

from rsgrpo.errors import shown

_KINDS = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


class SpecialFileError(OSError):
    """A path that names no file that could be read; ``strerror`` says what it is."""


def special_kind(path: str | Path) -> str:
    """What a path names, where that is neither a file nor a folder; empty for these, and where nothing is there.

    Args:
        path: the path as somebody wrote it.

    Example:
        ``a pipe``, ``a link to nosuch.png, which does not exist``
    """
    place = Path(path)
    try:
        return _KINDS.get(stat.S_IFMT(place.stat().st_mode), "")
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno == errno.ELOOP:
            return "a path through links that lead in a circle"
    try:
        return f"a link to {shown(place.readlink(), 120)}, which does not exist"
    except (OSError, ValueError):
        return ""


def open_regular(path: str) -> io.FileIO:
    """A file to read, without a buffer.

    Args:
        path: the path of the file.

    Raises:
        SpecialFileError: the path names a pipe or a device.
        OSError: the path is missing, a folder, a socket, or may not be read.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a pipe would wait for who writes
    try:
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
        if not stat.S_ISREG(mode):
            kind = _KINDS.get(stat.S_IFMT(mode), "no file")
            raise SpecialFileError(errno.EINVAL, f"it is {kind}, not a file", path)
        return io.FileIO(descriptor)
    except BaseException:
        os.close(descriptor)
        raise
