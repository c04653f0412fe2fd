"""What tests do inside an engine's workers; a module of its own, so that their processes can import it."""

from __future__ import annotations

from typing import Any

from rollout.engine_watch import process_and_parent


def break_model(worker: Any) -> None:
    """Let the next forward pass fail, as after a fault of a GPU."""

    def execute_model(*_arguments: Any, **_settings: Any) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered (stand-in)")

    worker.model_runner.execute_model = execute_model


def engine_processes(rollout_worker: Any) -> list[int]:
    """Ids of EngineCore and of vLLM's workers, asked in the pool's worker."""
    pairs = rollout_worker._engine._in_workers(process_and_parent)
    return [pairs[0][1], *sorted(pid for pid, _ in pairs)]
