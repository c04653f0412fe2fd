"""The lock of the one process that writes to a folder; the system frees it when the process ends, in whatever way.

The lock is the kernel's (``flock``): on a network file system it may hold on one machine only.
"""

from __future__ import annotations

import fcntl
import os
import platform
from pathlib import Path
from types import TracebackType

_MAX_HOLDER_BYTES = 200


class LockHeldError(Exception):
    """Another process holds the lock; whoever wants it says which folder is meant, and the way out.

    Attributes:
        holder: the process that holds the lock, such as ``process 4711 on node3``; ``it does not say which`` where the
            lock file is empty.
    """

    def __init__(self, holder: str) -> None:
        self.holder = holder or "it does not say which"
        super().__init__(self.holder)


class WriterLock:
    """A lock that this process holds from its making until :meth:`close`, or the end of a ``with`` block.

    Args:
        file: the lock file; made if need be, and never deleted.

    Raises:
        LockHeldError: another process holds the lock, or another object of this one.
        OSError: the lock file cannot be opened or written.

    Example:
        ``with WriterLock(folder / "writer.lock"): …`` raises :class:`LockHeldError` in a second process.
    """

    def __init__(self, file: Path) -> None:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise LockHeldError(os.pread(descriptor, _MAX_HOLDER_BYTES, 0).decode(errors="replace")) from None
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"process {os.getpid()} on {platform.node()}".encode(), 0)
        except BaseException:
            os.close(descriptor)
            raise
        self._descriptor = descriptor

    def close(self) -> None:
        """Free the lock; a lock that is free already stays so."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> WriterLock:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
