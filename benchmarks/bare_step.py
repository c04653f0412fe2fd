"""The trainer's step without Ray and DeepSpeed: its model, rows and loss, with torch's AdamW."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig

from rsgrpo.config import LossConfig, ModelConfig
from rsgrpo.config.image_rules import ImageRules
from rsgrpo.model.folder import load_processor
from rsgrpo.model.micro_batches import Segment, plan_micro_batches
from rsgrpo.model.policy_model import MicroBatchBuilder, PolicyModel, group_sizes, load_model
from rsgrpo.model.suppressed_tokens import suppressed_token_ids
from rsgrpo.model.vision_tower import use_window_attention
from rsgrpo.model.vlm import PromptEncoder
from rsgrpo.trainer.objective import row_loss
from rsgrpo.types import TrainingGroup

LOSS = LossConfig(importance_cap=0.0)
"""On-policy, uncorrected: whoever measures compares rows, not samplers."""


class BareStep:
    """The trainer's model and rows, with torch's AdamW.

    Args:
        folder: the folder that holds the model.
        config: precision, backend, recomputation.
        device: where it runs.
        learning_rate: the learning rate of AdamW.
    """

    def __init__(
        self, folder: Path, config: ModelConfig, device: torch.device, *, learning_rate: float = 1e-12
    ) -> None:
        processor = load_processor(folder)
        self.encoder = PromptEncoder(
            processor, rules=ImageRules(min_pixels=784, max_pixels=10**8), max_prompt_tokens=10**6
        )
        vocabulary_size = AutoConfig.from_pretrained(folder).get_text_config().vocab_size
        suppressed = suppressed_token_ids(processor.tokenizer, vocabulary_size)
        self.model = load_model(folder, config, suppressed).to(device)
        self.policy = PolicyModel(self.model, always_run_vision=False)
        dtype = torch.bfloat16 if config.dtype == "bfloat16" else torch.float32
        self.rows = MicroBatchBuilder(
            image_token_id=self.encoder.image_token_id,
            config=config,
            device=device,
            dtype=dtype,
            image_pixels=self.encoder.pixels,
        )
        use_window_attention(self.model.model.visual, self.rows.choice.backend)
        trainable = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(trainable, lr=learning_rate, weight_decay=0.0, foreach=True)

    def accumulate(self, groups: list[TrainingGroup], *, budget: int, share_prefix: bool) -> int:
        """Forward and backward over all rows; returns how many there are."""
        prompts = self.encoder.encode([group.prompt for group in groups])
        sizes = group_sizes(groups, prompts)
        plan = plan_micro_batches(sizes, budget=budget, share_prefix=share_prefix)
        for segments in plan:
            batch = self.rows.build(segments, groups, prompts)
            logprobs, _ = self.policy(batch, with_entropy=True)
            row_loss(batch, logprobs, "policy", LOSS)[0].backward()
        return len(plan)

    def gradient(self, groups: list[TrainingGroup], *, budget: int, share_prefix: bool) -> list[torch.Tensor]:
        """The gradient by parameter, on the CPU."""
        self.optimizer.zero_grad()
        self.accumulate(groups, budget=budget, share_prefix=share_prefix)
        found = [p.grad.float().cpu() for p in self.model.parameters() if p.grad is not None]
        self.optimizer.zero_grad()
        return found

    def update(self, groups: list[TrainingGroup], *, budget: int, share_prefix: bool) -> int:
        """One optimizer step."""
        num_rows = self.accumulate(groups, budget=budget, share_prefix=share_prefix)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return num_rows

    def logprobs(self, groups: list[TrainingGroup], *, budget: int) -> np.ndarray[Any, Any]:
        """Log-probabilities of all response tokens of one group."""
        prompts = self.encoder.encode([group.prompt for group in groups])
        lengths = tuple(len(response.token_ids) for response in groups[0].responses)
        segment = Segment(
            group=0,
            responses=tuple(range(len(lengths))),
            num_prompt_tokens=len(prompts[0].token_ids),
            response_lengths=lengths,
        )
        with torch.no_grad():
            logprobs, _ = self.policy(self.rows.build([segment], groups, prompts))
        found: np.ndarray[Any, Any] = logprobs.float().cpu().numpy()
        return found
