"""transformers' own forward pass on one prompt and one response: what engine and trainer are compared with."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from transformers import PreTrainedModel, ProcessorMixin

from rsgrpo.types import ChatPrompt
from tests.tiny_model import without_suppressed


def plain_logprobs(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    prompt: ChatPrompt,
    token_ids: NDArray[np.int32],
    *,
    with_suppressed: bool = False,
) -> torch.Tensor:
    """Log-probabilities [R] of a response, differentiable.

    Args:
        model: any that transformers has loaded.
        processor: the model's.
        prompt: with its pages' files.
        token_ids: [R] of the response.
        with_suppressed: leave the tokens that no response may contain in the distribution.
    """
    images = [Image.open(image.file).convert("RGB") for image in prompt.images] or None
    encoded = processor(text=[prompt.text], images=images, return_tensors="pt")
    response = torch.from_numpy(token_ids.astype(np.int64))
    ids = torch.cat([encoded["input_ids"][0], response])[None]
    extra = {}
    if images:
        extra = {
            "pixel_values": encoded["pixel_values"],
            "image_grid_thw": encoded["image_grid_thw"],
            "mm_token_type_ids": (ids == processor.image_token_id).int(),
        }
    logits = model(input_ids=ids, **extra).logits[0, -len(response) - 1 : -1]
    if not with_suppressed:
        logits = without_suppressed(logits, processor)
    return torch.log_softmax(logits, -1).gather(-1, response[:, None])[:, 0]
