"""A model with what it takes to run groups through it, packed or one by one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from transformers import AutoConfig

from rsgrpo.config import ModelConfig
from rsgrpo.config.image_rules import ImageRules
from rsgrpo.model.families.table import family_of
from rsgrpo.model.folder import load_processor
from rsgrpo.model.micro_batches import plan_micro_batches
from rsgrpo.model.policy_model import MicroBatchBuilder, PolicyModel, group_sizes, load_model
from rsgrpo.model.suppressed_tokens import suppressed_token_ids
from rsgrpo.model.vision_cache import Grid
from rsgrpo.model.vlm import ProcessedImage, PromptEncoder
from rsgrpo.types import ImageRef, TrainingGroup
from tests.plain_forward import plain_logprobs

ALL_SIZES = ImageRules(min_pixels=1, max_pixels=10**7)
Logprobs = dict[tuple[int, int], torch.Tensor]


class Packed:
    """A model with what it takes to run groups through it."""

    def __init__(
        self,
        folder: Path,
        config: ModelConfig,
        *,
        with_suppressed: bool = True,
        rules: ImageRules = ALL_SIZES,
        max_prompt_tokens: int = 1000,
    ) -> None:
        self.folder, self.config = folder, config
        self.processor = load_processor(folder)
        vocabulary_size = AutoConfig.from_pretrained(folder).get_text_config().vocab_size
        suppressed = () if with_suppressed else suppressed_token_ids(self.processor.tokenizer, vocabulary_size)
        self.model = load_model(folder, config, suppressed)
        self.policy = PolicyModel(self.model, always_run_vision=False)
        self.encoder = PromptEncoder(self.processor, rules=rules, max_prompt_tokens=max_prompt_tokens)
        self.rows = MicroBatchBuilder(
            image_token_id=self.encoder.image_token_id,
            config=config,
            device=torch.device("cpu"),
            dtype=torch.float32,
            image_pixels=self.encoder.pixels,
        )

    def keep_features(
        self, stored_grid: Callable[[ImageRef], Grid | None], cached_features: Callable[[ProcessedImage], torch.Tensor]
    ) -> None:
        """Take pages' features from elsewhere."""
        self.policy = PolicyModel(self.model, always_run_vision=False)
        self.encoder = PromptEncoder(
            self.processor,
            rules=ALL_SIZES,
            max_prompt_tokens=1000,
            stored_grid=stored_grid,
        )
        self.rows = MicroBatchBuilder(
            image_token_id=self.encoder.image_token_id,
            config=self.config,
            device=torch.device("cpu"),
            dtype=torch.float32,
            image_pixels=self.encoder.pixels,
            cached_features=cached_features,
        )

    def run(self, groups: list[TrainingGroup], *, share_prefix: bool, budget: int) -> tuple[Logprobs, torch.Tensor]:
        """Log-probabilities by (group, response), and the gradient of the credit-weighted sum."""
        prompts = self.encoder.encode([group.prompt for group in groups])
        sizes = group_sizes(groups, prompts)
        self.model.zero_grad()
        found: Logprobs = {}
        for segments in plan_micro_batches(sizes, budget=budget, share_prefix=share_prefix):
            batch = self.rows.build(segments, groups, prompts)
            logprobs, _ = self.policy(batch)
            (logprobs * (batch.positive_weights - batch.negative_weights)).sum().backward()
            parts = logprobs.detach().split([n for segment in segments for n in segment.response_lengths])
            found |= dict(zip([(p.group, r) for p in segments for r in p.responses], parts, strict=True))
        return found, torch.cat([p.grad.flatten() for p in self.model.parameters() if p.grad is not None])

    def alone(self, groups: list[TrainingGroup]) -> tuple[Logprobs, torch.Tensor]:
        """The same through transformers' own forward pass, one response at a time."""
        plain = family_of(self.model).model.from_pretrained(self.folder, attn_implementation="eager")
        plain.model.visual.requires_grad_(self.model.model.visual.patch_embed.proj.weight.requires_grad)
        found: Logprobs = {}
        for index, group in enumerate(groups):
            for place, response in enumerate(group.responses):
                logprobs = plain_logprobs(plain, self.processor, group.prompt, response.token_ids, with_suppressed=True)
                (logprobs * torch.from_numpy(response.positive_weights - response.negative_weights)).sum().backward()
                found[index, place] = logprobs.detach()
        return found, torch.cat([p.grad.flatten() for p in plain.parameters() if p.grad is not None])
