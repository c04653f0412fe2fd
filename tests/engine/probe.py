"""An actor that says where it is; a module of its own that imports nothing heavy, as several start at once."""

from __future__ import annotations

import os

import ray


class Probe:
    """Says where it is and what it sees."""

    def place(self) -> tuple[str, str]:
        """GPUs that Ray lent it, and GPUs that a CUDA program would see."""
        lent = ray.get_runtime_context().get_accelerator_ids()["GPU"]
        return ",".join(lent), os.environ["CUDA_VISIBLE_DEVICES"]
