"""A process of its own for ``test_ray_deaths.py``: a cluster, a worker that never answers, and the ids to kill."""

from __future__ import annotations

import json
import os
import threading

import ray

from rsgrpo.cluster.ray_cluster import _head_processes, open_cluster
from rsgrpo.config import ClusterConfig
from rsgrpo.failures import run_program
from rsgrpo.system.processes import RUN_VARIABLE


class Sleeper:
    def ready(self) -> int:
        return os.getpid()

    def sleep(self) -> None:
        threading.Event().wait()


def main() -> None:
    with open_cluster(ClusterConfig(device="cpu")):
        sleeper = ray.remote(Sleeper).options(num_cpus=0).remote()
        worker = ray.get(sleeper.ready.remote())
        ids = {**_head_processes(), "worker": worker, "run": os.getpid()}
        print(json.dumps({"ids": ids, "mark": os.environ[RUN_VARIABLE]}), flush=True)
        ray.get(sleeper.sleep.remote())


if __name__ == "__main__":
    run_program(main)
