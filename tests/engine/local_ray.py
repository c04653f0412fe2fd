"""A Ray cluster of its own for the tests of a module."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray


@contextmanager
def local_ray(**settings: Any) -> Iterator[None]:
    """Ray for the length of the block.

    Args:
        settings: of ``ray.init``, beside two CPUs and a quiet start.
    """
    ray.init(**({"address": "local", "include_dashboard": False, "log_to_driver": False, "num_cpus": 2} | settings))
    try:
        yield
    finally:
        ray.shutdown()
