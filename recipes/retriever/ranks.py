"""Several ranks as processes on this machine: started, listened to, and ended together."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from pathlib import Path

from recipes.retriever.rank_messages import RankDone, RankFailed, RankStart
from recipes.retriever.rank_work import Event, RankTask
from rsgrpo.config import Config
from rsgrpo.errors import RsgrpoError, shown
from rsgrpo.system.interrupts import at_forced_end

LOG_FOLDER = "ranks"
"""The folder of what the ranks print, in the run's."""

_IMPORT_FROM = Path(__file__).resolve().parents[2]
_END_SECONDS = 5.0
_LISTEN_SECONDS = 2.0  # after a rank's end, for others that may know the reason


class RankError(RsgrpoError):
    """A rank ended, and training with it; the message says which and why."""


class _Rank:
    """A rank's process, and our end of its pipe."""

    def __init__(self, start: RankStart, log: Path) -> None:
        self.number = start.rank
        self.log = log
        self.connection, theirs = Pipe()
        threads = str(max(1, start.config.trainer.num_threads))
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "recipes.retriever.rank_process", str(theirs.fileno())],
                cwd=_IMPORT_FROM,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # Ctrl-C is meant for us
                env={**os.environ, "OMP_NUM_THREADS": threads, "TOKENIZERS_PARALLELISM": "false"},
            )
        theirs.close()
        with suppress(OSError):  # it has ended already, which is noticed soon
            self.connection.send(start)

    def kill(self) -> None:
        """Kill the process and all that it started."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.connection.close()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(_END_SECONDS)


def train_in_ranks(config: Config, task: RankTask, tell: Callable[[Event], None]) -> None:
    """Train in as many processes as there are ranks; all of them end with the block, whatever happens.

    Args:
        config: the settings of the run, with device and threads decided.
        task: what the ranks do.
        tell: told what the first rank tells.

    Raises:
        RankError: a rank cannot go on, or has died.
    """
    folder = task.run_folder / LOG_FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    meeting_file = folder / f"meeting-{os.getpid()}"
    meeting_file.unlink(missing_ok=True)
    with ExitStack() as stack:
        stack.callback(lambda: meeting_file.unlink(missing_ok=True))
        ranks: list[_Rank] = []

        def kill_all() -> None:
            for rank in ranks:
                rank.kill()

        stack.callback(at_forced_end(kill_all))
        for number in range(config.trainer.num_ranks):
            start = RankStart(
                config=config,
                task=task,
                rank=number,
                num_ranks=config.trainer.num_ranks,
                meeting_file=meeting_file,
            )
            rank = _Rank(start, folder / f"rank-{number}.log")
            stack.callback(rank.kill)
            ranks.append(rank)
        _listen(ranks, tell)


def _listen(ranks: Sequence[_Rank], tell: Callable[[Event], None]) -> None:
    running = {rank.connection: rank for rank in ranks}
    while running:
        for ready in wait(list(running)):
            assert isinstance(ready, Connection)
            rank = running[ready]
            said = _received(rank)
            if isinstance(said, RankFailed) or said is None:
                raise _failure(rank, said, [other for other in ranks if other is not rank])
            if isinstance(said, RankDone):
                del running[ready]
            else:
                tell(said)


def _received(rank: _Rank) -> Event | RankDone | RankFailed | None:
    """What a rank says; None: it has ended without a word."""
    try:
        said: Event | RankDone | RankFailed = rank.connection.recv()
    except (EOFError, OSError):
        return None
    return said


def _failure(first: _Rank, said: RankFailed | None, others: Sequence[_Rank]) -> RankError:
    """The error of a training whose rank failed: where one dies, the others fail to reach it, which is no reason."""
    found: list[tuple[_Rank, RankFailed | None]] = [(first, said)]
    deadline = time.monotonic() + _LISTEN_SECONDS
    waiting = {rank.connection: rank for rank in others}
    while waiting and not _is_reason(found[-1][1]) and (left := deadline - time.monotonic()) > 0:
        for ready in wait(list(waiting), left):
            assert isinstance(ready, Connection)
            rank = waiting[ready]
            word = _received(rank)
            if isinstance(word, RankFailed) or word is None:
                found.append((rank, word))
                del waiting[ready]
    best = min(found, key=lambda item: (not _is_reason(item[1]), item[1] is not None))
    return _sentence(*best)


def _is_reason(said: RankFailed | None) -> bool:
    return said is not None and said.is_foreseen


def _sentence(rank: _Rank, said: RankFailed | None) -> RankError:
    if said is not None and said.is_foreseen:
        return RankError(said.sentence)
    if said is not None:
        with suppress(OSError), rank.log.open("a", encoding="utf-8", errors="replace") as file:
            file.write(said.trace)
        return RankError(f"rank {rank.number} failed: {said.sentence}; {shown(rank.log)} holds the traceback")
    with suppress(subprocess.TimeoutExpired):
        rank.process.wait(_END_SECONDS)
    status = rank.process.returncode
    cause = f"was ended by signal {-status}" if status is not None and status < 0 else f"ended with status {status}"
    return RankError(
        f"rank {rank.number} {cause}; often the machine had run out of memory (see `dmesg`), {shown(rank.log)} holds "
        "what it printed: nothing that was saved is lost, go on with resume=auto"
    )
