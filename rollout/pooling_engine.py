"""vLLM's pooling runner: hidden states of prompts instead of responses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from vllm import LLM, PoolingParams
from vllm.config import PoolerConfig
from vllm.inputs import TokensPrompt
from vllm.platforms import current_platform

from rollout.engine import RolloutError
from rsgrpo.types import FloatArray


@dataclass(frozen=True, kw_only=True, slots=True)
class PoolingSpec:
    """What a pooling engine is built from.

    Attributes:
        model_folder: the folder of the model with its tokenizer and processor.
        architecture: the class of the model in vLLM.
        pooling: the pooling that vLLM does itself, ``LAST`` or ``MEAN``; empty: it gives the vectors of all tokens.
        dtype: the type of the weights, as torch calls it.
        device: the kind of device, ``cpu`` or ``cuda``.
        max_tokens: the most tokens of a prompt, and of a step of the engine.
        image_settings: settings of the image processor.
    """

    model_folder: Path
    architecture: str
    pooling: str
    dtype: str
    device: str
    max_tokens: int
    image_settings: Mapping[str, Any] = field(default_factory=dict)


class PoolingEngine:
    """A model in vLLM's pooling runner.

    Args:
        spec: what the engine is built from.

    Raises:
        RolloutError: this vLLM is built for another kind of device.
    """

    def __init__(self, spec: PoolingSpec) -> None:
        if current_platform.is_cpu() != (spec.device == "cpu"):
            raise RolloutError(
                f"vLLM is built for {current_platform.device_type} here, and embedder.device is {spec.device}; leave "
                "embedder.device at auto, or install vLLM for the other device"
            )
        self._task = "embed" if spec.pooling else "token_embed"
        # Normalising is ours: vLLM's would hide a vector that is zero.
        self._parameters = PoolingParams(use_activation=False)
        by_type = {"pooling_type": spec.pooling} if spec.pooling else {}
        self._llm = LLM(
            model=str(spec.model_folder),
            runner="pooling",
            convert="embed",
            # Named here, as vLLM would take the last token for a pooling saved with the model that it does not know.
            pooler_config=PoolerConfig(task=self._task, **by_type),
            dtype=spec.dtype,
            seed=0,
            max_model_len=spec.max_tokens,
            max_num_batched_tokens=spec.max_tokens,
            # Hidden states of a prefix that is cached, or was cut off before, would be missing.
            enable_prefix_caching=False,
            enable_chunked_prefill=False,
            limit_mm_per_prompt={"image": 1, "video": 0},
            mm_processor_kwargs=dict(spec.image_settings),
            hf_overrides={"architectures": [spec.architecture]},
            disable_log_stats=True,
        )

    def vectors(self, token_ids: Sequence[Sequence[int]], images: Sequence[Image.Image]) -> list[FloatArray]:
        """Compute the vectors of prompts.

        Args:
            token_ids: the tokens of each prompt, an image as one placeholder.
            images: the image of each prompt; empty: the prompts have none.

        Returns:
            For each prompt its vector, [hidden] float32, or where the engine does not pool those of its tokens,
            [tokens, hidden].
        """
        prompts = [TokensPrompt(prompt_token_ids=list(ids)) for ids in token_ids]
        for prompt, image in zip(prompts, images, strict=False):
            prompt["multi_modal_data"] = {"image": [image]}
        outputs = self._llm.encode(prompts, pooling_task=self._task, pooling_params=self._parameters, use_tqdm=False)
        return [np.asarray(output.outputs.data.float().cpu().numpy()) for output in outputs]
