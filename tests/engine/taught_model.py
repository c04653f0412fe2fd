"""A small model that knows how responses look: what is rewarded has to occur."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration

TEACHING_STEPS = 100


def teach(folder: Path, texts: list[tuple[str, str]]) -> None:
    """Let a small model in a folder imitate responses (prompt, response), without pages."""
    tokenizer = AutoProcessor.from_pretrained(folder).tokenizer
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder)
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, TEACHING_STEPS)
    rng = np.random.default_rng(0)
    for _ in range(TEACHING_STEPS):
        rows = []
        for index in rng.integers(0, len(texts), 6):
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
