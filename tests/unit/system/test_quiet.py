"""Torch's search for CUDA says nothing, whatever CUDA_HOME is; its other warnings stay."""

from __future__ import annotations

import os
import subprocess
import sys

from tests.programs import REPOSITORY, TIMEOUT_SECONDS

CODE = """
import logging
from rsgrpo.system.quiet import hush_cuda_search
hush_cuda_search()
import torch.utils.cpp_extension
logging.getLogger("torch.utils.cpp_extension").warning("other news")
"""


def test_torch_says_nothing_of_a_cuda_that_it_does_not_find() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", CODE],
        cwd=REPOSITORY,
        env={**os.environ, "CUDA_HOME": "/usr/local", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
        check=True,
    )
    assert "No CUDA runtime" not in ended.stderr
    assert "other news" in ended.stderr
