"""Conversations through the packed trainer: images in later questions, weights, and what a step takes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from recipes.sft import training_groups
from rsgrpo.config import ModelConfig
from rsgrpo.config.image_rules import ImageRules
from rsgrpo.data.images.image_tokens import ImageTokens
from rsgrpo.model.families.table import FAMILIES
from rsgrpo.model.folder import check_model_type, load_processor
from rsgrpo.model.micro_batches import plan_micro_batches
from rsgrpo.model.policy_model import MicroBatchBuilder, PolicyModel, group_sizes, load_model
from rsgrpo.model.vlm import PromptEncoder, PromptError
from rsgrpo.prompts.conversation import Conversation
from rsgrpo.types import ImageRef, Sample, Turn
from tests.tiny_model import build_tiny_model, write_images
from tests.unit.prompts.test_conversation_prompts import builder


def conversations(images: list[ImageRef]) -> list[Conversation]:
    def talk(name: str, shown: list[ImageRef], *texts: str) -> Conversation:
        turns = tuple(Turn(role=("user", "assistant")[n % 2], text=text) for n, text in enumerate(texts))
        (row,) = builder().build(Sample(sample_id=name, images=tuple(shown), turns=turns))
        return row

    return [
        talk("a", images[:3], "<image>one", "A!", "two <image> and <image>?", "yes"),
        talk("b", [], "Q", "a longer answer", "again?", "no"),
        # begins without an image and shows one of the first conversation's later
        talk("c", images[1:2], "hello", "hi", "<image>", "a cat", "sure?", "yes"),
    ]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[ImageRef]:
    return write_images(tmp_path_factory.mktemp("pages"), [(56, 56), (84, 56), (112, 140)])


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_model(tmp_path_factory.mktemp("model"), family=request.param)


def test_images_of_later_questions_are_seen_as_transformers_sees_them(folder: Path, images: list[ImageRef]):
    processor = load_processor(folder)
    encoder = PromptEncoder(processor, rules=ImageRules(min_pixels=1, max_pixels=10**7), max_prompt_tokens=1000)
    tokens = ImageTokens(processor.image_processor, ImageRules(min_pixels=1, max_pixels=10**7))
    talks = conversations(images)
    groups = training_groups(talks, processor.tokenizer, tokens.count)
    prompts = [
        encoder.with_response_images(prompt, group.responses)
        for group, prompt in zip(groups, encoder.encode([group.prompt for group in groups]), strict=True)
    ]
    sizes = group_sizes(groups, prompts)
    settings = ModelConfig(dtype="float32", gradient_checkpointing=False)
    policy = PolicyModel(load_model(folder, settings), always_run_vision=False)
    rows = MicroBatchBuilder(
        image_token_id=encoder.image_token_id,
        config=settings,
        device=torch.device("cpu"),
        dtype=torch.float32,
        image_pixels=encoder.pixels,
    )
    ((*segments,),) = plan_micro_batches(sizes, budget=10_000, share_prefix=True)  # all packed into one row
    batch = rows.build(segments, groups, prompts)
    found = policy(batch)[0].detach().split([length for segment in segments for length in segment.response_lengths])

    plain = check_model_type(folder).model.from_pretrained(folder, attn_implementation="eager")
    for segment, logprobs in zip(segments, found, strict=True):
        talk = talks[segment.group]
        opened = [Image.open(image.file).convert("RGB") for image in talk.images] or None
        text = talk.prompt.text + "".join(part.text for part in talk.parts)
        inputs = processor(text=[text], images=opened, return_tensors="pt")
        with torch.no_grad():
            logits = plain(**inputs).logits[0, :-1]
        response = torch.from_numpy(groups[segment.group].responses[0].token_ids.astype(np.int64))
        assert inputs["input_ids"][0, -len(response) :].tolist() == response.tolist()
        want = torch.log_softmax(logits[-len(response) :], -1).gather(-1, response[:, None])[:, 0]
        torch.testing.assert_close(logprobs, want, atol=2e-5, rtol=1e-4)


def test_every_target_of_a_step_weighs_the_same_and_together_they_weigh_one(folder: Path, images: list[ImageRef]):
    processor = load_processor(folder)
    tokens = ImageTokens(processor.image_processor, ImageRules(min_pixels=1, max_pixels=10**7))
    groups = training_groups(conversations(images), processor.tokenizer, tokens.count)
    weights = np.concatenate([group.responses[0].positive_weights for group in groups])
    # answers of 2+3, 15+2 and 2+5+3 bytes with an end each: 32 bytes and 7 ends
    assert (weights > 0).sum() == 32 + 7
    np.testing.assert_allclose(weights[weights > 0], 1 / 39, rtol=1e-6)
    assert all(len(group.responses) == 1 for group in groups)


def test_placeholders_that_do_not_fit_the_pages_are_named(folder: Path, images: list[ImageRef]):
    processor = load_processor(folder)
    encoder = PromptEncoder(processor, rules=ImageRules(min_pixels=1, max_pixels=10**7), max_prompt_tokens=1000)
    (group, *_) = training_groups(conversations(images), processor.tokenizer, lambda image: 1)
    (prompt,) = encoder.encode([group.prompt])
    with pytest.raises(PromptError, match=r"'a': response 0 has 2 image placeholders for 2 images with 2[26] tokens"):
        encoder.with_response_images(prompt, group.responses)
    without = replace(group.responses[0], images=())
    assert encoder.with_response_images(prompt, [without]) is prompt
