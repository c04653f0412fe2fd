"""A rank in a process of its own: ``python -m recipes.retriever.rank_process DESCRIPTOR``.

It gets its task through a pipe, sends events through it, and ends when the other end is closed.
"""

from __future__ import annotations

import os
import sys
import threading
import traceback
from multiprocessing.connection import Connection

from recipes.retriever.rank_messages import RankDone, RankFailed, RankStart
from recipes.retriever.rank_work import do_rank
from rsgrpo.failures.sentences import explain


def main(descriptor: int) -> int:
    """Do a rank's work.

    Args:
        descriptor: the file descriptor of the pipe.

    Returns:
        The exit status.
    """
    connection = Connection(descriptor)
    start: RankStart = connection.recv()
    threading.Thread(target=_leave_with, args=(connection,), daemon=True).start()
    try:
        _join(start)
        do_rank(start.config, start.task, connection.send, is_first=start.rank == 0)
    except BaseException as error:
        failure = explain(error)
        connection.send(
            RankFailed(
                sentence=failure.sentence, is_foreseen=failure.is_foreseen, trace="".join(traceback.format_exc())
            )
        )
        return 1
    connection.send(RankDone())
    return 0


def _join(start: RankStart) -> None:
    """Join the other ranks."""
    import datetime

    import torch

    os.environ |= {
        "RANK": str(start.rank),
        "LOCAL_RANK": str(start.rank),
        "WORLD_SIZE": str(start.num_ranks),
        "LOCAL_WORLD_SIZE": str(start.num_ranks),
    }
    is_gpu = start.config.cluster.device == "gpu"
    if is_gpu:
        torch.cuda.set_device(start.rank)
    torch.distributed.init_process_group(
        "nccl" if is_gpu else "gloo",
        init_method=f"file://{start.meeting_file}",
        rank=start.rank,
        world_size=start.num_ranks,
        timeout=datetime.timedelta(seconds=max(1.0, start.config.trainer.timeout_seconds)),
    )


def _leave_with(connection: Connection) -> None:
    """End this process once the one that started it is gone."""
    try:
        connection.recv()
    except (EOFError, OSError):
        os._exit(1)


if __name__ == "__main__":
    # Leave at once: threads of the process group may wait for ranks that have ended.
    status = main(int(sys.argv[1]))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
