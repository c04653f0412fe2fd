"""Teach a small model how responses look, without pages: sections and boxes have to occur to be rewarded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration

_BATCH = 6


def teach(folder: Path, texts: Sequence[tuple[str, str]], *, num_steps: int) -> None:
    """Train a model folder's weights on these texts, in place.

    Args:
        folder: of a small Qwen2.5-VL.
        texts: prompts without images, and their responses.
        num_steps: of six texts each.
    """
    tokenizer = AutoProcessor.from_pretrained(folder).tokenizer
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, num_steps)
    rng = np.random.default_rng(0)
    for _ in range(num_steps):
        rows = []
        for index in rng.integers(0, len(texts), _BATCH):
            prompt, response = (tokenizer.encode(part) for part in texts[index])
            rows.append((prompt + response, [-100] * len(prompt) + response))
        length = max(len(ids) for ids, _ in rows)
        ids = torch.tensor([ids + [0] * (length - len(ids)) for ids, _ in rows])
        labels = torch.tensor([labels + [-100] * (length - len(labels)) for _, labels in rows])
        model(input_ids=ids, labels=labels).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
