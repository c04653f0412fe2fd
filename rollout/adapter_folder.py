"""Adapters that an engine gets alone, where it keeps the base: what vLLM is told, and the files that it reads."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rsgrpo.config import Config, LoraConfig
from rsgrpo.model.exports import write_adapter
from rsgrpo.weights.buckets import WeightBucket, bucket_tensors

_ENGINE_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # the bounds that vLLM lays adapters out for


def adapter_settings(config: Config) -> dict[str, Any]:
    """What vLLM is started with; nothing where the merged weights are sent.

    Args:
        config: the settings of the run.
    """
    lora = config.model.lora
    if lora.update != "adapter" or config.stage == "eval":
        return {}
    rank = next(most for most in _ENGINE_RANKS if lora.rank <= most)
    return {"enable_lora": True, "max_loras": 1, "max_lora_rank": rank}


class AdapterFolder:
    """A folder of this process, which goes with it.

    Args:
        lora: rank and scale of the adapters.
        base: the folder of the model that they rest on.
    """

    def __init__(self, lora: LoraConfig, base: Path) -> None:
        self._lora = lora
        self._base = base
        self._folder = tempfile.TemporaryDirectory(prefix="rsgrpo-adapter-")

    def write(self, buckets: Sequence[WeightBucket]) -> str:
        """Write new adapters over the old ones.

        Args:
            buckets: the matrices, as the trainer sent them.

        Returns:
            The path of the folder.
        """
        named = (pair for bucket in buckets for pair in bucket_tensors(bucket))
        write_adapter(Path(self._folder.name), named, self._lora, self._base)
        return self._folder.name
