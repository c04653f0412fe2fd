"""What is sampled at a temperature is trained at it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import Qwen2_5_VLForConditionalGeneration

from recipes.rs_grpo import training_groups
from rsgrpo.algorithm.advantages import credit_groups
from rsgrpo.config import CreditConfig, ModelConfig
from rsgrpo.config.image_rules import ImageRules
from rsgrpo.model.folder import load_processor
from rsgrpo.model.micro_batches import Segment
from rsgrpo.model.policy_model import MicroBatchBuilder, PolicyModel, load_model
from rsgrpo.model.vlm import PromptEncoder
from rsgrpo.types import TrainingGroup
from tests.tiny_model import build_tiny_model, make_group
from tests.unit.strategies import scoped_reward, scored_group, scored_rollout

TEMPERATURES = (1.5, 1.0)  # of the group's two responses


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_model(tmp_path_factory.mktemp("model"))


def _group() -> TrainingGroup:
    group = make_group("a", [], [7, 4], seed=5)
    responses = tuple(
        replace(response, temperature=temperature)
        for response, temperature in zip(group.responses, TEMPERATURES, strict=True)
    )
    return replace(group, responses=responses)


def test_logits_are_divided_by_each_responses_own_temperature(folder: Path) -> None:
    group = _group()
    config = ModelConfig(dtype="float32", freeze_vision=False, gradient_checkpointing=False)
    model = load_model(folder, config)
    encoder = PromptEncoder(
        load_processor(folder), rules=ImageRules(min_pixels=1, max_pixels=10**7), max_prompt_tokens=1000
    )
    (prompt,) = encoder.encode([group.prompt])
    rows = MicroBatchBuilder(
        image_token_id=encoder.image_token_id,
        config=config,
        device=torch.device("cpu"),
        dtype=torch.float32,
        image_pixels=encoder.pixels,
    )
    segment = Segment(group=0, responses=(0, 1), num_prompt_tokens=len(prompt.token_ids), response_lengths=(7, 4))
    policy = PolicyModel(model, always_run_vision=False)
    logprobs, entropy = policy(rows.build([segment], [group], [prompt]), with_entropy=True)

    plain = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, attn_implementation="eager")
    wanted, wanted_entropy = [], []
    for response, temperature in zip(group.responses, TEMPERATURES, strict=True):
        ids = torch.from_numpy(np.concatenate([prompt.token_ids, response.token_ids.astype(np.int64)]))[None]
        with torch.no_grad():
            logits = plain(input_ids=ids).logits[0, len(prompt.token_ids) - 1 : -1]
        distribution = torch.log_softmax(logits / temperature, -1)
        wanted.append(distribution.gather(-1, ids[0, len(prompt.token_ids) :, None])[:, 0])
        wanted_entropy.append(-(distribution.exp() * distribution).sum(-1))
    torch.testing.assert_close(logprobs.detach(), torch.cat(wanted), rtol=0, atol=1e-5)
    torch.testing.assert_close(entropy, torch.cat(wanted_entropy), rtol=0, atol=1e-4)


def test_a_row_at_temperature_one_carries_none(folder: Path) -> None:
    config = ModelConfig(dtype="float32")
    rows = MicroBatchBuilder(
        image_token_id=0,
        config=config,
        device=torch.device("cpu"),
        dtype=torch.float32,
        image_pixels=lambda image: torch.ones(4, 1176),
    )
    assert rows.blank().temperatures is None


def test_the_trainer_gets_the_temperature_of_each_rollout() -> None:
    rollouts = [scored_rollout("q", index, 3, [scoped_reward("right", float(index), (0, 3))]) for index in range(2)]
    warm = replace(rollouts[1], rollout=replace(rollouts[1].rollout, temperature=1.3))
    credited = credit_groups([scored_group("q", [rollouts[0], warm])], {"right": 1.0}, CreditConfig())
    (group,) = training_groups(credited, {})
    assert [response.temperature for response in group.responses] == [1.0, 1.3]
