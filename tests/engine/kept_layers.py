"""Counts what vLLM says of layers that were not sent; a module of its own, so that an engine's worker can import it."""

from __future__ import annotations

import logging
from typing import Any

_RELOADING = logging.getLogger("vllm.model_executor.model_loader.reload.layerwise")


class Heard(logging.Handler):
    """Keeps what it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


_HEARD = Heard()


def listen(_worker: Any) -> None:
    _RELOADING.addHandler(_HEARD)


def heard(_worker: Any) -> list[str]:
    """What was said meanwhile, and once more on purpose, so that silence does not come from deafness."""
    _RELOADING.warning("%s: %s", "Layer", "still heard")
    _RELOADING.removeHandler(_HEARD)
    return _HEARD.messages
