"""How many cores an embedder may use beside an engine."""

from __future__ import annotations

import os

_CORES_OF_A_THREAD = 4


def leave_cores() -> None:
    """Let this process compute in a quarter of the cores' threads, unless ``OMP_NUM_THREADS`` says how many.

    Threads that work together wait for one another at every operation. Where an engine on the same machine keeps all
    cores busy, one of them always has none, and to embed a question takes ten times as long as in one thread.
    """
    if "OMP_NUM_THREADS" not in os.environ:
        import torch

        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // _CORES_OF_A_THREAD))
