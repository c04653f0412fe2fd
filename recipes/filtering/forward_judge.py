"""One forward pass of transformers a page: for a few questions, where an engine would take longer to start."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from rollout.engine import NamedLogprobs
from rsgrpo.config.image_rules import ImageRules
from rsgrpo.data.images.loading import load_image
from rsgrpo.model.folder import check_model_type, load_processor, stored_tensors
from rsgrpo.types import PromptedSample


class ForwardJudge:
    """A :class:`rollout.engine.TokenJudge` in this process.

    Args:
        folder: the folder of a model with its tokenizer and processor.
        rules: how pages are read.
        setting: the key and value that name the folder, for messages.

    Raises:
        ModelError: the folder holds no model of a supported family, or files of it are missing.
    """

    def __init__(self, folder: Path, rules: ImageRules, setting: str) -> None:
        family = check_model_type(folder, setting)
        stored_tensors(folder, setting)
        self.processor = load_processor(folder, setting)
        self._rules = rules
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        dtype = torch.bfloat16 if self._device.type == "cuda" else torch.float32
        model = family.model.from_pretrained(folder, dtype=dtype)
        self._model = model.to(self._device).eval()

    @torch.inference_mode()
    def named_logprobs(
        self, prompted: Sequence[PromptedSample], token_ids: Sequence[int], *, max_pixels: int
    ) -> list[NamedLogprobs]:
        """See :class:`rollout.engine.TokenJudge`."""
        rules = self._rules.scaled_down(max_pixels) if max_pixels else self._rules
        found = []
        for item in prompted:
            images = [load_image(page, rules) for page in item.prompt.images] or None
            encoded = self.processor(text=[item.prompt.text], images=images, return_tensors="pt").to(self._device)
            logits = self._model(**encoded, logits_to_keep=1).logits[0, -1].float()  # [V]
            logprobs = torch.log_softmax(logits, -1)[list(token_ids)]  # [C]
            found.append(
                NamedLogprobs(logprobs=tuple(logprobs.tolist()), num_prompt_tokens=int(encoded["input_ids"].shape[1]))
            )
        return found
