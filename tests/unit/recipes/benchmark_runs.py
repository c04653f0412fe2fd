"""Settings and texts of runs over small benchmarks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rsgrpo.config import Config, DataConfig, EndpointConfig, EvalConfig, LoggingConfig, Resume

TASKS = ("evisrag/chartqa", "milebench/ActionSequence", "vhs/single", "mig_bench")


def _config(data_root: Path, *tasks: str, url: str = "", resume: Resume = "never", **settings: Any) -> Config:
    endpoint = EndpointConfig(url=url, model="m" if url else "", concurrency=2, retries=0, timeout_seconds=10.0)
    data = settings.pop("data", DataConfig(min_pixels=784, max_images=8))
    return Config(
        stage="eval",
        run_dir=str(data_root.parent / "run"),
        resume=resume,
        data=data,
        eval=EvalConfig(tasks=list(tasks), data_root=str(data_root), endpoint=endpoint, **settings),
        logging=LoggingConfig(wandb_mode="disabled", tensorboard=False, progress=False),
    )
