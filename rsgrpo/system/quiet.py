"""Silence lines of libraries that tell a reader of a run's logs nothing."""

from __future__ import annotations

import logging

_DEEPSPEED = "DeepSpeed"
_NO_GPU = "Setting accelerator to CPU"
_CUDA_SEARCH = "torch.utils.cpp_extension"
_NO_CUDA = "No CUDA runtime is found"


def hush_cuda_search() -> None:
    """Keep torch from saying, on a machine with ``CUDA_HOME`` but without a GPU, that it finds no CUDA.

    DeepSpeed makes it look when it is imported; we say ourselves which device a run uses.
    """
    logging.getLogger(_CUDA_SEARCH).addFilter(_is_news)


def hush_device_search() -> None:
    """Keep DeepSpeed, which other libraries import, from saying on a machine without a GPU that it finds none."""
    logging.getLogger(_DEEPSPEED).addFilter(_is_news)


def _is_news(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith((_NO_CUDA, _NO_GPU))
