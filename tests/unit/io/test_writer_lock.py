"""The lock of the one process that writes: held against objects and processes, freed however its holder ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from rsgrpo.io.writer_lock import LockHeldError, WriterLock

_HOLDER = """
import sys, time
from pathlib import Path
from rsgrpo.io.writer_lock import WriterLock
lock = WriterLock(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(600)
"""


def test_one_object_holds_the_lock_until_it_is_closed(tmp_path: Path) -> None:
    file = tmp_path / "lock"
    with WriterLock(file) as lock:
        with pytest.raises(LockHeldError, match=f"process {os.getpid()} on "):
            WriterLock(file)
        lock.close()
        with WriterLock(file), pytest.raises(LockHeldError):
            WriterLock(file)
    with WriterLock(file):  # closing twice harms nobody
        pass


def test_a_killed_process_frees_the_lock(tmp_path: Path) -> None:
    file = tmp_path / "lock"
    with subprocess.Popen([sys.executable, "-c", _HOLDER, str(file)], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
        with pytest.raises(LockHeldError, match=f"process {holder.pid} on "):
            WriterLock(file)
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        with WriterLock(file):
            pass


def test_a_holder_that_does_not_say_which_it_is(tmp_path: Path) -> None:
    file = tmp_path / "lock"
    with WriterLock(file):
        file.write_bytes(b"")  # as locks of earlier versions are
        with pytest.raises(LockHeldError, match="it does not say which"):
            WriterLock(file)
